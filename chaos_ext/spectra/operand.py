"""Any symmetric matrix that is known by its products: an operator of ours, another library's, or a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..base.arguments import cpu_generator
from ..errors import NonFiniteError

FLOATS = (torch.float32, torch.float64)


class Operand:
    """``op`` with its size, and products that are looked at.

    Args:
        op: anything with ``shape`` (n, n) and ``@``, which takes [n, k] tensors. Its ``dtype`` and ``device`` are those
            of its products; where it has none, torch's default dtype and the CPU.

    Attributes:
        size: n.
        dtype, device: of its products.
        products: how many columns have been multiplied.

    Raises:
        TypeError: no ``shape`` or no ``@``, a dtype that is neither float32 nor float64.
        ValueError: a shape that is not square.
    """

    def __init__(self, op: Any) -> None:
        shape = getattr(op, "shape", None)
        if not isinstance(shape, Sequence) or not hasattr(type(op), "__matmul__"):
            raise TypeError(f"op: expected an object with shape and @, got {type(op).__name__}")
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
            raise ValueError(f"op: expected a square shape (n, n), got {tuple(shape)}")
        self.op, self.size, self.products = op, int(shape[0]), 0
        dtype = getattr(op, "dtype", None)
        self.dtype: torch.dtype = dtype if isinstance(dtype, torch.dtype) else torch.get_default_dtype()
        if self.dtype not in FLOATS:
            raise TypeError(f"op: expected dtype float32 or float64, got {self.dtype}")
        self.device = torch.device(getattr(op, "device", "cpu"))

    def __matmul__(self, v: Tensor) -> Tensor:
        """op @ v for v [n, k].

        Raises:
            TypeError, ValueError: something else than a tensor of v's shape came back.
            NonFiniteError: NaN or infinity in it.
        """
        found = self.op @ v
        if not isinstance(found, Tensor):
            raise TypeError(f"op: expected op @ v to be a tensor, got {type(found).__name__}")
        if found.shape != v.shape:
            raise ValueError(f"op: expected op @ v of shape {tuple(v.shape)}, got {tuple(found.shape)}")
        if not bool(torch.isfinite(found).all()):
            raise NonFiniteError("op: products with it have NaN or inf")
        self.products += v.shape[1]
        return found.detach()

    def signs(self, columns: int, generator: torch.Generator | None) -> Tensor:
        """Random +1 and -1 [n, columns], of the generator alone."""
        drawn = torch.randint(0, 2, (self.size, columns), generator=cpu_generator(generator), device="cpu")
        return (2 * drawn - 1).to(self.device, self.dtype)


def scale_of(t: Tensor) -> float:
    """A power of two near the largest entry; 1 of zeros. Of t divided by it, squares neither vanish nor overflow."""
    largest = float(t.abs().max()) if t.numel() else 0.0
    return 2.0 ** (math.frexp(largest)[1] - 1) if largest else 1.0


def norms(t: Tensor) -> Tensor:
    """Of the columns [k], also where the squares of their entries vanish or overflow."""
    largest = t.abs().amax(0)
    safe = torch.where(largest > 0, largest, 1.0)
    return (t / safe).norm(dim=0) * safe
