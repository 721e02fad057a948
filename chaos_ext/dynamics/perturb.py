"""Displacing a model along a direction of parameter space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base.parameters import ParameterSpace


@torch.no_grad()
def perturb(model: nn.Module, direction: Tensor, eps: float) -> None:
    """theta <- theta + eps * direction / ||direction||, in place, so that the displacement has norm |eps|.

    Args:
        model: its parameters with ``requires_grad`` make up theta [P].
        direction: [P], not zero.
        eps: length of the displacement.

    Raises:
        ValueError: another shape, a zero or non-finite direction, a non-finite eps.

    Example:
        >>> before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        >>> ce.perturb(model, torch.ones(83), eps=0.5)
        >>> moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before
        >>> round(float(moved.norm()), 4)
        0.5
    """
    space = ParameterSpace.of(model)
    if not isinstance(direction, Tensor) or tuple(direction.shape) != (space.size,):
        raise ValueError(
            f"direction: expected a tensor of shape [{space.size}], got {getattr(direction, 'shape', None)}"
        )
    norm = float(direction.double().norm())
    if not 0 < norm < float("inf") or not abs(eps) < float("inf"):
        raise ValueError(
            f"direction, eps: expected a finite nonzero direction and a finite eps, got norm {norm}, eps {eps}"
        )
    step = (direction.double() * (eps / norm)).to(space.device)
    for i, p in enumerate(space.params):
        p.copy_(p.double() + step[space.slice(i)].view(p.shape))
