"""All eigenpairs of a dense symmetric matrix, by LAPACK through torch, with a check of what comes back."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..base.tensors import unit_probe
from ..errors import NonFiniteError, NotConvergedError

log = logging.getLogger("chaos_ext")

_HOST_SIZE = 1024  # below this a GPU's eigh is slower than LAPACK on the host


def eigh(S: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ascending [n] and eigenvectors [n, n] of a symmetric matrix, with residuals and orthogonality
    checked.

    A float32 failure is retried in float64. Of a CUDA matrix of a few hundred rows the host computes the eigenpairs.

    Raises:
        NonFiniteError: S has a NaN or an infinity.
        NotConvergedError: the result fails the check also in float64.
    """
    if not len(S):
        return S.new_zeros(0), S.new_zeros(0, 0)
    matrix = S.cpu() if S.is_cuda and len(S) <= _HOST_SIZE else S
    for dtype in dict.fromkeys((S.dtype, torch.float64)):
        attempt = matrix.to(dtype)
        try:
            values, vectors = torch.linalg.eigh(attempt)
        except torch.linalg.LinAlgError as e:  # type: ignore[attr-defined]
            if not torch.isfinite(attempt).all():
                raise NonFiniteError("eigh: the matrix has NaN or inf") from e
            residual = torch.full((1,), float("nan"), device=S.device)
        else:
            residual = _defects(attempt, values, vectors)
            if bool((residual <= _limit(len(S), dtype)).all()):
                return values.to(S), vectors.to(S)
            if not torch.isfinite(attempt).all():
                raise NonFiniteError("eigh: the matrix has NaN or inf")
        log.warning("eigh of a %d x %d matrix failed its check in %s", *S.shape, dtype)
    raise NotConvergedError("eigh: eigenpairs fail their check (residual, orthogonality) in float64", residual)


def _limit(n: int, dtype: torch.dtype) -> float:
    """Backward error of a stable eigensolver, with room for the probe's length."""
    return 20 * torch.finfo(dtype).eps * max(n, 10)


def _defects(S: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """||S V w - V (lambda w)|| / ||S|| and ||V^T V w - w|| for a fixed pseudo-random unit w: no n^3 product."""
    n = len(S)
    w = unit_probe(n, S.dtype, S.device)
    u = vectors @ w
    scale = values.abs().max().clamp_min(torch.finfo(S.dtype).tiny)
    return torch.stack([(S @ u - vectors @ (values * w)).norm() / scale, (vectors.T @ u - w).norm()])
