"""Numbers as they come, in a CSV file: ``step`` and further columns, one row a reading."""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import CheckpointError
from .files import atomic_write

log = logging.getLogger("chaos_ext")


class RowStream:
    """Appends rows to a file, each whole and flushed before ``append`` returns.

    A new run replaces the file at its first row; a resumed one keeps its rows up to the step where it resumes.

    Args:
        path: in an existing folder.
        columns: the names of so many columns beside ``step``.
        of: what the file is of, for messages, given a number of columns or None.
        width: how many columns there are; None: as many as the first row has.
        nan: whether a whole row may have NaN.

    Raises:
        ValueError: no such folder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Callable[[int], Sequence[str]],
        of: Callable[[int | None], str],
        width: int | None = None,
        nan: bool = False,
    ) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise ValueError(f"csv: expected a path in an existing folder, got {self.path}")
        self._columns, self._of, self._fixed, self._nan = columns, of, width, nan
        self._started, self._width = False, width

    def append(self, step: int, values: Sequence[float]) -> None:
        """Adds one row, with all the digits of float64; after an exception the file is as it was.

        Raises:
            CheckpointError: a resumed file has another number of columns. OSError: it cannot be written.
        """
        if self._width not in (None, len(values)):
            expected = f"csv: expected a file of {self._of(len(values))} to go on with"
            raise CheckpointError(f"{expected}, {self.path} has {self._width}; move it")
        row = ",".join((str(step), *(repr(v) for v in values))) + "\n"
        if self._started:
            _append_whole(self.path, row.encode())
        else:
            atomic_write(self.path, self._header(len(values)) + row)
            self._started = True

    def resume(self, step: int) -> None:
        """Drops rows after this step, and rows that were cut short or damaged; further rows are appended.

        Raises:
            CheckpointError: the file is there, but is not one of these.
        """
        try:
            header, *rows = self.path.read_text().splitlines(keepends=True) or [""]
        except FileNotFoundError:
            header, rows = "", []
        except UnicodeDecodeError:
            header, rows = "\0", []
        width = header.count(",") if self._fixed is None else self._fixed
        if header and header != self._header(width):
            expected = f"csv: expected a file of {self._of(self._fixed)} to go on with"
            raise CheckpointError(f"{expected}, got {self.path}; move it away")
        steps = [self._step_of(row, width) for row in rows]
        if lost := sum(s is None for s in steps[:-1]):  # the last one may have been cut short by a kill
            log.warning("csv: %s has %d damaged rows, which are left out", self.path, lost)
        kept = [row for row, s in zip(rows, steps, strict=True) if s is not None and s <= step]
        if kept:
            atomic_write(self.path, "".join([header, *kept]))
        self._started, self._width = bool(kept), width if kept else self._fixed

    def _header(self, width: int) -> str:
        return ",".join(("step", *self._columns(width))) + "\n"

    def _step_of(self, row: str, width: int) -> int | None:
        """The step of a row, or None if it is not whole."""
        if not row.endswith("\n") or row.count(",") != width:
            return None
        step, *values = row.split(",")
        try:
            numbers = list(map(float, values))
            return None if not self._nan and any(map(math.isnan, numbers)) else int(step)
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
