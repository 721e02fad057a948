"""Whatever can be multiplied with vectors, as a function of blocks of columns."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..curvature.hessian import HessianOperator

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Products:
    """A symmetric operator as Lanczos needs it.

    Attributes:
        apply: H X for X [P, b].
        size: P.
        dtype, device: of X and H X.
    """

    apply: Callable[[Tensor], Tensor]
    size: int
    dtype: torch.dtype
    device: torch.device


def products_of(op: Any) -> Products:
    """Of a HessianOperator, a symmetric matrix, or an object with ``shape`` and ``@`` on torch tensors or numpy arrays.

    Raises:
        TypeError: something else, or products that are neither float32 nor float64.
        ValueError: not square, or products of another shape.
    """
    if isinstance(op, HessianOperator):
        return Products(op.__matmul__, op.shape[0], op.dtype, op.device)
    shape = getattr(op, "shape", None)
    if shape is None or not hasattr(op, "__matmul__"):
        raise TypeError(f"op: expected a HessianOperator, or an object with shape and @, got {type(op).__name__}")
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise ValueError(f"op: expected a square shape (P, P), got {tuple(shape)}")
    size = int(shape[0])
    if isinstance(op, Tensor):
        _require_real(op.dtype)
        matrix = op.detach()
        return Products(lambda X: matrix @ X, size, op.dtype, op.device)
    return _probed(op, size)


def _probed(op: Any, size: int) -> Products:
    """The kind of arrays that it takes, found by one product of each kind that it may be."""
    said, place = str(getattr(op, "dtype", "")), getattr(op, "device", "cpu")
    hint = _DTYPES.get(said.removeprefix("torch."))
    kinds = (_as_array, _as_tensor) if said in _DTYPES else (_as_tensor, _as_array)
    device = torch.device(place) if isinstance(place, (str, torch.device)) else torch.device("cpu")
    refused: list[str] = []
    for convert, dtype in itertools.product(kinds, [hint] if hint else list(_DTYPES.values())):
        try:
            made = op @ convert(torch.zeros(size, 1, dtype=dtype, device=device))
        except (TypeError, ValueError, RuntimeError, AttributeError) as e:
            refused.append(f"{type(e).__name__}: {e}")
            continue
        if isinstance(made, Tensor) != (convert is _as_tensor) or not hasattr(made, "shape"):
            continue
        if tuple(made.shape) != (size, 1):
            raise ValueError(f"op: expected a product of shape [{size}, 1], got {list(made.shape)}")
        result = torch.as_tensor(made)
        _require_real(result.dtype)
        return Products(functools.partial(_product, op, convert), size, result.dtype, result.device)
    raise TypeError(f"op: {type(op).__name__} multiplies neither a torch tensor nor a numpy array [P, 1]: {refused}")


def _product(op: Any, convert: Callable[[Tensor], Any], X: Tensor) -> Tensor:
    return torch.as_tensor(op @ convert(X)).to(X)


def _as_tensor(X: Tensor) -> Any:
    return X.contiguous()


def _as_array(X: Tensor) -> Any:
    return X.contiguous().numpy()


def _require_real(dtype: torch.dtype) -> None:
    if dtype not in _DTYPES.values():
        raise TypeError(f"op: expected products in torch.float32 or torch.float64, got {dtype}")
