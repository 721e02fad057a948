"""A symmetric matrix to its eigenvalues and rotations, on the CPU: csrc/spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .layout import REFLECTOR_BLOCK
from .library import OPS

_tridiagonalise = OPS.tridiagonalise.default
_tridiagonal_ql = OPS.tridiagonal_ql.default
_tridiagonal_apply = OPS.tridiagonal_apply.default


def tridiagonalise(S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S = Q T Q^T of a symmetric S [n, n] on the CPU: reflectors, and T's diagonal d [n], e [n - 1] in float64.

    Only the lower triangle of S is read. Row i of ``reflectors`` (padded to whole blocks) is v_i, i numbers and zeros,
    with Q = H_{n-1} .. H_1, H_i = 1 - 2 v_i v_i^T / |v_i|^2. d is NaN where S is not finite.
    """
    return _tridiagonalise(S)


@torch.library.register_fake("chaos_ext::tridiagonalise")
def _tridiagonalise_fake(S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    op = "tridiagonalise"
    checks.arguments(op, {"S": S})
    checks.floating(op, "S", S)
    checks.dim(op, "S", S, 2)
    n = S.shape[0]
    checks.expect(S.shape[1] == n, f"{op}: expected S square, got {list(S.shape)}")
    checks.contiguous(op, "S", S)
    d, e = (S.new_empty(size, dtype=torch.float64) for size in (n, _off_diagonals(n)))
    return S.new_empty(_padded(n)), d, e


def _padded(n: int) -> tuple[int, int]:
    """Rows and columns of the reflectors of a matrix [n, n]: csrc/spectrum/reflector_shape.h."""
    blocks = (n + REFLECTOR_BLOCK - 1) // REFLECTOR_BLOCK
    return REFLECTOR_BLOCK * blocks, REFLECTOR_BLOCK * (blocks | 1)


def _off_diagonals(n: int) -> int:
    return max(n - 1, 0)


def tridiagonal_ql(d: Tensor, e: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """T = R diag R^T of a tridiagonal T: values [n] ascending, order [n], sweeps [s, 3] and rotations [r, 2] (c, s).

    Off-diagonals up to ``tol`` max|T| count as zero. Values are NaN where QL did not converge or T is not finite. A
    sweep (l, m, first) is the rotations first, first + 1, .. of the planes (i, i + 1), i = m - 1 .. l, of R^T.
    """
    return _tridiagonal_ql(d, e, tol)


@torch.library.register_fake("chaos_ext::tridiagonal_ql")
def _tridiagonal_ql_fake(d: Tensor, e: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op = "tridiagonal_ql"
    checks.arguments(op, {"d": d, "e": e})
    checks.dtype(op, "d", d, torch.float64)
    checks.dim(op, "d", d, 1)
    checks.contiguous(op, "d", d)
    checks.operand(op, "e", e, "d", d, (_off_diagonals(d.shape[0]),))
    n = d.shape[0]
    checks.expect(n * n <= checks.MOST_NUMBERS, f"{op}: expected d of at most 2^25 numbers, got {n}")
    checks.expect(0 <= tol < 1, f"{op}: expected 0 <= tol < 1, got {tol}")
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
    op = "tridiagonal_apply"
    given = {"x": x, "reflectors": reflectors, "order": order, "sweeps": sweeps, "rotations": rotations}
    checks.arguments(op, given)
    checks.floating(op, "reflectors", reflectors)
    checks.dtype(op, "x", x, torch.float64)
    checks.dim(op, "x", x, 2)
    checks.contiguous(op, "x", x)
    n = x.shape[1]
    checks.shape(op, "reflectors", reflectors, _padded(n))
    checks.contiguous(op, "reflectors", reflectors)
    checks.dtype(op, "order", order, torch.int64)
    checks.shape(op, "order", order, (n,))
    checks.contiguous(op, "order", order)
    checks.dtype(op, "sweeps", sweeps, torch.int64)
    checks.dim(op, "sweeps", sweeps, 2)
    checks.shape(op, "sweeps", sweeps, (sweeps.shape[0], 3))
    checks.contiguous(op, "sweeps", sweeps)
    checks.dim(op, "rotations", rotations, 2)
    checks.operand(op, "rotations", rotations, "x", x, (rotations.shape[0], 2))
    return torch.empty_like(x)
