"""Vectors as the rows of a matrix: projections that read them once, in the order of memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 1 << 18  # numbers of the old rows that a rotation reads at a time: they stay in the cache
TAKEN = 3.0  # what is taken out of a vector over what is left, in squares, beyond which it is projected again


def clear_(W: Tensor, rows: Tensor, looks: bool) -> tuple[Tensor, Tensor]:
    """Takes the span of orthonormal rows [n, P] out of W [b, P] in place.

    Args:
        W, rows: vectors.
        looks: whether to see if once is enough, which it is where little is taken out; else twice.

    Returns:
        Coefficients, float64 [b, n], and ||W||^2 [b] of what is left.
    """
    C = torch.mv(rows, W[0]).unsqueeze(0) if len(W) == 1 else W @ rows.T
    subtract_(W, C, rows)
    total, left = C.double(), squares(W)
    if looks and bool((total.square().sum(1) <= TAKEN * left).all()):
        return total, left
    C = W @ rows.T
    subtract_(W, C, rows)
    return total + C, squares(W)


def polished(row: Tensor, spaces: Sequence[Tensor], looks: bool) -> Tensor:
    """A unit row [1, P] without what rounding has left in it of orthonormal rows."""
    for _ in range(2):
        for rows in spaces:
            clear_(row, rows, looks)
        row = row / row.norm()
    return row


def unit_of(largest: float) -> float:
    """Of a product with entries up to ``largest``."""
    usual = 1e-9 < largest < 1e9 or not 0 < largest < math.inf
    return 1.0 if usual else 2.0 ** -min(max(math.frexp(largest)[1], -1000), 1000)


def squares(W: Tensor) -> Tensor:
    return torch.linalg.vector_norm(W, dim=1, dtype=torch.float64 if len(W) > 1 else None).double().square()


def subtract_(W: Tensor, C: Tensor, rows: Tensor) -> None:
    """W [b, P] minus C [b, n] rows, in place; one vector at the speed of memory."""
    if C.numel() == 1:
        W.addcmul_(rows, C, value=-1)
    elif len(W) == 1:
        W[0].addmv_(rows.T, C[0], alpha=-1)
    else:
        W.addmm_(C, rows, alpha=-1)


def rotate_(rows: Tensor, rotation: Tensor, first: int, n: int, active: int) -> None:
    """Rows from ``first`` to n become combinations of them, in place, and ``active`` ones after n move up behind."""
    stop, step = first + len(rotation), max(256, _CHUNK // max(n, 1))
    rotation = rotation.to(rows).contiguous()
    for i in range(0, rows.shape[1], step):
        part = rows[:, i : i + step]
        moved = part[n : n + active].clone()
        part[first:stop] = rotation @ part[first:n]
        part[stop : stop + active] = moved
