"""Displacing a model along a direction of parameter space."""

from __future__ import annotations

from numbers import Real

from torch import Tensor, nn

from ..base.parameters import ParameterSpace
from ..base.tensors import all_finite
from ..base.torch_internals import without_grad
from ..errors import NonFiniteError


@without_grad
def perturb(model: nn.Module, direction: Tensor, eps: float) -> None:
    """theta <- theta + eps * direction / ||direction||, in place, so that the displacement has norm |eps|.

    Args:
        model: its parameters with ``requires_grad`` make up theta [P].
        direction: [P], not zero.
        eps: length of the displacement.

    Raises:
        ValueError: another shape, a zero or non-finite direction, a non-finite eps. TypeError: a complex direction or
            eps, or no number.
        NonFiniteError: the sum overflows the parameters' dtype. Nothing is written then.

    Example:
        >>> before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        >>> ce.perturb(model, torch.ones(83), eps=0.5)
        >>> moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before
        >>> round(float(moved.norm()), 4)
        0.5
    """
    space = ParameterSpace.of(model)
    step = _displacement(direction, space.size, _length(eps)).to(space.device)
    moved = [(p.double() + step[space.slice(i)].view(p.shape)).to(p.dtype) for i, p in enumerate(space.params)]
    for name, t in zip(space.names, moved, strict=True):
        if not all_finite(t):
            raise NonFiniteError(
                f"eps: parameter {name!r} is not finite in {t.dtype} after a displacement by {eps}; make eps smaller"
            )
    for p, t in zip(space.params, moved, strict=True):
        p.copy_(t)


def _length(eps: object) -> float:
    if isinstance(eps, Tensor) and eps.numel() == 1 and not eps.is_complex():
        eps = float(eps)
    if isinstance(eps, bool) or not isinstance(eps, Real):
        raise TypeError(f"eps: expected a real number, got {eps!r}")
    if not abs(float(eps)) < float("inf"):
        raise ValueError(f"direction, eps: expected a finite eps, got {eps}")
    return float(eps)


def _displacement(direction: object, size: int, eps: float) -> Tensor:
    """eps * direction / ||direction||, float64 [P]."""
    if not isinstance(direction, Tensor) or tuple(direction.shape) != (size,):
        raise ValueError(f"direction: expected a tensor of shape [{size}], got {getattr(direction, 'shape', None)}")
    if direction.is_complex():
        raise TypeError(f"direction: expected real numbers, got {direction.dtype}; theta moves along .real or .imag")
    v = direction.double()
    norm = float(v.norm())
    if not 0 < norm < float("inf"):
        largest = float(v.abs().max())
        if not 0 < largest < float("inf"):
            raise ValueError(f"direction: expected a finite nonzero one, got one whose largest entry is {largest}")
        v = v / largest  # its squares overflow, or vanish
        norm = float(v.norm())
    return v * (eps / norm)
