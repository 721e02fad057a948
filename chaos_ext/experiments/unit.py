"""A unit of work that can be killed at any moment and continued to the same bytes.

Its rows go to a file that is only ever appended to. A checkpoint holds everything that the next step depends on, and
the length and hash of the rows written before it; it is written after those rows are on disk. To continue, the rows
are cut back to that length. A checkpoint that is missing, damaged, or does not match its rows means starting anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from ..base.contents import parts, refusing, require
from ..base.files import read_sealed, write_sealed
from ..data import Dataset
from ..errors import CheckpointError
from .interruption import Interrupted, between_steps
from .output import OutputFolder
from .rows import RowFile
from .settings import Settings, Unit

log = logging.getLogger("chaos_ext")

# report(steps, restored): steps that are done now and were not before; restored ones were done by an earlier process.
Report = Callable[[int, bool], None]


class Work(Protocol):
    """What is done step by step.

    Attributes:
        unit: which one of the study it is.
        step: where it stands, for messages.
        taken: steps done.
        rows: lines of CSV that these have given.
        failure: None, or the step at which it could not go on and why.
    """

    unit: Unit

    @property
    def step(self) -> int: ...

    @property
    def failure(self) -> dict[str, Any] | None: ...

    @property
    def taken(self) -> int: ...

    @property
    def rows(self) -> Any: ...

    @property
    def done(self) -> bool:
        """Whether no step is left, or none can be done."""

    def advance(self) -> Any:
        """Does one step and returns its rows: none, one or several lines of CSV (a list of them, of several files)."""

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors and plain values."""

    def load(self, state: dict[str, Any]) -> None:
        """Goes to a ``state``; raises UnfitError if it is none of this work."""

    def record(self) -> dict[str, Any]:
        """What the report says about it: ``steps``, ``seconds``, ``fastest``, ``failure`` and more."""


Make = Callable[[Settings, Unit, Dataset], Work]


class Rows(Protocol):
    """Where rows go, as ``RowFile``; of several files their rows, marks and numbers of lines in lists."""

    def __enter__(self) -> Any: ...
    def __exit__(self, kind: Any, value: Any, trace: Any) -> None: ...
    def append(self, row: Any) -> None: ...
    def flush(self) -> None: ...
    def mark(self) -> Any: ...
    def clear(self) -> None: ...
    def cut_back(self, mark: Any) -> Any: ...


def one_file(out: OutputFolder, unit: Unit) -> Rows:
    """The rows of one unit."""
    return RowFile(out.rows(unit))


def run_unit(
    make: Make,
    settings: Settings,
    unit: Unit,
    data: Dataset,
    out: OutputFolder,
    every: float,
    report: Report,
    rows_of: Callable[[OutputFolder, Any], Rows] = one_file,
) -> dict[str, Any]:
    """Does a unit's work to its end, from its checkpoint if there is a good one.

    Args:
        make: makes the work, at its start.
        settings: of the study.
        unit: which part of it.
        data: the data set, float32 on the CPU.
        out: where rows and checkpoint are.
        every: seconds between checkpoints.
        report: told of steps that are done.
        rows_of: opens where its rows go.

    Returns:
        ``Work.record()`` at the end.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came; a checkpoint of the last step was written.
    """
    with rows_of(out, unit) as rows:
        work = _restored(make, settings, unit, data, out, rows)
        report(work.taken, True)
        saved = time.monotonic()
        with between_steps() as asked_to_end:
            while not work.done:
                before = work.taken
                rows.append(work.advance())
                signum = asked_to_end()
                if work.done or signum is not None or time.monotonic() - saved >= every:
                    _save(settings, work, out, rows)
                    saved = time.monotonic()
                if signum is not None:
                    raise Interrupted(signum, f"{unit.name} at step {work.step}")
                report(work.taken - before, False)
        return work.record()


def _save(settings: Settings, work: Work, out: OutputFolder, rows: Rows) -> None:
    rows.flush()  # first: a checkpoint must never speak of rows that a kill can still lose
    identity = {"settings": settings.to_json(), "unit": work.unit.name}
    write_sealed(out.checkpoint(work.unit), {**identity, "rows": rows.mark(), "state": work.state()})


def _restored(make: Make, settings: Settings, unit: Unit, data: Dataset, out: OutputFolder, rows: Rows) -> Work:
    work = make(settings, unit, data)
    path = out.checkpoint(unit)
    try:
        content = read_sealed(path)
        with refusing(str(path)):
            parts(content, ("settings", "unit", "rows", "state"))
            own = content["settings"] == settings.to_json() and content["unit"] == unit.name
            require(own, "checkpoint", f"one of {unit.name} with these settings", content["unit"])
            work.load(content["state"])
            kept = rows.cut_back(content["rows"])
            require(kept == work.rows, "rows", f"{work.rows}, as many as its steps have given", kept)
        return work
    except FileNotFoundError:
        pass
    except CheckpointError as error:
        log.warning("%s; this unit starts anew", error)
    rows.clear()
    return make(settings, unit, data)
