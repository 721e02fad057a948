"""(A + delta I)^-1 b for a symmetric operator, by conjugate gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base.arguments import require_int, require_numbers
from ..errors import IndefiniteError, NonFiniteError, NotConvergedError
from .operand import Operand, norms, scale_of

_TOL = {torch.float32: 1e-5, torch.float64: 1e-10}


@dataclass(frozen=True)
class Solution:
    """What ``solve`` has found.

    Attributes:
        x: of b's shape.
        residual: ||b - (A + delta I) x|| / ||b|| of each column, from x itself, not from the recurrence.
        products: columns that were multiplied with the operator.
    """

    x: Tensor
    residual: Tensor
    products: int


def solve(
    op: Any, b: Tensor, damping: float = 0.0, *, tol: float | None = None, max_products: int | None = None
) -> Solution:
    """Solves (A + damping I) x = b by conjugate gradients, matrix-free: a damped Newton or Gauss-Newton direction.

    A + damping I has to be positive definite. Where a search direction shows that it is not, nothing is returned: an
    IndefiniteError says how negative the curvature along that direction is, and so how much damping is missing at
    least.

    Args:
        op: a HessianOperator, a GGNOperator, or anything with ``shape`` (n, n) and ``@``.
        b: [n] or [n, k], of the operator's dtype and on its device.
        damping: delta, at least 0.
        tol: relative residual at which a column counts as solved; default 1e-10 in float64, 1e-5 in float32.
        max_products: limit of the columns that are multiplied; default (2 n + 100) k.

    Returns:
        A ``Solution`` with x and the residuals.

    Raises:
        TypeError, ValueError: arguments that do not fit.
        IndefiniteError: A + damping I is not positive definite.
        NotConvergedError: the limit was reached, or rounding allows no smaller residual; carries the residuals.
        NonFiniteError, StaleOperatorError: as of the operator.

    Example:
        >>> found = ce.solve(ce.GGNOperator(model, loss_fn, x, y), op.gradient, damping=0.1)
        >>> bool(found.residual < 1e-5)
        True
    """
    A = Operand(op)
    require_numbers(damping=damping, **({} if tol is None else {"tol": tol}))
    _check(A, b, damping, tol)
    columns = b.detach().reshape(A.size, -1)
    limit = (2 * A.size + 100) * columns.shape[1] if max_products is None else max_products
    require_int("max_products", limit, 0 if max_products is None else 1)
    scales = columns.new_tensor([scale_of(c) for c in columns.T])
    x, residual = _solved(A, columns / scales, float(damping), _TOL[A.dtype] if tol is None else tol, limit)
    x = x * scales
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(f"solve: x is larger than {A.dtype} can hold; divide b by a number, and x by its inverse")
    return Solution(x.reshape(b.shape), residual.reshape(b.shape[1:]), A.products)


def _check(A: Operand, b: Tensor, damping: float, tol: float | None) -> None:
    if not isinstance(b, Tensor) or b.dtype != A.dtype or b.device != A.device:
        got = f"{b.dtype} on {b.device}" if isinstance(b, Tensor) else type(b).__name__
        raise TypeError(f"b: expected a {A.dtype} tensor on {A.device}, got {got}")
    if b.dim() not in (1, 2) or len(b) != A.size or not bool(torch.isfinite(b).all()):
        raise ValueError(f"b: expected finite numbers of shape [{A.size}] or [{A.size}, k], got {tuple(b.shape)}")
    if not isinstance(damping, (int, float)) or not 0 <= damping < math.inf:
        raise ValueError(f"damping: expected a number of at least 0, got {damping!r}")
    if tol is not None and not 0 < tol < 1:
        raise ValueError(f"tol: expected 0 < tol < 1, got {tol!r}")


def _solved(A: Operand, b: Tensor, delta: float, tol: float, limit: int) -> tuple[Tensor, Tensor]:
    """x and its explicit residuals, for b of entries near 1; started again from x where the recurrence drifted."""
    x, size = torch.zeros_like(b), b.norm(dim=0)
    safe = size.clamp_min(torch.finfo(b.dtype).tiny)
    rest, before = b, torch.full_like(size, math.inf)
    while True:
        residual = rest.norm(dim=0) / safe
        if bool((residual <= tol).all()):
            return x, residual
        if A.products >= limit or not bool((residual < 0.5 * before)[residual > tol].all()):
            raise NotConvergedError(
                f"solve: relative residual {float(residual.max()):.2g} after {A.products} products, expected {tol:g}; "
                "raise tol, damping or max_products",
                residual,
            )
        x, before = _descended(A, x, rest, delta, tol * safe, limit), residual
        rest = b - (A @ x + delta * x)


def _descended(A: Operand, x: Tensor, rest: Tensor, delta: float, goal: Tensor, limit: int) -> Tensor:
    """Conjugate gradients from x with the residual ``rest``, each column for itself, until the recurrence is there."""
    r, p = rest, rest
    rr = r.square().sum(0)
    while A.products < limit:
        open_ = rr.sqrt() > 0.5 * goal
        if not bool(open_.any()):
            break
        Ap = A @ p + delta * p
        curvature = (p * Ap).sum(0)
        _require_positive(curvature, p, Ap, open_)
        step = torch.where(open_, rr / torch.where(open_, curvature, torch.ones_like(curvature)), 0.0)
        x, r = x + step * p, r - step * Ap
        now = r.square().sum(0)
        p = r + torch.where(open_, now / torch.where(open_, rr, torch.ones_like(rr)), 0.0) * p
        rr = torch.where(open_, now, rr)
    return x


def _require_positive(curvature: Tensor, p: Tensor, Ap: Tensor, open_: Tensor) -> None:
    rounding = torch.finfo(p.dtype).eps * norms(p) * norms(Ap)
    bad = open_ & (curvature <= rounding)
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        direction = p[:, i] / p[:, i].norm()
        along = float(curvature[i] / p[:, i].square().sum())
        raise IndefiniteError(
            f"solve: A + damping I is not positive definite, its curvature along a search direction is {along:.3g}; "
            f"raise damping by more than {max(0.0, -along):.3g}, or use GGNOperator",
            along,
            direction,
        )
