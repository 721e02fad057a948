"""A Hessian in one line."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..base.blocks import Chosen
from .hessian import HessianOperator


def hessian(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    x: object,
    y: object,
    out: Tensor | None = None,
    *,
    params: Chosen | None = None,
) -> Tensor:
    """The dense Hessian [P, P] of ``loss_fn(model(x), y)``: ``HessianOperator(model, loss_fn, x, y).dense(out)``.

    Args:
        model, loss_fn, x, y, params: as of ``HessianOperator``.
        out: a contiguous [P, P] tensor to write to, of the parameters' dtype; default: a fresh one.

    Returns:
        H, bit for bit symmetric, with rows and columns in the order of theta.

    Raises:
        ValueError, TypeError: arguments that do not fit.
        MemoryBudgetError: P * P numbers do not fit.
        UnsupportedError, NonFiniteError: as of ``HessianOperator``.

    Example:
        >>> ce.hessian(model, loss_fn, x, y).shape
        torch.Size([83, 83])
    """
    return HessianOperator(model, loss_fn, x, y, params=params).dense(out)
