"""One computation by one process, or by all of a group: the same code for both, which asks for nothing in the first."""

from __future__ import annotations

import contextlib
import itertools
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from ..base.tensors import checksum
from .ranks import Ranks


def stretches(n: int, ranks: int) -> list[slice]:
    """Of n things in a row those of each rank, as even as they come."""
    ends = [n * r // ranks for r in range(ranks + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


class Alone:
    """One process, which has all of it."""

    ranks: Ranks | None = None

    def together(self, what: str, meets: bool = False) -> AbstractContextManager[None]:
        """As of ``Ranks``."""
        return contextlib.nullcontext()

    def sum(self, t: Tensor, what: str, of: Tensor | None = None, out: bool = False) -> Tensor:
        """The sum over all processes.

        Args:
            t: the share of this process.
            what: for messages.
            of: an argument that has to be the same in all.
            out: whether the sum takes the memory of t.
        """
        return t

    def agree(self, what: str, value: object) -> None:
        """As of ``Ranks``."""

    def gather_objects(self, value: Any, what: str) -> list[Any]:
        """As of ``Ranks``."""
        return [value]


class Shared(Alone):
    """A process of several."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks: Ranks = ranks

    def together(self, what: str, meets: bool = False) -> AbstractContextManager[None]:
        return self.ranks.together(what, meets=meets)

    def sum(self, t: Tensor, what: str, of: Tensor | None = None, out: bool = False) -> Tensor:
        same = "" if of is None else f"of a vector with checksum {int(checksum(of)) & 0xFFFFFFFF:08x}"
        return self.ranks.sum(t, what, same=same, out=t if out else None)

    def agree(self, what: str, value: object) -> None:
        self.ranks.agree(what, value)

    def gather_objects(self, value: Any, what: str) -> list[Any]:
        return self.ranks.gather_objects(value, what)


_ALONE = Alone()


def shares(group: Any) -> Alone:
    """Of ``group=``: None, a process group or ``Ranks``. Raises as ``Ranks``."""
    if group is None:
        return _ALONE
    return Shared((group if isinstance(group, Ranks) else Ranks(group)).named("operator"))
