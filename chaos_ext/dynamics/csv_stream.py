"""Results as they come, in a CSV file: ``step, exponent_1 .. exponent_k``, one row a measured block."""

from __future__ import annotations

import errno
import logging
import math
import os
from pathlib import Path

from torch import Tensor

from ..base.files import atomic_write
from ..errors import CheckpointError

log = logging.getLogger("chaos_ext")


class ExponentStream:
    """Appends running exponents to a file, each row whole and flushed before ``append`` returns.

    A new run replaces the file at its first row; a resumed one keeps its rows up to the step where it resumes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise ValueError(f"csv: expected a path in an existing folder, got {self.path}")
        self._started = False
        self._width: int | None = None

    def append(self, step: int, exponents: Tensor) -> None:
        """Adds one row, with all the digits of float64; after an exception the file is as it was.

        Raises:
            CheckpointError: a resumed file has another number of exponents.
        """
        values = exponents.tolist()
        if self._width not in (None, len(values)):
            raise CheckpointError(
                f"csv: expected a file of {len(values)} exponents to go on with, {self.path} has {self._width}; move it"
            )
        row = ",".join((str(step), *(repr(v) for v in values))) + "\n"
        if self._started:
            _append_whole(self.path, row.encode())
        else:
            atomic_write(self.path, _header(len(values)) + row)
            self._started = True

    def resume(self, step: int) -> None:
        """Drops rows after this step, and rows that were cut short or damaged; further rows are appended.

        Raises:
            CheckpointError: the file is there, but is not one of exponents.
        """
        try:
            header, *rows = self.path.read_text().splitlines(keepends=True) or [""]
        except FileNotFoundError:
            return
        except UnicodeDecodeError:
            header, rows = "\0", []
        width = header.count(",")
        if header and header != _header(width):
            raise CheckpointError(f"csv: expected a file of exponents to go on with, got {self.path}; move it away")
        steps = [_step_of(row, width) for row in rows]
        if lost := sum(s is None for s in steps[:-1]):  # the last one may have been cut short by a kill
            log.warning("csv: %s has %d damaged rows, which are left out", self.path, lost)
        kept = [row for row, s in zip(rows, steps, strict=True) if s is not None and s <= step]
        if kept:
            atomic_write(self.path, "".join([header, *kept]))
        self._started, self._width = bool(kept), width if kept else None


def _header(width: int) -> str:
    return ",".join(("step", *(f"exponent_{i + 1}" for i in range(width)))) + "\n"


def _step_of(row: str, width: int) -> int | None:
    """The step of a row, or None if it is not whole."""
    if not row.endswith("\n") or row.count(",") != width:
        return None
    step, *values = row.split(",")
    try:
        if any(math.isnan(float(v)) for v in values):
            return None
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
