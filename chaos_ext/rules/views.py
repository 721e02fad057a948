"""Rules of what takes numbers to other places: permutations of axes, slices, broadcasts, without copies where possible.

permutation   dz = da permuted,   d(delta_a) = d(delta) permuted back
slice         dz = da[index],     d(delta_a) = 0 with d(delta) at the index
broadcast     dz = da broadcast,  d(delta_a) = the sum of d(delta) over the axes along which a was
reading       dz = da[indices],   d(delta_a) = 0 with d(delta) added at the indices
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .joints import expand
from .rule import Leaf, Tangent, sum_to


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


class Reading:
    """Entries of one input at places that further inputs and buffers name, each read any number of times.

    Args:
        function: of the list of inputs and the list of leaf values.
        which: the input that is read; all others hold indices.
        leaves: buffers that hold indices.
    """

    path, rowwise = "layer rule", False
    slots: tuple[int | None, ...] = ()

    def __init__(
        self, function: Callable[[list[Tensor], list[Tensor | None]], Tensor], which: int, leaves: Sequence[Leaf]
    ) -> None:
        self.function, self.which, self.leaves = function, which, tuple(leaves)

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        a, leaves = inputs[self.which], [leaf(theta) for leaf in self.leaves]
        # The number of each place, so that columns are read and cotangents added without asking the function again.
        numbers = torch.arange(a.numel(), dtype=torch.float64, device=a.device).view(a.shape)
        given = [numbers if i == self.which else t for i, t in enumerate(inputs)]
        read = self.function(given, leaves).long()
        return a.reshape(-1)[read], (read, a.shape, len(inputs))

    def _placed(self, saved: Any, t: Tensor, columns: tuple[int, ...]) -> list[Tangent]:
        read, shape, count = saved
        out = t.new_zeros(shape.numel(), *columns).index_add_(0, read.reshape(-1), t.reshape(-1, *columns))
        return [out.view(*shape, *columns) if i == self.which else None for i in range(count)]

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return self._placed(saved, delta, ()), []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        d = dinputs[self.which]
        return None if d is None else d.reshape(-1, d.shape[-1])[saved[0]]

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        return ([None] * saved[2] if ddelta is None else self._placed(saved, ddelta, ddelta.shape[-1:])), []
