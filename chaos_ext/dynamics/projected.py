"""What the tangent map needs of an optimizer that projects its gradient: the projector, and how it moves with theta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..curvature.hessian import HessianOperator
from ..errors import UnsupportedError


@runtime_checkable
class Projected(Protocol):
    """What an optimizer offers that runs torch.optim.SGD's recurrence on a projected gradient (CGD does)."""

    def tangent_projection(self, op: HessianOperator) -> Callable[[Tensor], None] | None:
        """The projector of the next step: in place on a block [P, k]; None where the step does not project."""

    def tangent_direction(self, op: HessianOperator) -> tuple[Tensor, int]:
        """The projected gradient [P] at the operator's theta, and the number of directions taken out."""


def differences(opt: Projected, op: HessianOperator, Y: Tensor) -> Tensor:
    """d/dh of the projected gradient at theta + h y for every column y, by central differences.

    Analytically P' g + P H y with dP = V (F o V^T dH V) V^T, F_ij = (f_i - f_j) / (lambda_i - lambda_j) (Daleckii and
    Krein), f being 1 on pruned eigenvalues and 0 elsewhere. The error of the difference is of order h^2.
    """
    if op.dtype != torch.float64:
        raise UnsupportedError("jacobian='true': differences need float64; convert model and batch with .double()")
    theta, count = op.snapshot.theta, opt.tangent_direction(op)[1]
    out = torch.empty_like(Y)
    for j, y in enumerate(Y.T):
        norm = float(y.norm())
        h = 1e-5 * max(1.0, float(theta.norm()) / len(theta) ** 0.5) / norm if norm else 1.0
        sides = []
        for sign in (1, -1):
            with op.displaced(theta + sign * h * y) as there:
                direction, pruned = opt.tangent_direction(there)
            if pruned != count:
                raise UnsupportedError(
                    "jacobian='true': an eigenvalue crosses the pruning threshold next to theta, where the CGD map is "
                    "not differentiable; use jacobian='frozen' for this step"
                )
            sides.append(direction)
        out[:, j] = (sides[0] - sides[1]) / (2 * h)
    return out
