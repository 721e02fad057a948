"""The CSV file of a run: its rows, and what happens to them where the disk is full or a run is resumed."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .csv_stream import ExponentStream


class Rows:
    """A stream of rows whose last one may be missing or cut; without a path, nothing.

    Args:
        path: of the CSV file, or None.
        columns: their names but for the step's; None: those of exponents.
        here: whether it is this process that writes the file.

    Attributes:
        wanted: whether anybody reads them.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, columns: Sequence[str] | None = None, here: bool = True
    ) -> None:
        self.wanted = path is not None
        self._stream = None if path is None or not here else ExponentStream(path, columns)
        self._cut = False  # whether the stream may end with part of a row

    def write(self, step: int, values: Sequence[float]) -> None:
        """One row.

        Raises:
            OSError: it is missing; the next ``write`` of this step mends the file.
        """
        if self._stream is None:
            return
        try:
            if self._cut:
                self._stream.resume(step - 1)
            self._cut = True
            self._stream.append(step, values)
            self._cut = False
        except OSError as e:
            why = f"csv: the row of step {step} is missing ({e.strerror}); the step itself is counted"
            raise OSError(e.errno, why, e.filename or os.fspath(self._stream.path)) from e

    def resume(self, step: int) -> None:
        """Drops rows after this step."""
        if self._stream is not None:
            self._stream.resume(step)
            self._cut = False
