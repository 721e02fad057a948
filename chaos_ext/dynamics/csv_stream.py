"""Readings as they come, in a CSV file: ``step, exponent_1 .. exponent_k`` or named columns, one row a block."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..base.row_stream import RowStream


class ExponentStream(RowStream):
    """Appends running exponents to a file; see ``RowStream``.

    Args:
        path: in an existing folder.
        columns: names beside ``step``; None: ``exponent_1``, ``exponent_2``, as many as the first row has.

    Raises:
        ValueError: no such folder.
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> None:
        if columns is None:
            super().__init__(path, _numbered, lambda k: "exponents" if k is None else f"{k} exponents")
        else:
            super().__init__(path, lambda _: columns, lambda _: ", ".join(columns), width=len(columns))


def _numbered(k: int) -> list[str]:
    return [f"exponent_{i + 1}" for i in range(k)]
