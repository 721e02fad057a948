"""Whether torch's derivatives of a model's output, and of a loss there, are to be believed.

J v is compared with J^T u, and with differences of outputs; C u with its transpose, and with differences of the loss's
gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ChaosExtError
from .differences import Derivative, along, directions, is_linear
from .examination import limits
from .inspection import PADDING
from .jacobian_by_torch import TorchJacobian


def require_right(J: TorchJacobian, stops: str | None) -> None:
    """Holds J and C against differences; J goes twice in reverse from now on where jvp is wrong.

    Args:
        J: of one model, loss and batch.
        stops: how forward takes gradients out of the graph on purpose, which differences would see; or None.

    Raises:
        ChaosExtError: torch's derivatives of the output or of the loss are wrong.
    """
    theta = J.space.flatten([p.detach() for p in J.space.params])
    v, w = directions(J.size, theta)
    expected = along(J.output_at, theta, v) if stops is None else None
    J.forward = J.forward and stops != PADDING  # torch's jvp sees past it
    if not _is_right(J, v, expected):
        J.forward = False
        settled = expected is not None and is_linear(J.output_at, theta, v, w)
        if not _is_right(J, v, expected if settled else None):
            raise ChaosExtError(
                "model: torch's derivatives of the output are wrong here: they differ from differences of outputs, as "
                "those of a straight-through estimator or of a wrong backward do; check it with "
                "torch.autograd.gradcheck"
            )
    elif J.forward and not _is_reverse(J, v):
        J.forward = False
        J.forward = not _is_right(J, v, expected)
    if J.evaluated is None:
        _require_curvature(J)


def _is_reverse(J: TorchJacobian, v: Tensor) -> bool:
    """Whether all of J v is what twice reverse gives: one number u^T J v tells little in float32."""
    try:
        expected = J.push_in_reverse(v.unsqueeze(1))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a backward that has no derivative: jvp is all there is
        return True
    gap = float((J.push(v.unsqueeze(1)) - expected).norm())
    return gap <= limits(J.dtype)[0] * float(expected.norm())


def _is_right(J: TorchJacobian, v: Tensor, expected: Derivative | None) -> bool:
    """Whether J v agrees with J^T u, and with differences if there are any."""
    near, far, _ = limits(J.dtype)
    (u,) = directions(J.outputs, v, 1)
    pushed, pulled = J.push(v.unsqueeze(1)).squeeze(1), J.pull(u.unsqueeze(1)).squeeze(1)
    gap = float((u @ pushed - v @ pulled).abs())
    if not gap <= near * float(u.norm() * pushed.norm() + v.norm() * pulled.norm()):
        return False
    return expected is None or expected.agrees(pushed, far)


def _require_curvature(J: TorchJacobian) -> None:
    far = limits(J.dtype)[1]
    z = J.output
    u, w = directions(J.outputs, z)
    pair = J.curve(torch.stack([u, w], 1))
    symmetric = float((u @ pair[:, 1] - w @ pair[:, 0]).abs()) <= far * float(u.norm() * pair.norm())
    expected = along(J.loss_gradient, z, u)
    right = expected is None or expected.agrees(pair[:, 0], far) or not is_linear(J.loss_gradient, z, u, w)
    if not (symmetric and right):
        raise ChaosExtError(
            "loss_fn: torch's second derivative of the loss at the output is wrong here: it differs from differences "
            "of its gradient; check it with torch.autograd.gradgradcheck"
        )
