"""The columns of a frame: how long they are, and how they become orthonormal, wherever they lie."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..base.tensors import room
from .orthonormal import orthonormalise

_FEW = 256  # numbers that are quicker read one by one


class Factored(NamedTuple):
    """Y = Q R with diag R >= 0.

    Attributes:
        Q: orthonormal columns, as many as Y has here, with the columns of a row as neighbours.
        diagonal: of R, float64 [k].
        R: float64 [k, k], or None where no process has all of it.
    """

    Q: Tensor
    diagonal: Tensor
    R: Tensor | None


class Frame(Protocol):
    """What a run asks about its deviations Y [S, k], of which this process may have some columns only."""

    k: int

    def extremes(self, Y: Tensor, squares: Tensor | None) -> tuple[float, float]:
        """The smallest and the largest norm of all k columns; one of them NaN or infinite where Y is not finite."""

    def factored(self, Y: Tensor) -> Factored:
        """Y = Q R of all columns; Y stays as it is."""

    def placed(self, Y: Tensor) -> Tensor:
        """The columns Y, which nobody else has, as the run wants them in memory."""

    def whole(self, Q: Tensor) -> Tensor:
        """All k columns, in memory of their own."""


class Whole:
    """A frame of which every column is here.

    Args:
        k: number of columns.
    """

    def __init__(self, k: int) -> None:
        self.k = k

    def extremes(self, Y: Tensor, squares: Tensor | None) -> tuple[float, float]:
        return extremes(Y, squares)

    def factored(self, Y: Tensor) -> Factored:
        Q, R = orthonormalise(Y)
        # LAPACK returns columns; the sweeps read rows.
        return Factored(self.placed(Q), R.diagonal(), R)

    def placed(self, Y: Tensor) -> Tensor:
        return room(Y.shape[0], Y.shape[1], Y.dtype, Y.device).copy_(Y)

    def whole(self, Q: Tensor) -> Tensor:
        return Q.clone()


def extremes(Y: Tensor, squares: Tensor | None) -> tuple[float, float]:
    """Of the columns of Y, of which there is at least one; ``squares``: their sums of squares, where known."""
    if squares is not None:
        few = squares.tolist() if len(squares) <= _FEW else torch.stack(torch.aminmax(squares)).tolist()
        if math.isfinite(sum(few)) and min(few) > 0:
            return math.sqrt(min(few)), math.sqrt(max(few))
    # Where squares overflow or vanish, norms need not.
    low, high = torch.stack(torch.aminmax(torch.linalg.vector_norm(Y, dim=0))).tolist()
    return low, high
