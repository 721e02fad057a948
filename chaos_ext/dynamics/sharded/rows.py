"""Y = Q R of columns spread over ranks, where k is small against S / ranks: each rank gets all columns of some rows.

Then it is CholeskyQR2 as in one process, with Gram matrices summed over the ranks, while Y is as well conditioned as
that needs, and else TSQR (Demmel, Grigori, Hoemmen, Langou 2012): Householder's factors of each rank's rows, then of
the triangles one below the other. What is small is factored by rank 0 for all: the same bits everywhere. A rank sends
and gets twice S k / ranks numbers, beside a few matrices [k, k].
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...base.tensors import room
from ...distributed.ranks import Ranks
from ...distributed.shares import stretches
from ..orthonormal import Here, cholesky, cholesky_twice, householder
from .columns import Columns


def factored(ranks: Ranks, columns: Columns, Y: Tensor) -> tuple[Tensor, Tensor] | None:
    """Own columns of Q [S, c] and all of R, float64 [k, k], from those of Y [S, c], which stays. diag R >= 0.

    For S >= k ranks. None where Y is too ill conditioned for CholeskyQR2, and the triangles of all ranks together are
    larger than what one has of Y.
    """
    rows = _turned(ranks, columns, Y, stretches(len(Y), ranks.size))
    pair = cholesky_twice(rows, _Spread(ranks))
    if pair is None and columns.k * ranks.size**2 > len(Y):
        return None
    Q, R = pair = pair or _tall_and_skinny(ranks, rows)
    del rows, pair
    pieces = ranks.exchange([Q[:, columns.of(r).to(Q.device)] for r in range(ranks.size)], "the columns of a frame")
    return torch.cat(pieces, out=room(Y.shape[0], Y.shape[1], Y.dtype, Y.device)), R


def _turned(ranks: Ranks, columns: Columns, Y: Tensor, rows: list[slice]) -> Tensor:
    """All columns of the own rows [n, k]."""
    pieces = ranks.exchange([Y[part] for part in rows], "the rows of a frame")
    out = Y.new_empty(len(pieces[0]), columns.k)
    for rank, piece in enumerate(pieces):
        out[:, columns.of(rank).to(Y.device)] = piece
    return out


class _Spread(Here):
    """Rows of which every rank has some."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def norms(self, Y: Tensor) -> Tensor:
        """Of the columns [k]; zeros where one of their squares is out of range."""
        squares = self._ranks.sum(Y.square().sum(0), "the lengths of deviations")
        tiny = torch.finfo(Y.dtype).tiny / torch.finfo(Y.dtype).eps
        fine = bool(torch.isfinite(squares).all() and (squares > tiny).all())
        return squares.sqrt() if fine else torch.zeros_like(squares)

    def factor(self, Y: Tensor, most: float) -> Tensor | None:
        gram = self._ranks.sum(Y.T @ Y, "a Gram matrix")
        R = cholesky(gram, most) if self._ranks.rank == 0 else None
        # Zeros: there is none.
        R = self._ranks.broadcast(torch.zeros_like(gram) if R is None else R.contiguous(), 0, "a triangular factor")
        return R if bool(R.diagonal().all()) else None


def _tall_and_skinny(ranks: Ranks, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Q of the own rows and R."""
    k = rows.shape[1]
    Q, R = torch.linalg.qr(rows)
    above = ranks.gather(R.contiguous(), "the triangles of all rows")
    both = None
    if ranks.rank == 0:
        turn, R = householder(torch.cat(above))
        both = torch.cat([turn.double(), R])
    both = ranks.broadcast(rows if both is None else both, 0, "what triangles have in common")
    turn, R = both[:-k], both[-k:]
    return Q @ turn[ranks.rank * k : (ranks.rank + 1) * k].to(Q.dtype), R
