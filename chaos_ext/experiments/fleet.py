"""Units spread over the ranks that torchrun started, on one node or several that share the output folder.

Rank 0 does what one process does: it alone claims the folder, writes tables and draws. Every rank, rank 0 too, takes
the next unit from a counter in the group's store until none is left; what a unit computes does not depend on who does
it. All ranks leave a sign of life in the store: of one that is not seen for a minute all others end with its number.
Where torchrun starts the ranks again, units continue from their checkpoints.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import logging
import os
import pickle
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..data import Dataset, load
from .output import MANIFEST, OutputFolder, UsageError, WorkerError
from .settings import Settings, Unit
from .unit import Report

log = logging.getLogger("chaos_ext")

_BEAT_SECONDS = 2.0
_LOST_SECONDS = 60.0  # without a sign of life
_JOIN_SECONDS = 600.0  # for all to start Python and import torch
_LOOK_SECONDS = 0.3  # between two looks into the store


class Job(NamedTuple):
    """A study's units, as rank 0 hands them out.

    Attributes:
        how: ``do`` and ``make`` of ``pool.run_units``.
        settings, root, every: as there.
        units: all of them.
        out: path of the folder.
    """

    how: tuple[Callable[..., dict[str, Any]], Any]
    settings: Settings
    units: Sequence[Unit]
    root: str | None
    out: Path
    every: float


class Fleet:
    """The ranks of a torchrun, by way of their store.

    Attributes:
        rank, size: of this process, and of all.
        restarted: whether torchrun had to start the ranks again.
    """

    def __init__(self, store: Any, rank: int, size: int, restarts: int) -> None:
        self.rank, self.size, self.restarted = rank, size, restarts > 0
        self._store, self._jobs, self._looked = store, 0, 0.0
        self._seen: dict[int, tuple[int, float]] = {}  # of each rank its last sign of life, and when it was new
        self._over = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True)
        self._pulse.start()

    def _beat(self) -> None:
        with contextlib.suppress(Exception):  # the store is gone, which the main thread finds out as well
            while not self._over.wait(_BEAT_SECONDS):
                self._store.add(f"alive/{self.rank}", 1)

    def add(self, key: str, number: int) -> int:
        """Adds to a sum of all ranks, and tells it."""
        with self._reached():
            return int(self._store.add(key, number))

    def _put(self, key: str, value: object) -> None:
        with self._reached():
            self._store.set(key, base64.b64encode(pickle.dumps(value)).decode())

    def _take(self, key: str) -> Any:
        """What lies there, or None."""
        with self._reached():
            if not self._store.check([key]):
                return None
            return pickle.loads(base64.b64decode(self._store.get(key)))

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """torch.distributed's errors mean that the store has ended with its process."""
        try:
            yield
        except RuntimeError as e:
            raise WorkerError(f"rank {self.rank} lost the store of the ranks ({e}); continue with --resume") from e

    def look(self) -> None:
        """Sees now and then whether all others are there and well.

        Raises:
            WorkerError: one is not.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if (failed := self._take("failed")) is not None:
            raise WorkerError(failed)
        for rank in range(self.size):
            self._require_alive(rank, now)

    def _require_alive(self, rank: int, now: float) -> None:
        beats = self.add(f"alive/{rank}", 0)
        known, since = self._seen.get(rank, (-1, now))
        self._seen[rank] = (beats, now if beats != known else since)
        if rank != self.rank and now - self._seen[rank][1] > _LOST_SECONDS:
            raise WorkerError(
                f"rank {rank} gave no sign of life for {_LOST_SECONDS:.0f} s (killed, or its node is lost?); continue "
                "with --resume"
            )

    def run(self, job: Job, data: Dataset, report: Report) -> dict[Unit, dict[str, Any]]:
        """Rank 0 hands out units, does some of them, and waits for the others; ``report`` is told of all steps.

        Raises:
            WorkerError: a rank raised, or was lost.
        """
        number, steps = self._jobs, _Steps(self, self._jobs, report)
        self._jobs += 1
        self._put(f"job/{number}", job)
        records = self._own(job, number, data, steps.report)
        while len(records) < len(job.units):
            for i, unit in enumerate(job.units):
                if unit not in records and (record := self._take(f"{number}/record/{i}")) is not None:
                    records[unit] = record
            steps.gather()
            time.sleep(_LOOK_SECONDS / 3)
        return {unit: records[unit] for unit in job.units}

    def _own(self, job: Job, number: int, data: Dataset, report: Report) -> dict[Unit, dict[str, Any]]:
        """Units done here until none is left."""
        records, (do, make), out = {}, job.how, OutputFolder(job.out)
        before = torch.get_num_threads()
        torch.set_num_threads(job.settings.threads)
        try:
            while (i := self.add(f"{number}/next", 1) - 1) < len(job.units):
                unit = job.units[i]
                log.info("rank %d: %s", self.rank, unit.name)
                records[unit] = do(make, job.settings, unit, data, out, job.every, report)
                self._put(f"{number}/record/{i}", records[unit])
        finally:
            torch.set_num_threads(before)
        return records

    def serve(self) -> None:
        """What another rank than 0 does: units, until rank 0 has none any more.

        Raises:
            WorkerError: rank 0 or another one failed.
            Interrupted: Ctrl-C or SIGTERM came; a checkpoint of the last step was written.
        """
        while True:
            job = self._take(f"job/{self._jobs}")
            if job is not None:
                self._serve(job, self._jobs)
                self._jobs += 1
            elif self._take("end"):
                return
            else:
                self.look()
                time.sleep(_LOOK_SECONDS)

    def _serve(self, job: Job, number: int) -> None:
        if not (job.out / MANIFEST).exists():
            raise WorkerError(f"rank {self.rank} does not see --out {job.out}: all nodes have to share its file system")
        data = load(job.settings.data, job.root)
        if data.fingerprint() != job.settings.data_fingerprint:
            raise WorkerError(f"rank {self.rank} has other files of the data set than rank 0")
        steps = _Steps(self, number, None)
        self._own(job, number, data, steps.report)
        steps.gather()

    def close(self, error: BaseException | None) -> None:
        """Tells the others that this rank has ended, well or not."""
        with contextlib.suppress(RuntimeError):  # no store any more
            if error is not None and not self._store.check(["failed"]):
                self._put("failed", f"rank {self.rank} {_told(error)}; continue with --resume")
            elif self.rank == 0:
                self._put("end", True)
        self._over.set()
        self._pulse.join()


def _told(error: BaseException) -> str:
    """In a sentence that begins with the rank."""
    if isinstance(error, Exception) and not isinstance(error, WorkerError | UsageError):
        return "failed:\n" + "".join(traceback.format_exception(error)).rstrip()
    return f"failed: {error}" if isinstance(error, Exception) else "was ended"


class _Steps:
    """Passes reports on a few times a second, to the store, and from there to rank 0's progress bar."""

    def __init__(self, fleet: Fleet, number: int, shown: Report | None) -> None:
        self._fleet, self._shown, self._own = fleet, shown, {True: 0, False: 0}
        self._keys = {restored: f"{number}/steps/{restored}" for restored in (True, False)}
        self._told, self._at = {True: 0, False: 0}, time.monotonic()

    def report(self, steps: int, restored: bool) -> None:
        self._own[restored] += steps
        if time.monotonic() - self._at >= _LOOK_SECONDS:
            self.gather()

    def gather(self) -> None:
        """Adds what was done here, and tells of what was done by all."""
        self._at = time.monotonic()
        for restored, key in self._keys.items():
            total = self._fleet.add(key, self._own[restored])
            self._own[restored] = 0
            if self._shown is not None and total > self._told[restored]:
                self._shown(total - self._told[restored], restored)
                self._told[restored] = total
        self._fleet.look()


def _own_store(store: Any, rank: int, size: int) -> Any:
    """Without what earlier ranks have left there: the store outlives them, also where nodes come and go.

    Each rank says a word that nobody has said before. Rank 0 answers every word that is new to it with one of its own,
    under which all go on, until all have heard it; the answer to a word of a rank that is gone is read by nobody.

    Raises:
        WorkerError: not all ranks came.
    """
    own, answered = secrets.token_hex(8), set[str]()
    store.set(f"chaos_ext/word/{rank}", own)
    until = time.monotonic() + _JOIN_SECONDS
    while time.monotonic() < until:
        if rank == 0:
            present = [r for r in range(size) if store.check([f"chaos_ext/word/{r}"])]
            for word in {store.get(f"chaos_ext/word/{r}").decode() for r in present} - answered:
                store.set(f"chaos_ext/answer/{word}", own)
                answered.add(word)
        if store.check([f"chaos_ext/answer/{own}"]):
            common = store.get(f"chaos_ext/answer/{own}").decode()
            if rank:
                store.set(f"chaos_ext/heard/{common}/{rank}", "")
            if rank or store.check([f"chaos_ext/heard/{own}/{r}" for r in range(1, size)]):
                return torch.distributed.PrefixStore(f"chaos_ext/{common}", store)  # type: ignore[attr-defined]
        time.sleep(0.05)
    raise WorkerError(f"rank {rank} waited {_JOIN_SECONDS:.0f} s for all {size} ranks to come; continue with --resume")


_current: Fleet | None = None


def current() -> Fleet | None:
    """The fleet of this process, while it is in one."""
    return _current


def is_launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def joined() -> Iterator[Fleet]:
    """Inside, this process is in the fleet of its torchrun; how it ends, the others are told."""
    global _current
    store, rank, size = next(importlib.import_module("torch.distributed.rendezvous").rendezvous("env://"))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    _current = fleet = Fleet(_own_store(store, rank, size), rank, size, restarts)
    error: BaseException | None = None
    try:
        yield fleet
    except BaseException as e:
        error = e
        raise
    finally:
        _current = None
        fleet.close(error)
