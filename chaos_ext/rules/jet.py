"""Jets: a value with its first two derivatives along a line, and the arithmetic of these (univariate Taylor, order 2).

Of theta + eps v every value of a program is a function of eps. With a dot for d/d eps at 0, a layer that is linear, a
product, and an activation give

    (L a). = L a.                   (L a).. = L a..
    (a b). = a. b + a b.            (a b).. = a.. b + 2 a. b. + a b..
    phi(a). = phi'(a) a.            phi(a).. = phi''(a) a.^2 + phi'(a) a..

All of it is torch's differentiable arithmetic on plain tensors, so that one way back through it, a first derivative,
gives the derivative of a second one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .rule import Tangent, add


class Jet(NamedTuple):
    """A value, its derivative and its second derivative along a line (None: zero); all three of one shape."""

    value: Tensor
    first: Tangent = None
    second: Tangent = None


def mapped(function: Callable[[Tensor], Tensor], a: Jet) -> Jet:
    """Of a linear function."""
    return Jet(*(None if t is None else function(t) for t in a))  # type: ignore[arg-type]


def product(function: Callable[[Tensor, Tensor], Tensor], a: Jet, b: Jet) -> Jet:
    """Of a bilinear function."""

    def of(s: Tangent, t: Tangent) -> Tangent:
        return None if s is None or t is None else function(s, t)

    mixed = of(a.first, b.first)
    second = add(of(a.second, b.value), of(a.value, b.second))
    return Jet(
        function(a.value, b.value),
        add(of(a.first, b.value), of(a.value, b.first)),
        second if mixed is None else add(second, 2 * mixed),
    )


def times(a: Jet, b: Jet) -> Jet:
    """The product of the numbers."""
    return product(torch.mul, a, b)


def plus(a: Jet, b: Jet | None) -> Jet:
    """The sum, with broadcasting."""
    if b is None:
        return a
    value = a.value + b.value
    parts = (add(s, t) for s, t in zip(a[1:], b[1:], strict=True))
    return Jet(value, *(None if t is None else t.expand(value.shape) for t in parts))


def composed(a: Jet, value: Tensor, slope: Tensor, curvature: Tangent = None) -> Jet:
    """Of an elementwise function with these derivatives at a (None: zero)."""
    first = None if a.first is None else slope * a.first
    second = None if a.second is None else slope * a.second
    if a.first is not None and curvature is not None:
        second = add(second, curvature * a.first.square())
    return Jet(value, first, second)
