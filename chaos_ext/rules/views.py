"""Rules of what takes numbers to other places: permutations of axes, slices, broadcasts, without copies where possible.

permutation   dz = da permuted,   d(delta_a) = d(delta) permuted back
slice         dz = da[index],     d(delta_a) = 0 with d(delta) at the index
broadcast     dz = da broadcast,  d(delta_a) = the sum of d(delta) over the axes along which a was
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .joints import expand
from .rule import Tangent, sum_to


class Permutation:
    """The axes of a in another order, each counted from the first."""

    path = "layer rule"
    slots: tuple[int | None, ...] = ()

    def __init__(self, order: Sequence[int]) -> None:
        self.order, self.rowwise = tuple(order), order[0] == 0
        self._back = tuple(self.order.index(i) for i in range(len(self.order)))

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        return inputs[0].permute(self.order), None

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [delta.permute(self._back)], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        d = dinputs[0]
        return None if d is None else d.permute(*self.order, len(self.order))

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        return [None if ddelta is None else ddelta.permute(*self._back, len(self.order))], []


class Slice:
    """a[index], each entry of a read at most once.

    Args:
        index: integers, slices and None, one for each axis from the first on.
    """

    path = "layer rule"
    slots: tuple[int | None, ...] = ()

    def __init__(self, index: tuple[Any, ...]) -> None:
        self.index, self.rowwise = index, index[:1] in ((), (slice(None),))

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        return inputs[0][self.index], inputs[0].shape

    def _placed(self, t: Tensor, shape: Sequence[int]) -> Tensor:
        out = t.new_zeros(shape)
        out[self.index] = t
        return out

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [self._placed(delta, saved)], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        return None if dinputs[0] is None else dinputs[0][self.index]

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        return [None if ddelta is None else self._placed(ddelta, (*saved, ddelta.shape[-1]))], []


class Broadcast:
    """The first input repeated along axes; of further inputs only the sizes are read."""

    path = "layer rule"
    slots: tuple[int | None, ...] = ()

    def __init__(self, function: Callable[[Sequence[Tensor]], Tensor], rowwise: bool) -> None:
        self.function, self.rowwise = function, rowwise

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        z = self.function(inputs)
        return z, (inputs[0].shape, z.shape, [None] * (len(inputs) - 1))

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [sum_to(delta, saved[0]), *saved[2]], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        return None if dinputs[0] is None else expand(dinputs[0], *saved[:2])

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        return [None if ddelta is None else sum_to(ddelta, saved[0], columns=True), *saved[2]], []
