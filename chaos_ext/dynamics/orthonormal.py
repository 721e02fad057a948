"""Y = Q R of a block of deviations with diag R >= 0: Householder's on a CPU, CholeskyQR2 on a GPU while that is as
accurate.

CholeskyQR2 (Yamamoto, Nakatsukasa, Yanagisawa, Fukaya, 2015) is all matrix products: Q_1 = Y R_1^-1 from the Cholesky
factor of Y^T Y, then the same for Q_1. It is as orthonormal as Householder's Q if the Gram matrix of Q_1 is near I,
which is checked; that holds up to a condition of Y of about 1e3 in float32 and 1e7 in float64. It takes up to 6 S k^2
operations where LAPACK takes 4 S k^2 - 4/3 k^3: on one thread of a CPU 1.1 to 2.6 times as long, from 5350 x 2 to
2048 x 2048, on two 0.9 to 2.4 times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOSS = 0.1


def orthonormalise(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Q [S, k] with orthonormal columns and upper triangular R [k, k] in float64, diag R >= 0, such that Y = Q R."""
    if Y.shape[1] == 1:
        return _normalise(Y)
    return householder(Y) if Y.is_cpu else by_products(Y)


def by_products(Y: Tensor) -> tuple[Tensor, Tensor]:
    """The same by CholeskyQR2, and by Householder where that is not accurate."""
    pair = cholesky_twice(Y, Here())
    return householder(Y) if pair is None else pair


def _normalise(Y: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(Y, dtype=torch.float64)
    if float(norm) == 0:
        return householder(Y)
    return (Y.double() / norm).to(Y.dtype), norm.view(1, 1)


def householder(Y: Tensor) -> tuple[Tensor, Tensor]:
    Q, R = torch.linalg.qr(Y)
    flip = torch.where(R.diagonal() < 0, -1, 1).to(Y.dtype)
    return Q * flip, (R * flip.unsqueeze(1)).double()


class Here:
    """What CholeskyQR2 needs of all rows of Y, where they are all here."""

    def norms(self, Y: Tensor) -> Tensor:
        """Of the columns, [k]."""
        return torch.linalg.vector_norm(Y, dim=0)

    def factor(self, Y: Tensor, most: float) -> Tensor | None:
        """Upper R with R^T R = Y^T Y; None where that is not positive definite to rounding, or ``most`` away from I."""
        return cholesky(Y.T @ Y, most)


def cholesky_twice(Y: Tensor, rows: Here) -> tuple[Tensor, Tensor] | None:
    """Q and R; None where Y is too ill conditioned for it.

    Args:
        Y: [S, k], or those of its rows that are here.
        rows: knows all of them.
    """
    norms = rows.norms(Y)
    if not bool((norms > 0).all()):
        return None
    Y = Y / norms  # column scaling costs nothing in accuracy, and much of the condition is often just that
    first = rows.factor(Y, math.inf)
    if first is None:
        return None
    Q = _solve(Y, first)
    second = rows.factor(Q, _LOSS)
    if second is None:
        return None
    return _solve(Q, second), second.double() @ first.double() * norms.double()


def cholesky(gram: Tensor, most: float) -> Tensor | None:
    """Upper R with R^T R = gram; None where it is not positive definite to rounding, or ``most`` away from I."""
    if most < math.inf:
        error = torch.linalg.vector_norm(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        if not float(error) < most:
            return None
    R, info = torch.linalg.cholesky_ex(gram, upper=True)
    return R if int(info) == 0 else None


def _solve(Y: Tensor, R: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(R, Y, upper=True, left=False)
