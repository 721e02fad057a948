"""Several seeds of a run in training at once, as an ensemble: their rows in a file each, their state in one checkpoint.

Each member sees the batches of its seed and is pruned by its own spectrum, as when it is trained alone; the numbers
are the same to rounding, since products of matrices are added up in another order.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

import chaos_ext as ce

from ..base.contents import parts, require
from ..data import Dataset
from ..errors import NonFiniteError, NotConvergedError
from .output import OutputFolder
from .pruned import PrunedTraining
from .report import Records
from .rows import RowFile
from .settings import Settings, Unit
from .unit import Report, run_unit

USUAL = 8  # seeds at once on a CPU: more gain nothing, and leave less for other processes


@dataclass(frozen=True)
class Group(Unit):
    """Units of one run and several seeds.

    Attributes:
        units: at least two.
    """

    units: tuple[Unit, ...] = ()

    @property
    def name(self) -> str:
        """Names its checkpoint: ``seed42+4-sgd``."""
        return f"seed{self.seed}+{len(self.units) - 1}-{self.run}"


def grouped(units: Sequence[Unit], most: int, fits: Callable[[Unit], bool]) -> list[Unit]:
    """The units, with those that fit in groups of one run and at most so many seeds."""
    pieces: list[Unit] = [] if most > 1 else list(units)
    for run in dict.fromkeys(u.run for u in units if most > 1):
        own = [u for u in units if u.run == run]
        size = most if fits(own[0]) else 1
        for i in range(0, len(own), size):
            some = tuple(own[i : i + size])
            pieces.append(some[0] if len(some) == 1 else Group(some[0].seed, run, some))
    return pieces


def run_together(settings: Settings, most: int, fits: Callable[[Unit], bool], run: Callable[..., Records]) -> Records:
    """Does all units by ``run(do=..., units=...)``; those that fit with at most so many seeds at once."""
    found = run(do=run_piece, units=grouped(settings.units, most, fits))
    records = dict(pair for unit, record in found.items() for pair in _single(unit, record))
    return {unit: records[unit] for unit in settings.units}


def _single(unit: Unit, record: dict[str, Any]) -> Iterator[tuple[Unit, dict[str, Any]]]:
    if isinstance(unit, Group):
        yield from zip(unit.units, record["works"], strict=True)
    else:
        yield unit, record


def run_piece(
    make: Any, settings: Settings, unit: Unit, data: Dataset, out: OutputFolder, every: float, report: Report
) -> dict[str, Any]:
    """A unit, or a group of them, to its end; as of ``run_unit``."""
    if not isinstance(unit, Group):
        return run_unit(make, settings, unit, data, out, every, report)

    def together(settings: Settings, unit: Unit, data: Dataset) -> Together:
        assert isinstance(unit, Group)
        return Together(make, settings, unit, data)

    return run_unit(together, settings, unit, data, out, every, report, RowFiles)


class RowFiles:
    """The rows of every unit of a group: lists of what a ``RowFile`` takes and gives."""

    def __init__(self, out: OutputFolder, group: Group) -> None:
        with contextlib.ExitStack() as opened:
            self._files = [opened.enter_context(RowFile(out.rows(unit))) for unit in group.units]
            self._opened = opened.pop_all()

    def __enter__(self) -> RowFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def append(self, rows: Sequence[bytes]) -> None:
        for file, row in zip(self._files, rows, strict=True):
            file.append(row)

    def flush(self) -> None:
        for file in self._files:
            file.flush()

    def mark(self) -> list[dict[str, Any]]:
        return [file.mark() for file in self._files]

    def clear(self) -> None:
        for file in self._files:
            file.clear()

    def cut_back(self, mark: Any) -> list[int]:
        require(isinstance(mark, list) and len(mark) == len(self._files), "rows", "a mark of every file", mark)
        return [file.cut_back(own) for file, own in zip(self._files, mark, strict=True)]


class Together:
    """The ``Work`` of a group: trainings whose steps an ensemble takes.

    Args:
        make: makes the training of a unit.
        settings, unit, data: as of ``Training``, ``unit`` being the group.
    """

    def __init__(self, make: Callable[..., PrunedTraining], settings: Settings, unit: Group, data: Dataset) -> None:
        self.unit: Unit = unit
        self.works: list[PrunedTraining] = []
        for own in unit.units:
            self.works.append(make(settings, own, data))
            self.works[-1].batch_data = self.works[0].batch_data  # one copy of the data for all
        self._model = self.works[0].model
        thetas = [torch.nn.utils.parameters_to_vector(w.model.parameters()).detach() for w in self.works]
        opt = self.works[0].make_optimizer()
        assert isinstance(opt, ce.CGD)
        if opt.prune is None:  # a CGD that takes out nothing, and leaves out members that fail
            opt.prune, opt.k = "negative", 0
        drawn = [w.generator for w in self.works] if opt.pruning.is_random else None
        loss_fn = self.works[0].loss_fn
        self._ensemble = ce.Ensemble(self._model, loss_fn, opt, torch.stack(thetas), generators=drawn)

    @property
    def step(self) -> int:
        """Of those that go on."""
        return max(w.step for w in self.works)

    @property
    def taken(self) -> int:
        """Of all of them."""
        return sum(w.taken for w in self.works)

    @property
    def rows(self) -> list[int]:
        """Of each."""
        return [w.rows for w in self.works]

    @property
    def failure(self) -> dict[str, Any] | None:
        """None, while one goes on."""
        return None if any(w.failure is None for w in self.works) else self.works[0].failure

    @property
    def done(self) -> bool:
        """Whether all are."""
        return all(w.done for w in self.works)

    def advance(self) -> list[bytes]:
        """A step of every training that goes on; its row."""
        began = time.perf_counter()
        x, y = self._batches()
        rows = [b""] * len(self.works)
        self._fail({i: _DIVERGED for i in self._alive() if int(self._ensemble.diverged[i]) >= 0})
        values = self._values(x, y)
        seconds = (time.perf_counter() - began) / max(1, len(values))
        for i, own in values.items():
            if self.works[i].is_evaluated_next:
                self._ensemble.load_into(self.works[i].model, i)
            rows[i] = self.works[i].stepped(own, seconds)
        return rows

    def _alive(self) -> list[int]:
        return [i for i, w in enumerate(self.works) if w.failure is None]

    def _batches(self) -> tuple[Tensor, Tensor]:
        """[B, N, ...]; those of trainings that have ended are anybody's."""
        data, device = self.works[0].batch_data, self.works[0].settings.device
        own = {i: self.works[i].next_batch() for i in self._alive()}
        anybodys = next(iter(own.values()))
        index = torch.stack([own.get(i, anybodys) for i in range(len(self.works))]).to(device)
        return data.x_train[index], data.y_train[index]

    def _values(self, x: Tensor, y: Tensor) -> dict[int, Any]:
        """Takes the step; what was measured before it, of those that took it."""
        while self._alive():
            try:
                return self._measured_and_stepped(x, y)
            except (NonFiniteError, NotConvergedError) as error:
                if not error.members:
                    raise
                self._fail(error.members)
        return {}

    def _fail(self, members: Any) -> None:
        for i, error in members.items():
            self.works[i].fail(error)
        self._ensemble.leave_out(list(members))

    def _measured_and_stepped(self, x: Tensor, y: Tensor) -> dict[int, Any]:
        specs = self._ensemble.directions(x, y, batched=True)
        found = {i: (self.works[i], spec) for i, spec in enumerate(specs) if spec is not None}
        summaries, failed = {}, dict[int, Exception]()
        for i, (work, spec) in found.items():
            try:
                summaries[i] = work.summary(spec)
            except NotConvergedError as error:
                failed[i] = error
        if failed:
            whole = NotConvergedError("of some members")
            whole.members = failed
            raise whole
        accuracies = self._accuracies(x, y)
        losses, infos = self._ensemble.step(x, y, batched=True).tolist(), self._ensemble.last_step
        return {
            i: work.measured(losses[i], accuracies[i], summaries[i], spec.zero_tol, _share(infos[i]))
            for i, (work, spec) in found.items()
        }

    def _accuracies(self, x: Tensor, y: Tensor) -> list[float]:
        named, thetas = list(self._model.named_parameters()), self._ensemble.thetas
        split = thetas.split([p.numel() for _, p in named], 1)
        params = {n: t.reshape(len(thetas), *p.shape) for (n, p), t in zip(named, split, strict=True)}
        with torch.no_grad():
            outputs = vmap(lambda own, batch: functional_call(self._model, own, (batch,)))(params, x)
        hits: list[float] = (outputs.argmax(2) == y).double().mean(1).tolist()
        return hits

    def state(self) -> dict[str, Any]:
        """As of a training: of each, and the ensemble's, which parameters and buffers are in."""
        return {"works": [w.state() for w in self.works], "ensemble": self._ensemble.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Goes back to a ``state``.

        Raises:
            UnfitError, CheckpointError: it is none of this group.
        """
        own = parts(state, ("works", "ensemble"))["works"]
        require(isinstance(own, list) and len(own) == len(self.works), "works", f"{len(self.works)} states", own)
        for work, one in zip(self.works, own, strict=True):
            work.load(one)
        self._ensemble.load_state_dict(state["ensemble"])
        going = {w.step for w in self.works if w.failure is None} | {self._ensemble.steps}
        require(len(going) == 1, "step", "one of all that go on", sorted(going))

    def record(self) -> dict[str, Any]:
        """Of each of them."""
        return {"works": [w.record() for w in self.works]}


_DIVERGED = NonFiniteError("model: expected finite parameters, got NaN or inf")


def _share(info: Any) -> float:
    return 0.0 if info is None else float(info.share)
