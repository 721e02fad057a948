"""Derivatives along a line by central differences: what torch's second derivatives are held against.

    D(h) = (f(theta + h v) - f(theta - h v)) / 2h,    R = (4 D(h/2) - D(h)) / 3,    error estimate |R - D(h/2)|

and the same with smaller h where that error is too large, as with the kink of a ReLU between the points. Where f has a
kink at theta itself the two sides differ, however small h is; there is no derivative then, and none is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]

# Steps, and how far R may be off relative to itself.
_STEPS = {torch.float64: (1e-4, 1e-5, 1e-6), torch.float32: (3e-2, 1e-2, 3e-3)}
_LIMIT = {torch.float64: 1e-6, torch.float32: 1e-2}


@dataclass
class Derivative:
    """d f(theta + t v) / dt at t = 0, and how far it may be off (in the Euclidean norm)."""

    value: Tensor
    error: float

    def agrees(self, other: Tensor, limit: float, floor: float = 0.0) -> bool:
        """Whether ``other`` is the same up to ``limit`` relative to both, the error, and the absolute ``floor``."""
        gap, scale = float((other - self.value).norm()), float(torch.maximum(other.norm(), self.value.norm()))
        return gap <= max(limit * scale, 10 * self.error, floor)


def along(f: Map, theta: Tensor, v: Tensor) -> Derivative | None:
    """The derivative of f at theta [P] along v [P], or None where differences do not settle."""
    at = f(theta)
    for h in _STEPS[theta.dtype]:
        found = _richardson(at, [f(theta + s * v) for s in (h, h / 2, -h / 2, -h)], h)
        if found is not None:
            return found
    return None


def _richardson(at: Tensor, around: list[Tensor], h: float) -> Derivative | None:
    """From f at theta and at theta + h v, + h/2 v, - h/2 v, - h v."""
    far_ahead, near_ahead, near_behind, far_behind = around
    coarse, fine = (far_ahead - far_behind) / (2 * h), (near_ahead - near_behind) / h
    value = (4 * fine - coarse) / 3
    # The two sides approach each other in proportion to h, unless there is a kink at theta.
    kink = (4 * (near_ahead + near_behind - 2 * at) - (far_ahead + far_behind - 2 * at)) / h
    rounding = 8 * torch.finfo(at.dtype).eps * max(float(t.norm()) for t in (at, *around)) / h
    error = max(float((value - fine).norm()), rounding)
    allowed = _LIMIT[at.dtype] * float(value.norm()) + rounding
    if not (error <= allowed and float(kink.norm()) <= 100 * allowed):
        return None
    return Derivative(value, error)


def is_linear(f: Map, theta: Tensor, u: Tensor, v: Tensor, limit: float = 1e-3) -> bool:
    """Whether f has one derivative at theta: that along u + v is the sum of those along u and v, at other steps too.

    It is not where f is different on different sides of theta, or computed so coarsely that it moves in jumps.
    """
    parts = [along(f, theta, w) for w in (u, v, u + v)]
    wide = along(f, theta, 30.0 * u)
    if wide is None or any(p is None for p in parts):
        return False
    first, second, both = (p.value for p in parts if p is not None)
    scale = max(float(t.norm()) for t in (first, second, both))
    gaps = (first + second - both, wide.value / 30.0 - first)
    return all(float(t.norm()) <= limit * scale for t in gaps)


def directions(size: int, like: Tensor, count: int = 2) -> list[Tensor]:
    """Fixed random directions [P] in the dtype and on the device of ``like``."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(count, size, generator=generator, dtype=torch.float64, device="cpu")
    return [d.to(like) for d in drawn.unbind()]
