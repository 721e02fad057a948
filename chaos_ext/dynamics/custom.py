"""Tangent maps of optimizers that the package does not know, taught by their users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..base.arguments import require_int
from ..curvature.hessian import HessianOperator

Custom = Callable[[Any, HessianOperator, Tensor], None]

_CUSTOM: dict[type, tuple[Custom, int]] = {}


def register_tangent(cls: type[Optimizer], apply_: Custom, buffers: int = 0) -> None:
    """Teaches ``TangentMap`` an optimizer that it does not know.

    Args:
        cls: the optimizer's class; subclasses are not included, since they may step differently.
        apply_: ``apply_(opt, op, Y)``, called before the step, replaces Y [S, k] by J Y in place. Rows are theta in
            ``op.space`` order, then each buffer in the same order: S = (1 + buffers) P.
        buffers: number of state blocks beside theta.

    Raises:
        TypeError: no class of optimizers. ValueError: a negative number of buffers.

    Example:
        >>> class SignSGD(torch.optim.Optimizer):  # theta <- theta - lr sign(g): J = I almost everywhere
        ...     pass
        >>> ce.register_tangent(SignSGD, lambda opt, op, Y: None)
    """
    if not isinstance(cls, type) or not issubclass(cls, Optimizer):
        raise TypeError(f"cls: expected a subclass of torch.optim.Optimizer, got {cls!r}")
    require_int("buffers", buffers, 0)
    _CUSTOM[cls] = (apply_, buffers)


def registered(cls: type[Optimizer]) -> tuple[Custom, int] | None:
    """What ``register_tangent`` was given for this very class."""
    return _CUSTOM.get(cls)
