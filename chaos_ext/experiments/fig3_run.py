"""One seed of a study of twins: a training with its finite-time spectrum, then displaced models on its batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import chaos_ext as ce

from ..base.contents import array, count, parts, refusing, require
from ..base.files import read_sealed, write_keeping_previous, write_sealed
from ..base.row_stream import RowStream
from ..data import BatchOrder, Dataset
from ..data.batches import derive_seed
from ..dynamics.perturbation import STRATEGIES
from ..errors import CheckpointError, NonFiniteError
from .finite_time_run import FiniteTimeSettings, Training, train
from .interruption import Interrupted, between_steps
from .output import OutputFolder, digest
from .rows import wait_for_lock
from .settings import Unit
from .training import build_model
from .unit import Report

log = logging.getLogger("chaos_ext")

EXTREMES, TWINS = "extremes.csv", "twins.csv"
_DIRECTIONS, _CHECKPOINT = "directions", "twins.ckpt"


@dataclass(frozen=True, kw_only=True)
class Fig3Settings(FiniteTimeSettings):
    """Settings of the studies of twins.

    Attributes:
        eps: lengths of the displacements.
        hidden: hidden units of the MLP; None: the paper's network.
    """

    eps: tuple[float, ...]
    hidden: int | None

    @property
    def training(self) -> dict[str, Any]:
        """What decides the training and its directions, whatever twins they are for."""
        return {name: v for name, v in self.to_json().items() if name != "eps" and v is not None}

    @property
    def model_options(self) -> dict[str, int]:
        """The width, where it is not the paper's."""
        return {} if self.hidden is None else {"hidden": self.hidden}


def labels(settings: Fig3Settings) -> list[tuple[str, float]]:
    """Strategy and eps of each twin, in the order of the members after the first."""
    return [(strategy, eps) for strategy in STRATEGIES for eps in settings.eps]


def column(what: str, strategy: str, eps: float) -> str:
    """Of a twin in ``TWINS``; what: "distance" or "along"."""
    return f"{what}_{strategy}_{eps!r}"


def baseline(
    settings: Fig3Settings, data: Dataset, folder: Path, every: float, report: Callable[[int, bool], None]
) -> dict[str, Any]:
    """Trains, and keeps the five directions and all exponents; what was kept before, if it is there.

    Raises:
        NonFiniteError: training diverged.
    """
    path = folder / _DIRECTIONS
    try:
        return _checked(path, settings)
    except FileNotFoundError:
        pass
    except CheckpointError as error:
        log.warning("%s; it is made anew", error)
    training = Training(settings, data, folder, folder / EXTREMES)
    train(training, every, report)
    if training.failure:
        raise NonFiniteError(
            f"seed {training.seed}: training diverged at step {training.failure['step']}: {training.failure['error']}"
        )
    an, generator = training.analyzer, torch.Generator().manual_seed(derive_seed("twins", training.seed))
    found = an.finite_time()
    kept = {
        "settings": settings.training,
        "steps": training.step,
        "epoch_accuracies": training.epoch_accuracies,
        "exponents": found.exponents,
        "neutral": found.neutral,
        "directions": torch.stack([ce.perturbation(an, s, generator) for s in STRATEGIES], 1),
    }
    write_sealed(path, kept)
    for name in ("analyzer.ckpt", "analyzer.ckpt.previous"):  # large
        (folder / name).unlink(missing_ok=True)
    return kept


def _checked(path: Path, settings: Fig3Settings) -> dict[str, Any]:
    kept = read_sealed(path)
    with refusing(str(path)):
        parts(kept, ("settings", "steps", "exponents", "neutral", "directions", "epoch_accuracies"))
        require(kept["settings"] == settings.training, "settings", "these", "others")
        count("steps", kept["steps"], 1)
        array("directions", kept["directions"], (None, len(STRATEGIES)))
    own: dict[str, Any] = kept
    return own


class Twins:
    """A model and its displaced copies on the batches of the training.

    Attributes:
        step: optimizer steps taken.
        total: as many as the training took.
        axes: directions of the displacements, one a twin [P, m].
    """

    def __init__(self, settings: Fig3Settings, data: Dataset, folder: Path, kept: dict[str, Any]) -> None:
        s = self.settings = settings
        (seed,) = s.seeds
        self.folder, self.total, self.step = folder, int(kept["steps"]), 0
        self.data = data.to(getattr(torch, s.dtype), s.device)
        self.order = BatchOrder(len(data.y_train), s.batch_size, seed)
        model = build_model(s, seed)
        directions: Tensor = kept["directions"].to(s.device)
        self.axes = directions.repeat_interleave(len(s.eps), 1)
        deltas = self.axes * torch.tensor([eps for _, eps in labels(s)], dtype=self.axes.dtype, device=s.device)
        opt = torch.optim.SGD(model.parameters(), lr=s.lr, momentum=s.momentum)
        self.ensemble = ce.Ensemble.around(model, nn.CrossEntropyLoss(), opt, deltas)
        names = [column(what, *label) for what in ("distance", "along") for label in labels(s)]
        self.rows = RowStream(folder / TWINS, lambda _: names, lambda _: "these twins", len(names), nan=True)

    def advance(self) -> None:
        """One step; a row first where one is due."""
        if self.step % self.settings.every == 0:
            self.read()
        epoch, position = divmod(self.step, self.order.steps_per_epoch)
        index = self.order.epoch(epoch)[position].to(self.settings.device)
        self.ensemble.step(self.data.x_train[index], self.data.y_train[index])
        self.step += 1

    def read(self) -> None:
        """A row: how far each twin is from the first member, and how far along its own displacement."""
        thetas = self.ensemble.thetas
        away = thetas[1:] - thetas[0]
        self.rows.append(self.step, [*away.norm(dim=1).tolist(), *(away * self.axes.T).sum(1).tolist()])

    def final(self) -> dict[str, Any]:
        """What the study wants to know of the twins at the end, as plain values."""
        return {}

    def save(self) -> None:
        """Writes a checkpoint."""
        content = {"settings": self.settings.to_json(), "step": self.step, "ensemble": self.ensemble.state_dict()}
        write_keeping_previous(self.folder / _CHECKPOINT, content)

    def restore(self) -> None:
        """Goes to the newest good checkpoint, if there is one; else the rows begin anew."""
        path = self.folder / _CHECKPOINT
        for candidate in (path, path.with_name(path.name + ".previous")):
            try:
                content = read_sealed(candidate)
                with refusing(str(candidate)):
                    parts(content, ("settings", "step", "ensemble"))
                    require(content["settings"] == self.settings.to_json(), "settings", "these", "others")
                    count("step", content["step"], 0, self.total)
                self.ensemble.load_state_dict(content["ensemble"])
                self.step = content["step"]
                break
            except FileNotFoundError:
                continue
            except CheckpointError as error:
                log.warning("%s", error)
        self.rows.resume(self.step - 1)


def run_twins(twins: Twins, every: float, report: Callable[[int, bool], None]) -> None:
    """To the end, from a checkpoint if there is one.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came; a checkpoint of the last step was written.
    """
    twins.restore()
    report(twins.step, True)
    saved = time.monotonic()
    with between_steps() as asked_to_end:
        while twins.step < twins.total:
            twins.advance()
            report(1, False)
            signum = asked_to_end()
            if signum is not None or time.monotonic() - saved >= every:
                twins.save()
                saved = time.monotonic()
            if signum is not None:
                raise Interrupted(signum, f"twins at step {twins.step}")
    twins.rows.resume(twins.total - 1)
    twins.read()
    twins.save()


class How(NamedTuple):
    """What a study of twins does with a seed.

    Attributes:
        twins: the class of its twins.
        baselines: folder of trainings that studies share, or None.
    """

    twins: type[Twins]
    baselines: Path | None

    def folder(self, settings: Fig3Settings, out: OutputFolder) -> Path:
        """Where the training of these settings, of one seed, is kept."""
        (seed,) = settings.seeds
        if self.baselines is None:
            return out.parts / f"seed{seed}"
        return self.baselines / f"seed{seed}-{digest(settings.training)[:16]}"


def run_seed(
    how: How, settings: Fig3Settings, unit: Unit, data: Dataset, out: OutputFolder, every: float, report: Report
) -> dict[str, Any]:
    """Trains, then has the twins follow; as of ``pool.run_units``."""
    own, folder = replace(settings, seeds=(unit.seed,)), out.parts / f"seed{unit.seed}"
    shared = how.folder(own, out)
    for path in (folder, shared):
        path.mkdir(parents=True, exist_ok=True)
    with (shared / "lock").open("w") as lock:
        wait_for_lock(lock.fileno())  # another study may be at the same training
        kept = baseline(own, data, shared, every, report)
    twins = how.twins(own, data, folder, kept)
    run_twins(twins, every, report)
    steps = twins.ensemble.diverged.tolist()[1:]
    named = [f"{s}, eps {e:g}: step {t}" for (s, e), t in zip(labels(own), steps, strict=True) if t >= 0]
    run = {"seed": unit.seed, "steps": kept["steps"], "epoch_accuracies": kept["epoch_accuracies"], "diverged": named}
    return {"run": run, "final": twins.final()}
