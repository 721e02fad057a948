"""Any symmetric matrix that is known by its products: an operator of ours, another library's, or a tensor."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..base.arguments import cpu_generator
from ..errors import NonFiniteError
from .products import products_of


class Operand:
    """``op`` with its size, and products that are looked at.

    Args:
        op: anything with ``shape`` (n, n) and ``@``, which takes [n, k] tensors or numpy arrays; see ``products_of``.

    Attributes:
        size: n.
        dtype, device: of its products.
        products: how many columns have been multiplied.

    Raises:
        TypeError: no ``shape`` or no ``@``, a dtype that is neither float32 nor float64.
        ValueError: a shape that is not square, products of another shape.
    """

    def __init__(self, op: Any) -> None:
        known = products_of(op)
        self._apply, self.size, self.dtype, self.device = known.apply, known.size, known.dtype, known.device
        self.op, self.products = op, 0

    def __matmul__(self, v: Tensor) -> Tensor:
        """op @ v for v [n, k].

        Raises:
            ValueError: something else than v's shape came back.
            NonFiniteError: NaN or infinity in it.
        """
        found = self._apply(v)
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
