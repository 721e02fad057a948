"""What an ensemble is given: parameters of the members, and batches."""

from __future__ import annotations

from typing import Any

from torch import Tensor, strided

from ..base.arguments import require_int
from ..base.parameters import ParameterSpace
from ..base.tensors import all_finite
from ..base.torch_internals import tree_leaves, tree_map
from ..errors import NonFiniteError


def checked_batch(x: Any, y: Any, members: int | None) -> tuple[Any, Any]:
    """The batch as it can be used; with ``members``, [B, N, ...]: each member's own."""
    for name, value in (("x", x), ("y", y)):
        if members is not None:
            _check_own(name, value, members)
        for t in tensors_of(value):
            _check_tensor(name, t)
    return _usable(x), _usable(y)


def tensors_of(value: Any) -> list[Tensor]:
    """Those of a batch, which may be a tuple, list or dict of them."""
    if isinstance(value, Tensor):
        return [value]
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


def _usable(value: Any) -> Any:
    """Tensors made in inference mode cannot be saved for backward; their copies can."""
    if any(t.is_inference() for t in tensors_of(value)):
        return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, value)
    return value


def _check_own(name: str, value: object, members: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor [B, N, ...] with batched=True, got {type(value).__name__}")
    if value.dim() < 2 or len(value) != members:
        raise ValueError(
            f"{name}: expected shape [{members}, N, ...] with batched=True, one batch for each member, got "
            f"{tuple(value.shape)}"
        )


def check_thetas(thetas: object, space: ParameterSpace, every: int = 1) -> None:
    require_int("every", every, 1)
    if not isinstance(thetas, Tensor) or thetas.dim() != 2 or thetas.shape[1] != space.size or not len(thetas):
        got = tuple(thetas.shape) if isinstance(thetas, Tensor) else type(thetas).__name__
        raise ValueError(f"thetas: expected a tensor [B, P = {space.size}], one row a member, got {got}")
    if thetas.dtype != space.dtype or thetas.device != space.device:
        raise TypeError(
            f"thetas: expected {space.dtype} on {space.device} like the model, got {thetas.dtype} on {thetas.device}"
        )
    if not all_finite(thetas.detach()):
        raise NonFiniteError("thetas: expected finite parameters, got NaN or inf")


def _check_tensor(name: str, t: Tensor) -> None:
    if t.dim() > 0 and t.numel() == 0:
        raise ValueError(f"{name}: expected a batch of at least one sample, got shape {tuple(t.shape)}")
    if t.is_floating_point() and t.layout == strided and not all_finite(t):
        raise NonFiniteError(f"{name}: expected finite values, got NaN or inf")
