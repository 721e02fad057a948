"""The rule of products of two values that sum over axes: matmul, bmm, einsum of two operands.

z = B(a, b) is linear in each, so with the adjoints B_a (delta, b) and B_b (delta, a), contractions as well,

    dz = B(da, b) + B(a, db),   d(delta_a) = B_a(d(delta), b) + B_a(delta, db),   and likewise for b.

An operand that was broadcast gets the sum over the axes along which it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .rule import NotLayerwise, Tangent, add, sum_to

_COLUMN = "Z"


class Contraction:
    """einsum("first,second->out"), a letter for each axis.

    Args:
        first, second, out: the letters of the operands and of the result. Within one of them no letter comes twice, and
            each letter is in two of them at least.

    Raises:
        NotLayerwise: the letters are others.
    """

    path = "layer rule"
    slots: tuple[int | None, ...] = ()

    def __init__(self, first: str, second: str, out: str) -> None:
        terms = (first, second, out)
        if any(len(set(t)) < len(t) or _COLUMN in t for t in terms):
            raise NotLayerwise("an axis comes twice in one operand")
        if any(sum(c in t for t in terms) < 2 for c in set("".join(terms))):
            raise NotLayerwise("an axis of one operand alone is summed")
        self.first, self.second, self.out = terms
        self.rowwise = bool(out) and first[:1] == second[:1] == out[0]

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        a, b = inputs
        return torch.einsum(f"{self.first},{self.second}->{self.out}", a, b), (a, b)

    def _product(self, a: Tensor, b: Tensor, which: int) -> Tensor:
        """B with columns on one operand, the first (0) or the second (1)."""
        first, second = (self.first + _COLUMN, self.second) if which == 0 else (self.first, self.second + _COLUMN)
        return torch.einsum(f"{first},{second}->{self.out}{_COLUMN}", a, b)

    def _adjoint(self, delta: Tensor, other: Tensor, which: int, columns: str = "") -> Tensor:
        """B_a (which = 0) or B_b at delta and the other operand; ``columns``: "delta" or "other" has them."""
        own, others = (self.first, self.second) if which == 0 else (self.second, self.first)
        k = _COLUMN if columns else ""
        left, right = self.out + k * (columns == "delta"), others + k * (columns == "other")
        return torch.einsum(f"{left},{right}->{own}{k}", delta, other)

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [sum_to(self._adjoint(delta, saved[1 - i], i), saved[i].shape) for i in (0, 1)], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        (a, b), (da, db) = saved, dinputs
        dz = None if da is None else self._product(da, b, 0)
        return dz if db is None else add(dz, self._product(a, db, 1))

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        out: list[Tangent] = []
        for i in (0, 1):
            other, d = saved[1 - i], dinputs[1 - i]
            total = None if ddelta is None else self._adjoint(ddelta, other, i, "delta")
            if d is not None:
                total = add(total, self._adjoint(delta, d, i, "other"))
            out.append(None if total is None else sum_to(total, saved[i].shape, columns=True))
        return out, []


def product_letters(first: int, second: int) -> tuple[str, str, str]:
    """The letters of ``matmul`` for operands with so many axes, those before the last two broadcast."""
    batch = "abdefghjklmnopqst"  # without those of rows, columns and what is summed
    n = max(first, second, 2) - 2
    rows, columns = ("r" if first > 1 else ""), ("c" if second > 1 else "")
    own = [batch[n - max(axes - 2, 0) : n] for axes in (first, second)]
    return own[0] + rows + "i", own[1] + "i" + columns, batch[:n] + rows + columns
