"""Whatever can be multiplied with vectors, as a function of blocks of columns."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..curvature.symmetric import Symmetric

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
    """Of an operator of ours, a symmetric matrix, or an object with ``shape`` and ``@`` on tensors or numpy arrays.

    Raises:
        TypeError: something else, or products that are neither float32 nor float64.
        ValueError: not square, or products of another shape.
    """
    if isinstance(op, Symmetric):
        return Products(op.__matmul__, op.shape[0], op.dtype, op.device)
    shape = getattr(op, "shape", None)
    if shape is None or not hasattr(op, "__matmul__"):
        raise TypeError(f"op: expected an object with shape and @, got {type(op).__name__}")
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise ValueError(f"op: expected a square shape (P, P), got {tuple(shape)}")
    size = int(shape[0])
    if isinstance(op, Tensor):
        _require_real(op.dtype)
        matrix = op.detach()
        return Products(lambda X: matrix @ X, size, op.dtype, op.device)
    dtype = getattr(op, "dtype", None)
    if isinstance(dtype, torch.dtype):
        _require_real(dtype)
        return Products(functools.partial(_product, op, _as_tensor), size, dtype, _device_of(op))
    return _probed(op, size)


def _device_of(op: Any) -> torch.device:
    place = getattr(op, "device", "cpu")
    return torch.device(place) if isinstance(place, (str, torch.device)) else torch.device("cpu")


def _probed(op: Any, size: int) -> Products:
    """The kind of arrays that it takes, found by one product of each kind that it may be."""
    hint, device = _DTYPES.get(str(getattr(op, "dtype", ""))), _device_of(op)
    kinds = (_as_array, _as_tensor) if hint else (_as_tensor, _as_array)
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
            raise ValueError(f"op: expected op @ v of shape {(size, 1)}, got {tuple(made.shape)}")
        result = torch.as_tensor(made)
        _require_real(result.dtype)
        return Products(functools.partial(_product, op, convert), size, result.dtype, result.device)
    raise TypeError(f"op: {type(op).__name__} multiplies neither a torch tensor nor a numpy array [P, 1]: {refused}")


def _product(op: Any, convert: Callable[[Tensor], Any], X: Tensor) -> Tensor:
    found, kind = op @ convert(X), "a tensor" if convert is _as_tensor else "an array"
    if not hasattr(found, "shape") or isinstance(found, Tensor) != (convert is _as_tensor):
        raise TypeError(f"op: expected op @ v to be {kind}, got {type(found).__name__}")
    if tuple(found.shape) != tuple(X.shape):
        raise ValueError(f"op: expected op @ v of shape {tuple(X.shape)}, got {tuple(found.shape)}")
    return torch.as_tensor(found).to(X)


def _as_tensor(X: Tensor) -> Any:
    return X.contiguous()


def _as_array(X: Tensor) -> Any:
    return X.contiguous().numpy()


def _require_real(dtype: torch.dtype) -> None:
    if dtype not in _DTYPES.values():
        raise TypeError(f"op: expected dtype float32 or float64, got {dtype}")
