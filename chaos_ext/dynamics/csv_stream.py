"""Results as they come, in a CSV file: ``step, exponent_1 .. exponent_k``, one row a measured block."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from ..base.files import atomic_write


class ExponentStream:
    """Appends running exponents to a file, each row whole and flushed before ``append`` returns.

    A new run replaces the file at its first row; a resumed one keeps its rows up to the step where it resumes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise ValueError(f"csv: expected a path in an existing folder, got {self.path}")
        self._started = False

    def append(self, step: int, exponents: Tensor) -> None:
        """Adds one row, with all the digits of float64."""
        values = exponents.tolist()
        if not self._started:
            self._started = True
            names = (f"exponent_{i + 1}" for i in range(len(values)))
            self.path.write_text(",".join(("step", *names)) + "\n")
        with self.path.open("a") as f:
            f.write(",".join((str(step), *(repr(v) for v in values))) + "\n")

    def resume(self, step: int) -> None:
        """Drops rows after this step, and a row that was cut short; further rows are appended."""
        if not self.path.exists():
            return
        header, *rows = self.path.read_text().splitlines(keepends=True) or [""]
        width = header.count(",")
        kept = [r for r in rows if r.endswith("\n") and r.count(",") == width and int(r.split(",")[0]) <= step]
        if kept:
            atomic_write(self.path, "".join([header, *kept]))
        self._started = bool(kept)
