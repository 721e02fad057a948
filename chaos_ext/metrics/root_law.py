"""Least squares of d(t) = sqrt(sum_j c_j a_j(t)) with c >= 0, for many weightings of the points at once.

In distances, sum w (d - sqrt u)^2 = sum w (d^2 - 2 d sqrt u + u) with u = A c is convex in c, so what the projected
Newton method (Bertsekas, SIAM J. Control Optim. 20, 1982) finds is the minimum. In logarithms of distances it is not
convex, and its Gauss-Newton matrix takes the place of the second derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import NotConvergedError

_LOWEST = 1e-30  # of c in units of max d^2 / max a: less is zero
_ITERATIONS = 300
_ROUNDING = 1e-15
_AT_ONCE = 1 << 19  # weights at once: some arrays of them stay in cache


def fit_root(A: Tensor, D: Tensor, W: Tensor, relative: bool, near: Tensor | None = None) -> Tensor:
    """The coefficients of each row of weights.

    Args:
        A: a_j(t_i) >= 0, float64 [m, p], no zero row and no zero column.
        D: distances [m], or those of every row [B, m]; positive if ``relative``.
        W: weights >= 0 of the points [B, m].
        relative: least squares of ln d instead of d.
        near: coefficients [p] from which to start.

    Returns:
        float64 [B, p], zeros exact.

    Raises:
        NotConvergedError: the iteration did not come to an end.
    """
    rows = max(1, _AT_ONCE // len(A))
    scale, unit = A.amax(0), float(D.max())
    near = torch.zeros_like(scale) if near is None else near * scale / unit**2
    parts = [
        _fit(A / scale, (D[i : i + rows] if D.dim() == 2 else D) / unit, W[i : i + rows], relative, near)
        for i in range(0, len(W), rows)
    ]
    return torch.cat(parts) * unit**2 / scale


def _fit(A: Tensor, D: Tensor, W: Tensor, relative: bool, near: Tensor) -> Tensor:
    c = ((W * D.square()).sum(1, keepdim=True) / (W @ A) / A.shape[1]).nan_to_num(1.0, 1.0)
    c = torch.where(near > 0, near, c).clamp_min(_LOWEST)
    slack = _ROUNDING * (W * (1 + D.log().abs() if relative else D.square())).sum(1)
    settled = torch.zeros(len(W), dtype=torch.int64, device="cpu")
    for _ in range(_ITERATIONS):
        step, gradient = _newton(A, D, W, c, relative)
        following = _descended(A, D, W, c, relative, step, gradient, slack)
        # A value within rounding of the minimum still leaves half of the digits to the next steps; a coefficient that
        # few points see may grow from its bound for longer.
        flat = (gradient * (c - following)).sum(1).abs() <= slack
        growing = (((following - c).abs() @ A.T > 1e-6 * (c @ A.T)) & (D > 0)).any(1)
        settled = torch.where(flat, settled + 1, torch.zeros_like(settled))
        c = following
        if bool(((settled >= 2) & ~growing | (settled >= 100)).all()):
            return torch.where(c > 100 * _LOWEST, c, torch.zeros_like(c))
    raise NotConvergedError(f"fit_divergence: no minimum after {_ITERATIONS} steps of Newton's method")


def _descended(
    A: Tensor, D: Tensor, W: Tensor, c: Tensor, relative: bool, step: Tensor, gradient: Tensor, slack: Tensor
) -> Tensor:
    """Where the step ends: halved until the sum of squares falls, projected on c >= 0."""
    value, length = _value(A, D, W, c, relative), torch.ones(len(c), 1, dtype=c.dtype, device="cpu")
    for _ in range(60):
        following = (c + length * step).clamp_min(_LOWEST)
        gain = (gradient * (c - following)).sum(1)
        poor = ~(_value(A, D, W, following, relative) <= value - 1e-4 * gain + slack)
        if not bool(poor.any()):
            return following
        length = torch.where(poor.unsqueeze(1), length / 2, length)
    return torch.where(poor.unsqueeze(1), c, following)


def _value(A: Tensor, D: Tensor, W: Tensor, c: Tensor, relative: bool) -> Tensor:
    root = (c @ A.T).sqrt()
    gap = D.log() - root.log() if relative else D - root
    return (W * gap.square()).sum(1)


def _newton(A: Tensor, D: Tensor, W: Tensor, c: Tensor, relative: bool) -> tuple[Tensor, Tensor]:
    """The step [B, p], zero where a coefficient stays at its bound, and the gradient."""
    u = c @ A.T
    root = u.sqrt()
    slope = (root.log() - D.log()) / u if relative else 1 - D / root
    bend = 0.5 / u.square() if relative else 0.5 * D / (u * root)
    gradient = (W * slope) @ A
    pairs = (A.unsqueeze(2) * A.unsqueeze(1)).view(len(A), -1)
    hessian = ((W * bend) @ pairs).view(len(c), *A.shape[1:], A.shape[1])
    held = (c <= _LOWEST) & (gradient > 0)
    hessian = hessian.masked_fill(held.unsqueeze(1) | held.unsqueeze(2), 0.0)
    size = hessian.diagonal(dim1=1, dim2=2).clone()
    size = torch.where(size > 0, size, torch.ones_like(size)).rsqrt()
    # Columns are brought to one scale, and nearly dependent ones are kept apart.
    scaled = hessian * size.unsqueeze(1) * size.unsqueeze(2) + 1e-13 * torch.eye(
        A.shape[1], dtype=A.dtype, device="cpu"
    )
    step = torch.linalg.solve(scaled, (-(gradient.masked_fill(held, 0.0)) * size).unsqueeze(2)).squeeze(2) * size
    return step.masked_fill(held, 0.0), gradient
