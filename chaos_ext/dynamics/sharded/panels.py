"""Y = Q R of columns spread over ranks, by Householder reflections: for k near S, where R is as large as Y.

Panel by panel: its owner factors it with LAPACK and sends the reflections, I - V T V^T with V [S - start, w] below the
diagonal; every rank applies them to those of its columns that come later. Then, from the last panel to the first, Q is
what they make of the first k columns of the identity. Each rank has its columns of Y, of R in their place, and of Q.
4 k^2 (S - k / 3) / ranks flops, nearly all in matrix products, and twice S k - k^2 / 2 numbers to every rank. As
orthonormal as Householder's Q in one process whatever Y is, columns that depend on one another included.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...base.tensors import room
from ...distributed.ranks import Ranks
from .columns import Columns, Panel


class _Reflections(NamedTuple):
    """Q = I - V T V^T in the rows from a panel's first column on.

    Attributes:
        V: unit lower trapezoidal [n, w].
        T: upper triangular [w, w].
    """

    V: Tensor
    T: Tensor


def factored(ranks: Ranks, columns: Columns, Y: Tensor) -> tuple[Tensor, Tensor]:
    """Own columns of Q [S, c] and of R [k, c], from those of Y [S, c], which stays. diag R may have any sign."""
    own = columns.of(ranks.rank).to(Y.device)
    work = room(len(Y), len(own), Y.dtype, Y.device).copy_(Y)
    triangles = [_eliminate_(ranks, columns, work, p) for p in columns.panels]
    Q = room(len(Y), len(own), Y.dtype, Y.device).zero_()
    Q[own, torch.arange(len(own), device=Y.device)] = 1
    for panel, T in zip(reversed(columns.panels), reversed(triangles), strict=True):
        V, T = _sent(ranks, panel, None if T is None else _reflections(work, panel, T), work)
        _apply_(V, T, Q[panel.start :, columns.before(panel.start, ranks.rank) :])
    R = work[: columns.k]
    below = torch.arange(len(R), device=Y.device).unsqueeze(1) > own
    return Q, R.masked_fill(below, 0)


def _eliminate_(ranks: Ranks, columns: Columns, work: Tensor, panel: Panel) -> Tensor | None:
    """Below the diagonal of this panel come its V, later columns are reflected; T where it is ours."""
    mine = panel.owner == ranks.rank
    own = _factor_(work, panel) if mine else None
    V, T = _sent(ranks, panel, own, work)
    _apply_(V, T.mT, work[panel.start :, columns.before(panel.stop, ranks.rank) :])
    return T if mine else None


def _factor_(work: Tensor, panel: Panel) -> _Reflections:
    """LAPACK's factors of a panel, in its place."""
    block = work[panel.start :, panel.here : panel.here + panel.stop - panel.start]
    packed, tau = torch.geqrf(block)
    idle = tau == 0  # a column that is zero below its diagonal is left alone: v = 0 says so to the products, too
    block.copy_(packed)
    V = _unit(packed, idle)
    inverse = (V.mT @ V).triu_(1)
    inverse.diagonal().copy_(torch.where(idle, 1.0, tau).reciprocal_())
    eye = torch.eye(len(tau), dtype=V.dtype, device=V.device)
    T = torch.linalg.solve_triangular(inverse, eye, upper=True)
    T.diagonal()[idle] = 0
    return _Reflections(V, T)


def _reflections(work: Tensor, panel: Panel, T: Tensor) -> _Reflections:
    """Those that ``_factor_`` left."""
    block = work[panel.start :, panel.here : panel.here + panel.stop - panel.start]
    return _Reflections(_unit(block, T.diagonal() == 0), T)


def _unit(packed: Tensor, idle: Tensor) -> Tensor:
    V = packed.tril(-1)
    V.diagonal().fill_(1)
    V[:, idle] = 0
    return V


def _sent(ranks: Ranks, panel: Panel, own: _Reflections | None, like: Tensor) -> _Reflections:
    """The owner's to all, in one message."""
    n, w = len(like) - panel.start, panel.stop - panel.start
    message = like.new_empty(n + w, w) if own is None else torch.cat(own)
    return _Reflections(*ranks.broadcast(message, panel.owner).split((n, w)))


def _apply_(V: Tensor, T: Tensor, X: Tensor) -> None:
    """X <- (I - V T V^T) X."""
    if X.shape[1]:
        X.addmm_(V, T @ (V.mT @ X), alpha=-1)
