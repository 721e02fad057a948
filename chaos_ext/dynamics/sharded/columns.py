"""Which rank has which columns.

In turns of panels, not of one stretch each: a factorisation goes through the columns from the first to the last, and
whoever had the first ones would have nothing left to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Columns of a panel: enough for matrix products at full speed, few enough that a panel is factored quickly by one rank
# while the others wait.
WIDTH = 64


@dataclass(frozen=True)
class Panel:
    """Neighbouring columns of one rank.

    Attributes:
        start, stop: which.
        owner: whose.
        here: the first one's place among the columns of its owner.
    """

    start: int
    stop: int
    owner: int
    here: int


@dataclass(frozen=True)
class Columns:
    """k columns of which no rank has two more than another.

    Attributes:
        k: how many; they may be fewer than ranks.
        ranks: how many.
        width: of a panel, at most.
    """

    k: int
    ranks: int
    width: int = WIDTH

    @cached_property
    def panels(self) -> tuple[Panel, ...]:
        """In the order of columns: rounds of full panels, and one of what is left in equal parts."""
        rounds, left = divmod(self.k, self.width * self.ranks)
        widths = [self.width] * (rounds * self.ranks)
        widths += [left // self.ranks + (r < left % self.ranks) for r in range(self.ranks)]
        found, start, had = [], 0, [0] * self.ranks
        for i, width in enumerate(widths):
            owner = i % self.ranks
            if width:
                found.append(Panel(start, start + width, owner, had[owner]))
            start, had[owner] = start + width, had[owner] + width
        return tuple(found)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Columns of each rank."""
        return tuple(len(self.of(r)) for r in range(self.ranks))

    def of(self, rank: int) -> Tensor:
        """A rank's columns, ascending int64 [c]."""
        own = [torch.arange(p.start, p.stop, device="cpu") for p in self.panels if p.owner == rank]
        return torch.cat([torch.empty(0, dtype=torch.int64, device="cpu"), *own])

    def before(self, column: int, rank: int) -> int:
        """How many columns of a rank come before this one."""
        return sum(min(p.stop, column) - p.start for p in self.panels if p.owner == rank and p.start < column)
