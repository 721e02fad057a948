"""Y = Q R of a block of deviations with diag R >= 0: CholeskyQR2 while that is as accurate as Householder, else that.

CholeskyQR2 (Yamamoto, Nakatsukasa, Yanagisawa, Fukaya, 2015) is all matrix products: Q_1 = Y R_1^-1 from the Cholesky
factor of Y^T Y, then the same for Q_1. It is as orthonormal as Householder's Q if the Gram matrix of Q_1 is near I,
which is checked; that holds up to a condition of Y of about 1e3 in float32 and 1e7 in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Below this many numbers LAPACK's one call beats the four of CholeskyQR2.
_SMALL = 1 << 14
_LOSS = 0.1


def orthonormalise(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Q [S, k] with orthonormal columns and upper triangular R [k, k] in float64, diag R >= 0, such that Y = Q R."""
    if Y.shape[1] == 1:
        return _normalise(Y)
    if Y.numel() >= _SMALL and (pair := _cholesky_twice(Y)) is not None:
        return pair
    return _householder(Y)


def _normalise(Y: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(Y, dtype=torch.float64)
    if float(norm) == 0:
        return _householder(Y)
    return (Y.double() / norm).to(Y.dtype), norm.view(1, 1)


def _householder(Y: Tensor) -> tuple[Tensor, Tensor]:
    Q, R = torch.linalg.qr(Y)
    flip = torch.where(R.diagonal() < 0, -1, 1).to(Y.dtype)
    return Q * flip, (R * flip.unsqueeze(1)).double()


def _cholesky_twice(Y: Tensor) -> tuple[Tensor, Tensor] | None:
    """None where Y is too ill conditioned for it."""
    norms = torch.linalg.vector_norm(Y, dim=0)
    if not bool((norms > 0).all()):
        return None
    Y = Y / norms  # column scaling costs nothing in accuracy, and much of the condition is often just that
    first = _cholesky(Y.T @ Y)
    if first is None:
        return None
    Q = _solve(Y, first)
    gram = Q.T @ Q
    error = torch.linalg.vector_norm(gram - torch.eye(len(gram), dtype=Y.dtype, device=Y.device))
    second = _cholesky(gram) if float(error) < _LOSS else None
    if second is None:
        return None
    return _solve(Q, second), second.double() @ first.double() * norms.double()


def _cholesky(gram: Tensor) -> Tensor | None:
    """Upper R with R^T R = gram, or None where it is not positive definite to rounding."""
    R, info = torch.linalg.cholesky_ex(gram, upper=True)
    return R if int(info) == 0 else None


def _solve(Y: Tensor, R: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(R, Y, upper=True, left=False)
