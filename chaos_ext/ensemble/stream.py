"""Losses and distances as they come, in a CSV file: ``step, loss_0 .. , distance_0 ..``, one row each few steps."""

from __future__ import annotations

import os

from ..base.arguments import require_int
from ..base.row_stream import RowStream


class MemberStream(RowStream):
    """Appends losses and distances of all members to a file; see ``RowStream``. Members that have diverged have NaN.

    Args:
        path: in an existing folder.
        members: how many.
        every: a row at each multiple of this many steps.

    Raises:
        ValueError: no such folder, or ``every`` below 1.
    """

    def __init__(self, path: str | os.PathLike[str], members: int, every: int) -> None:
        require_int("every", every, 1)
        super().__init__(path, _columns, lambda _: f"{members} members", width=2 * members, nan=True)
        self.every = every


def _columns(width: int) -> list[str]:
    return [f"{what}_{i}" for what in ("loss", "distance") for i in range(width // 2)]
