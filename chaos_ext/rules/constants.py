"""Rules of what has no derivative, and of choices that such a value makes.

    constant    z = c, computed by the forward from no parameter, or of integers or booleans
    choice      z = a where m, else b, with a mask m:   dz = m da + (1 - m) db,   d(delta_a) = m d(delta)

An operand that was broadcast gets the sum over the axes along which it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base.torch_internals import without_grad
from .joints import expand
from .rule import Leaf, Tangent, add, column, sum_to


class Constant:
    """z = function(inputs, leaves), which no derivative passes.

    Args:
        function: of the list of inputs and the list of leaf values.
        leaves: the parameters and buffers that it reads.
    """

    path, rowwise = "layer rule", False
    slots: tuple[int | None, ...] = ()

    def __init__(
        self, function: Callable[[list[Tensor], list[Tensor | None]], Tensor], leaves: Sequence[Leaf] = ()
    ) -> None:
        self.function, self.leaves = function, tuple(leaves)

    @without_grad
    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        leaves = [leaf(theta) for leaf in self.leaves]
        # Clones: a function may write to its input in place.
        z = self.function([t.clone() for t in inputs], [None if t is None else t.clone() for t in leaves])
        return z.detach(), len(inputs)

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [None] * saved, []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        return None

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        return [None] * saved, []


class Choice:
    """where(m, a, b) of inputs m, a, b, with broadcasting; a number in the place of a or b is not an input.

    Args:
        first, second: the numbers in the places of a and b; None: a tensor.
    """

    path, rowwise = "layer rule", True
    slots: tuple[int | None, ...] = ()

    def __init__(self, first: float | None = None, second: float | None = None) -> None:
        self.numbers = (first, second)

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        given = iter(inputs[1:])
        a, b = (next(given) if n is None else n for n in self.numbers)
        z = torch.where(inputs[0], a, b)
        mask = inputs[0].expand(z.shape)
        kept = [m.to(z.dtype) for m, n in zip((mask, ~mask), self.numbers, strict=True) if n is None]
        return z, (kept, [t.shape for t in inputs[1:]], z.shape)

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        kept, shapes, _ = saved
        return [None, *(sum_to(delta * m, s) for m, s in zip(kept, shapes, strict=True))], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        dz: Tangent = None
        for d, m, shape in zip(dinputs[1:], *saved[:2], strict=True):
            dz = dz if d is None else add(dz, expand(d, shape, saved[2]) * column(m))
        return dz

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        kept, shapes, _ = saved
        if ddelta is None:
            return [None] * (1 + len(kept)), []
        return [None, *(sum_to(ddelta * column(m), s, columns=True) for m, s in zip(kept, shapes, strict=True))], []
