"""Rules of the nodes that connect layers: sums, products, concatenations, and linear maps without parameters.

    sum          z = alpha a + beta b    dz = alpha da + beta db    d(delta_a) = alpha d(delta)
    product      z = a b                 dz = b da + a db           d(delta_a) = b d(delta) + delta db
    linear map   z = L a (+ a number)    dz = L da                  d(delta_a) = L^T d(delta)
    parameter    z = theta_s             dz = dtheta_s              (H v)_s = d(delta)

An operand that was broadcast gets the sum over the axes along which it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from .rule import Leaf, Tangent, add, column, sum_to


class Add:
    """alpha a + beta b, with broadcasting: a residual connection."""

    path, rowwise, fresh = "layer rule", True, True
    slots: tuple[int | None, ...] = ()

    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        self.factors = (alpha, beta)

    def _scaled(self, t: Tensor, which: int) -> Tensor:
        return t if self.factors[which] == 1 else t * self.factors[which]

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        z = self._scaled(inputs[0], 0) + self._scaled(inputs[1], 1)
        return z, (inputs[0].shape, inputs[1].shape, z.shape)

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [sum_to(self._scaled(delta, i), saved[i]) for i in (0, 1)], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        parts = [None if d is None else expand(self._scaled(d, i), saved[i], saved[2]) for i, d in enumerate(dinputs)]
        dz = add(*parts)
        # One operand alone, broadcast: a view of what its tangent is.
        return dz.clone() if any(dz is p for p in parts) and dz is not None else dz

    def tangent_forward_(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        """Into the first tangent where that has the size of the sum."""
        a, b = dinputs
        if a is None or b is None or self.factors[0] != 1 or saved[0] != saved[2]:
            return self.tangent_forward(saved, dinputs, dtheta)
        return a.add_(expand(b, saved[1], saved[2]), alpha=self.factors[1])

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        if ddelta is None:
            return [None, None], []
        return [sum_to(self._scaled(ddelta, i), saved[i], columns=True) for i in (0, 1)], []


def expand(d: Tensor, shape: torch.Size, target: torch.Size) -> Tensor:
    """The tangent of a value of ``shape`` broadcast to ``target``."""
    if shape == target:
        return d
    return d.reshape(*(1 for _ in target[len(shape) :]), *d.shape).expand(*target, d.shape[-1])


class Multiply:
    """a * b, with broadcasting."""

    path, rowwise = "layer rule", True
    slots: tuple[int | None, ...] = ()

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        z = inputs[0] * inputs[1]
        return z, (*inputs, z.shape)

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        a, b, _ = saved
        return [sum_to(b * delta, a.shape), sum_to(a * delta, b.shape)], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        a, b, shape = saved
        da, db = dinputs
        dz = None if da is None else expand(da, a.shape, shape) * column(b)
        return dz if db is None else add(dz, expand(db, b.shape, shape) * column(a))

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        out: list[Tangent] = []
        for own, i in ((saved[0], 1), (saved[1], 0)):
            other, d = saved[i], dinputs[i]
            total = None if ddelta is None else ddelta * column(other)
            if d is not None:
                total = add(total, expand(d, other.shape, saved[2]) * column(delta))
            out.append(None if total is None else sum_to(total, own.shape, columns=True))
        return out, []


class Cat:
    """Concatenation along one axis."""

    path = "layer rule"
    slots: tuple[int | None, ...] = ()

    def __init__(self, dim: int) -> None:
        self.dim, self.rowwise = dim, dim > 0

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        return torch.cat(list(inputs), self.dim), [t.shape for t in inputs]

    def _split(self, saved: Any, t: Tensor) -> list[Tensor]:
        dim = self.dim if self.dim >= 0 else self.dim + len(saved[0])
        return list(t.split([s[dim] for s in saved], dim))

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return list(self._split(saved, delta)), []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        known = next((d for d in dinputs if d is not None), None)
        if known is None:
            return None
        dim = self.dim if self.dim >= 0 else self.dim + len(saved[0])
        full = [known.new_zeros(*s, known.shape[-1]) if d is None else d for s, d in zip(saved, dinputs, strict=True)]
        return torch.cat(full, dim)

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        return ([None] * len(saved) if ddelta is None else list(self._split(saved, ddelta))), []


class Reshape:
    """The numbers of the first input in another shape; of further inputs only the sizes are read."""

    path, rowwise = "layer rule", True
    slots: tuple[int | None, ...] = ()

    def __init__(self, function: Callable[[Sequence[Tensor]], Tensor]) -> None:
        self.function = function

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        z = self.function(inputs)
        return z, (inputs[0].shape, z.shape, [None] * (len(inputs) - 1))

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [delta.reshape(saved[0]), *saved[2]], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        d = dinputs[0]
        return None if d is None else d.reshape(*saved[1], d.shape[-1])

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        return [None if ddelta is None else ddelta.reshape(*saved[0], ddelta.shape[-1]), *saved[2]], []


class LinearMap:
    """z = L a for a linear function of one tensor: slices, transposes, means, average pooling, interpolation."""

    path = "layer rule"
    slots: tuple[int | None, ...] = ()

    def __init__(self, function: Callable[[Tensor], Tensor], rowwise: bool) -> None:
        self.function, self.rowwise = function, rowwise

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        return self.function(inputs[0]), inputs[0]

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [vjp(self.function, saved)[1](delta)[0]], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        d = dinputs[0]
        return None if d is None else vmap(self.function, -1, -1)(d)

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        if ddelta is None:
            return [None], []
        transposed = vjp(self.function, saved)[1]
        return [vmap(lambda d: transposed(d)[0], -1, -1)(ddelta)], []


class Parameter:
    """A parameter or buffer that forward itself reads, as a value."""

    path, rowwise = "layer rule", False

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        self.slots: tuple[int | None, ...] = (leaf.slot,)

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        value = self.leaf(theta)
        assert value is not None
        return value, None

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [], [delta]

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        return dtheta[0]

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        return [], [ddelta]


class Affine:
    """z = factor a + shift, with numbers."""

    path, rowwise = "layer rule", True
    slots: tuple[int | None, ...] = ()

    def __init__(self, factor: float, shift: float) -> None:
        self.factor, self.shift = factor, shift

    def _scaled(self, t: Tangent) -> Tangent:
        return t if t is None or self.factor == 1 else t * self.factor

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        z = inputs[0] * self.factor
        return z + self.shift if self.shift else z, None

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [self._scaled(delta)], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        return self._scaled(dinputs[0])

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        return [self._scaled(ddelta)], []
