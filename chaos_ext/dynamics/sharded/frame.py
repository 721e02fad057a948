"""A frame whose columns are spread over the ranks of a group."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...base import memory
from ...base.tensors import room
from ...distributed.ranks import Ranks
from ..frames import Factored, extremes
from . import panels, rows
from .columns import Columns

_SMALL = 0.5  # the largest k ranks / S at which matrices [k, k] are small


class Spread:
    """What ``Frame`` asks, of columns on all ranks: answers are the same bits on each of them.

    Args:
        ranks: of the group.
        columns: who has which.
        size: S.

    Attributes:
        columns: as given.
        by_rows: whether matrices [k, k] are small beside what each rank has of the frame, and may be on all of them.
    """

    def __init__(self, ranks: Ranks, columns: Columns, size: int) -> None:
        self._ranks, self.columns, self._size = ranks, columns, size
        self.k = columns.k
        self.by_rows = self.k * ranks.size <= _SMALL * size

    def extremes(self, Y: Tensor, squares: Tensor | None) -> tuple[float, float]:
        own = extremes(Y, squares) if Y.shape[1] else (math.inf, 0.0)
        unknown = not (math.isfinite(own[1]) and own[0] == own[0])
        found = torch.tensor([*own, unknown], dtype=torch.float64, device=Y.device)
        low, high, bad = zip(*(t.tolist() for t in self._ranks.gather(found, "the lengths of deviations")), strict=True)
        return (math.nan, math.nan) if any(bad) else (min(low), max(high))

    def factored(self, Y: Tensor) -> Factored:
        if self.by_rows and (pair := rows.factored(self._ranks, self.columns, Y)) is not None:
            return Factored(pair[0], pair[1].diagonal().clone(), None)
        Q, R = panels.factored(self._ranks, self.columns, Y)
        own = R[self.columns.of(self._ranks.rank), torch.arange(R.shape[1], device="cpu")]
        Q *= torch.where(own < 0, -1, 1).to(Q.dtype)
        return Factored(Q, self._all(own.abs().double()), None)

    def _all(self, own: Tensor) -> Tensor:
        """The numbers of all columns [k], of each rank's [c]."""
        longest = max(self.columns.counts)
        padded = torch.cat([own, own.new_zeros(longest - len(own))])
        out = own.new_empty(self.k)
        for rank, part in enumerate(self._ranks.gather(padded, "the diagonal of R")):
            out[self.columns.of(rank).to(out.device)] = part[: self.columns.counts[rank]]
        return out

    def placed(self, Y: Tensor) -> Tensor:
        return room(Y.shape[0], Y.shape[1], Y.dtype, Y.device).copy_(Y)

    def whole(self, Q: Tensor) -> Tensor:
        """All columns, on every rank: the only thing here that takes S x k numbers, and it is asked for.

        Raises:
            MemoryBudgetError: they do not fit on this rank; RankFailedError: on another.
        """
        with self._ranks.together("directions"):
            need = self._size * self.k * Q.element_size()
            memory.require(need, Q.device, f"all {self.k} directions of S = {self._size}", "ask for fewer exponents")
            out = Q.new_empty(self._size, self.k)
            for p in self.columns.panels:
                own = Q[:, p.here : p.here + p.stop - p.start] if p.owner == self._ranks.rank else Q
                out[:, p.start : p.stop] = self._ranks.broadcast(own, p.owner, "directions")
        return out
