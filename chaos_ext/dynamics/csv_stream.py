"""Exponents as they come, in a CSV file: ``step, exponent_1 .. exponent_k``, one row a measured block."""

from __future__ import annotations

import os

from ..base.row_stream import RowStream


class ExponentStream(RowStream):
    """Appends running exponents to a file; see ``RowStream``.

    Args:
        path: in an existing folder.

    Raises:
        ValueError: no such folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, _columns, lambda k: "exponents" if k is None else f"{k} exponents")


def _columns(k: int) -> list[str]:
    return [f"exponent_{i + 1}" for i in range(k)]
