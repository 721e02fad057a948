"""Losses and distances as they come, in a CSV file: ``step, loss_0 .. , distance_0 ..``, one row each few steps."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ..base.files import atomic_write
from ..errors import CheckpointError

log = logging.getLogger("chaos_ext")


class MemberStream:
    """Appends rows to a file, each whole and flushed before ``append`` returns.

    A new run replaces the file at its first row; a resumed one keeps its rows up to the step where it resumes.

    Args:
        path: in an existing folder.
        members: how many.
        every: a row at each multiple of this many steps.

    Raises:
        ValueError: no such folder, or ``every`` below 1.
    """

    def __init__(self, path: str | os.PathLike[str], members: int, every: int) -> None:
        self.path, self.every = Path(path), every
        if not self.path.parent.is_dir():
            raise ValueError(f"csv: expected a path in an existing folder, got {self.path}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every: expected an int >= 1, got {every!r}")
        names = ["step", *(f"{what}_{i}" for what in ("loss", "distance") for i in range(members))]
        self._header, self._width = ",".join(names) + "\n", len(names)
        self._started = False

    def append(self, step: int, values: Sequence[float]) -> None:
        """Adds one row, with all the digits; after an exception the file is as it was.

        Raises:
            OSError: it cannot be written.
        """
        row = ",".join((str(step), *(repr(v) for v in values))) + "\n"
        if self._started:
            _append_whole(self.path, row.encode())
        else:
            atomic_write(self.path, self._header + row)
            self._started = True

    def resume(self, step: int) -> None:
        """Drops rows after this step, and rows that were cut short or damaged; further rows are appended.

        Raises:
            CheckpointError: the file is there, but is not one of as many members.
        """
        try:
            header, *rows = self.path.read_text().splitlines(keepends=True) or [""]
        except FileNotFoundError:
            self._started = False
            return
        except UnicodeDecodeError:
            header, rows = "\0", []
        if header and header != self._header:
            raise CheckpointError(
                f"csv: expected a file of {self._width // 2} members to go on with, got {self.path}; move it away"
            )
        steps = [self._step_of(row) for row in rows]
        if lost := sum(s is None for s in steps[:-1]):  # the last one may have been cut short by a kill
            log.warning("csv: %s has %d damaged rows, which are left out", self.path, lost)
        kept = [row for row, s in zip(rows, steps, strict=True) if s is not None and s <= step]
        if kept:
            atomic_write(self.path, "".join([self._header, *kept]))
        self._started = bool(kept)

    def _step_of(self, row: str) -> int | None:
        """The step of a row, or None if it is not whole; members that have diverged have nan."""
        if not row.endswith("\n") or row.count(",") != self._width - 1:
            return None
        try:
            step, *values = row.split(",")
            for v in values:
                float(v)
            return int(step)
        except ValueError:
            return None


def _append_whole(path: Path, row: bytes) -> None:
    with path.open("ab", buffering=0) as f:
        length = f.tell()
        try:
            if f.write(row) != len(row):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except BaseException:
            f.truncate(length)
            raise
