"""A symmetric matrix to its eigenvalues and rotations, on the CPU: csrc/spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import OPS

_tridiagonalise = OPS.tridiagonalise.default
_tridiagonal_ql = OPS.tridiagonal_ql.default
_tridiagonal_apply = OPS.tridiagonal_apply.default


def tridiagonalise(S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S = Q T Q^T of a symmetric S [n, n] on the CPU: reflectors, and T's diagonal d [n], e [n - 1] in float64.

    Only the lower triangle of S is read. Row i of ``reflectors`` (padded to blocks of 16) is v_i, i numbers and zeros,
    with Q = H_{n-1} .. H_1, H_i = 1 - 2 v_i v_i^T / |v_i|^2. d is NaN where S is not finite.
    """
    return _tridiagonalise(S)


@torch.library.register_fake("chaos_ext::tridiagonalise")
def _tridiagonalise_fake(S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = S.shape[0]
    blocks = (n + 15) // 16
    d, e = (S.new_empty(size, dtype=torch.float64) for size in (n, max(n - 1, 0)))
    return S.new_empty(16 * blocks, 16 * (blocks | 1)), d, e


def tridiagonal_ql(d: Tensor, e: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """T = R diag R^T of a tridiagonal T: values [n] ascending, order [n], sweeps [s, 3] and rotations [r, 2] (c, s).

    Off-diagonals up to ``tol`` max|T| count as zero. Values are NaN where QL did not converge or T is not finite. A
    sweep (l, m, first) is the rotations first, first + 1, .. of the planes (i, i + 1), i = m - 1 .. l, of R^T.
    """
    return _tridiagonal_ql(d, e, tol)


@torch.library.register_fake("chaos_ext::tridiagonal_ql")
def _tridiagonal_ql_fake(d: Tensor, e: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    sweeps, rotations = context.new_dynamic_size(), context.new_dynamic_size()
    order = d.new_empty(d.shape, dtype=torch.int64)
    return torch.empty_like(d), order, order.new_empty(sweeps, 3), d.new_empty(rotations, 2)


def tridiagonal_apply(
    reflectors: Tensor, order: Tensor, sweeps: Tensor, rotations: Tensor, x: Tensor, transpose: bool
) -> Tensor:
    """U x or (``transpose``) U^T x of the rows x [k, n] (float64), U = Q R with columns in ``order``."""
    return _tridiagonal_apply(reflectors, order, sweeps, rotations, x, transpose)


@torch.library.register_fake("chaos_ext::tridiagonal_apply")
def _tridiagonal_apply_fake(
    reflectors: Tensor, order: Tensor, sweeps: Tensor, rotations: Tensor, x: Tensor, transpose: bool
) -> Tensor:
    return torch.empty_like(x)
