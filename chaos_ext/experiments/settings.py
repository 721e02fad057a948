"""What decides the numbers of an experiment, and nothing else: two runs with equal settings write equal bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Unit:
    """One training run: the smallest piece of work, with its own rows and checkpoint.

    Attributes:
        seed: decides the initialisation, the batches and all other draws.
        run: what is done with them, named by the study; all runs of a seed share initialisation and batches.
    """

    seed: int
    run: str

    @property
    def name(self) -> str:
        """Names the unit's files: ``seed42-sgd``."""
        return f"seed{self.seed}-{self.run}"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Settings that a folder of results records; studies add their own.

    Attributes:
        device: torch device.
        threads: torch threads of each process; sums may round differently with another number.
        chaos_ext: version of this package.
        torch: version of torch.
    """

    device: str
    threads: int
    chaos_ext: str
    torch: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, equal for equal settings."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def differences(self, stored: dict[str, Any]) -> list[str]:
        """What a stored ``to_json`` has otherwise, as ``name: stored there, new here``."""
        mine = self.to_json()
        names = [*mine, *(n for n in stored if n not in mine)]
        return [f"{n}: {stored.get(n)} there, {mine.get(n)} here" for n in names if stored.get(n) != mine.get(n)]


@dataclass(frozen=True, kw_only=True)
class Settings(Recorded):
    """What every study of trainings has, complete enough to repeat it bit by bit on the same machine.

    Attributes:
        data: name of the data set.
        data_fingerprint: hash of its tensors.
        model: ``"mlp"`` or ``"cnn"``.
        activation: name of the activation function.
        epochs: passes over the training split.
        max_steps: upper bound on the optimizer steps of a run (``--quick``), or None.
        lr: learning rate.
        batch_size: samples per step; the last batch of an epoch may be smaller.
        momentum: of the optimizer.
        seeds: in the order of the CSV.
        runs: of each seed, in the order of the CSV.
        dtype: ``"float32"`` or ``"float64"``.
    """

    data: str
    data_fingerprint: str
    model: str
    activation: str
    epochs: int
    max_steps: int | None
    lr: float
    batch_size: int
    momentum: float
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    dtype: str

    @property
    def model_options(self) -> dict[str, int]:
        """What the model's function is given beside activation, seed, dtype and device."""
        return {}

    @property
    def units(self) -> list[Unit]:
        """All units in the order of the CSV: seed by seed, each with its runs."""
        return [Unit(seed, run) for seed in self.seeds for run in self.runs]

    def steps(self, samples: int) -> int:
        """Optimizer steps of one run on that many training samples."""
        total = self.epochs * -(-samples // self.batch_size)
        return total if self.max_steps is None else min(total, self.max_steps)
