"""Units spread over worker processes, or over the ranks of torchrun (``fleet``).

What a unit computes does not depend on how many there are. Every worker has a pipe of its own to the parent and nothing
is shared between workers, so none can block another by dying. A worker whose parent is gone finds its pipe broken at
its next report, within a fraction of a second, and ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ..data import Dataset, load
from . import fleet, interruption
from .interruption import Interrupted
from .output import OutputFolder, UsageError, WorkerError
from .settings import Settings, Unit
from .unit import Report, run_unit

_REPORT_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0  # with a worker that is asked to end in the middle of a step

# do(what, settings, unit, data, out, every, report): does a unit to its end and returns its record, as ``run_unit``.
Do = Callable[[Any, Any, Unit, Dataset, OutputFolder, float, Report], dict[str, Any]]


def run_units(
    make: Any,
    settings: Settings,
    data: Dataset,
    root: str | None,
    out: OutputFolder,
    jobs: int,
    every: float,
    report: Report,
    do: Do = run_unit,
    units: Sequence[Unit] | None = None,
) -> dict[Unit, dict[str, Any]]:
    """Runs every unit of an experiment and returns their records.

    Args:
        make: makes the work of a unit, or what else ``do`` needs; of a module, so that worker processes find it.
        settings: of the study.
        data: the data set, for a run in this process.
        root: where worker processes find the same data set.
        out: where units keep rows and checkpoints.
        jobs: number of processes; with 1 all units run in this one.
        every: seconds between checkpoints.
        report: told of steps that are done.
        do: what is done with a unit.
        units: to do; default: those of the settings.

    Returns:
        unit -> ``Work.record()`` at its end, in the order of ``units``.

    Raises:
        UsageError: ``jobs`` on one of several ranks of torchrun, of which each does one unit at a time.
        WorkerError: a worker process died or raised; finished units and checkpoints are kept.
        Interrupted: Ctrl-C or SIGTERM came; checkpoints of the last steps were written.
    """
    units = settings.units if units is None else list(units)
    if (ranks := fleet.current()) is not None:
        if jobs != 1:
            raise UsageError("--jobs: every rank of torchrun does one unit at a time; start more ranks instead")
        return ranks.run(fleet.Job((do, make), settings, units, root, out.path.absolute(), every), data, report)
    if jobs == 1 or len(units) == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(settings.threads)
        try:
            return {unit: do(make, settings, unit, data, out, every, report) for unit in units}
        finally:
            torch.set_num_threads(threads)
    return _run_parallel((do, make), settings, units, root, out, min(jobs, len(units)), every, report)


def _run_parallel(
    how: tuple[Do, Any],
    settings: Settings,
    units: Sequence[Unit],
    root: str | None,
    out: OutputFolder,
    jobs: int,
    every: float,
    report: Report,
) -> dict[Unit, dict[str, Any]]:
    context = multiprocessing.get_context("spawn")  # forking a process with torch's thread pools can deadlock
    waiting, records = deque(units), {}
    busy: dict[Connection, Unit] = {}
    processes = []
    try:
        for _ in range(jobs):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, how, settings, root, out, every), daemon=True)
            process.start()
            theirs.close()  # the worker's copy is now the only one: its death closes the pipe
            processes.append(process)
            busy[ours] = waiting.popleft()
            ours.send(busy[ours])
        while busy:
            ready = wait(list(busy))
            for pipe in [p for p in busy if p in ready]:
                if record := _receive(pipe, busy[pipe], report):
                    records[busy.pop(pipe)] = record
                    if waiting:
                        busy[pipe] = waiting.popleft()
                        pipe.send(busy[pipe])
    except Interrupted as stopped:
        _end(processes)
        stopped.saved = ", ".join(saved for pipe in busy for saved in _saved(pipe))
        raise
    finally:
        _end(processes)
    return {unit: records[unit] for unit in units}


def _end(processes: Sequence[BaseProcess]) -> None:
    """Has workers save a checkpoint and end."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _saved(pipe: Connection) -> Iterator[str]:
    """What a worker that has ended told last."""
    with contextlib.suppress(EOFError, ConnectionError):
        while pipe.poll():
            kind, value = pipe.recv()
            if kind == "saved" and value:
                yield value


def _receive(pipe: Connection, unit: Unit, report: Report) -> dict[str, Any] | None:
    """The record of a finished unit, or None after a progress message."""
    try:
        kind, value = pipe.recv()
    except (EOFError, ConnectionError) as error:
        raise WorkerError(f"the process that ran {unit.name} died (out of memory?); continue with --resume") from error
    if kind == "error":
        raise WorkerError(f"{unit.name} failed:\n{value}")
    if kind == "steps":
        report(*value)
        return None
    finished: dict[str, Any] = value
    return finished


def _work(
    pipe: Connection, how: tuple[Do, Any], settings: Settings, root: str | None, out: OutputFolder, every: float
) -> None:
    """Runs the units that come through the pipe until it breaks, or until the parent ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    try:
        with interruption.handled((signal.SIGTERM,)):
            _run_waiting(pipe, how, settings, root, out, every)
    except Interrupted as interrupted:
        with contextlib.suppress(ConnectionError):
            pipe.send(("saved", interrupted.saved))


def _run_waiting(
    pipe: Connection, how: tuple[Do, Any], settings: Settings, root: str | None, out: OutputFolder, every: float
) -> None:
    unfinished, (do, make) = _Throttle(pipe), how
    try:
        torch.set_num_threads(settings.threads)
        data = load(settings.data, root)
        if data.fingerprint() != settings.data_fingerprint:
            raise RuntimeError("the data set changed while the study was starting")
        while True:
            record = do(make, settings, pipe.recv(), data, out, every, unfinished.report)
            unfinished.send()
            pipe.send(("done", record))
    except (EOFError, ConnectionError):
        return  # the parent is gone
    except Exception:
        with contextlib.suppress(ConnectionError):
            pipe.send(("error", traceback.format_exc()))


class _Throttle:
    """Passes reports on a few times a second instead of once a step."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._steps, self._sent = pipe, 0, time.monotonic()

    def report(self, steps: int, restored: bool) -> None:
        if restored:
            self._pipe.send(("steps", (steps, True)))
            return
        self._steps += steps
        if time.monotonic() - self._sent >= _REPORT_SECONDS:
            self.send()

    def send(self) -> None:
        self._pipe.send(("steps", (self._steps, False)))
        self._steps, self._sent = 0, time.monotonic()
