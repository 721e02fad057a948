"""Tensors that users pass to an operator: of the parameters' dtype, on their device, of the shape that is meant."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.parameters import ParameterSpace
from ..errors import UnsupportedError
from .scalar import describe


def require_columns(name: str, v: object, space: ParameterSpace) -> None:
    """Raises TypeError or ValueError unless v is [P] or [P, k]."""
    if not isinstance(v, Tensor) or v.dtype != space.dtype or v.device != space.device:
        raise TypeError(f"{name}: expected a {space.dtype} tensor on {space.device}, got {describe(v)}")
    if v.dim() not in (1, 2) or v.shape[0] != space.size:
        raise ValueError(f"{name}: expected shape [{space.size}] or [{space.size}, k], got {tuple(v.shape)}")


def require_directions(V: object, space: ParameterSpace) -> None:
    """Raises TypeError or ValueError unless V is [P, m] with m of at least 1, in the parameters' dtype or float64."""
    dtypes = (space.dtype, torch.float64)
    if not isinstance(V, Tensor) or V.dtype not in dtypes or V.device != space.device:
        raise TypeError(f"V: expected a {space.dtype} or float64 tensor on {space.device}, got {describe(V)}")
    if V.dim() != 2 or V.shape[0] != space.size or not V.shape[1]:
        raise ValueError(f"V: expected shape [{space.size}, m], got {tuple(V.shape)}")


def require_vector(name: str, v: object, space: ParameterSpace) -> None:
    """Raises TypeError or ValueError unless v is [P]."""
    if not isinstance(v, Tensor) or v.dtype != space.dtype or v.device != space.device:
        raise TypeError(f"{name}: expected a {space.dtype} tensor on {space.device}, got {describe(v)}")
    if tuple(v.shape) != (space.size,):
        raise ValueError(f"{name}: expected shape [{space.size}], got {tuple(v.shape)}")


def require_matrix(name: str, out: object, space: ParameterSpace) -> None:
    """Raises TypeError or ValueError unless out is a contiguous [P, P] that may be written to."""
    fits = isinstance(out, Tensor) and out.dtype == space.dtype and out.device == space.device
    if not isinstance(out, Tensor) or not fits or out.requires_grad:
        raise TypeError(f"{name}: expected a {space.dtype} tensor on {space.device} without grad, got {describe(out)}")
    shape = (space.size, space.size)
    if tuple(out.shape) != shape or not out.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor of shape {shape}, got {tuple(out.shape)}")


def refuse_group(name: str, group: object) -> None:
    """Raises UnsupportedError where an operator of one process is to be that of several."""
    if group is not None:
        raise UnsupportedError(
            f"group: {name} is of the batch of one process, expected None; of several ranks' batches there is the "
            "Hessian: DatasetHessian(model, loss_fn, batches, group=group)"
        )
