"""The rule of three-dimensional convolutions: planes that a kernel sees together become channels of one.

With u the gathering of a [N, C, D, H, W] into planes [N D', C kd, H, W], those that an output plane sees side by side,
and the weight [O, C/g, kd, kh, kw] seen as [O, C kd / g, kh, kw], the convolution is the two-dimensional one of u(a); u
is linear and passes tangents on, its adjoint adds planes up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .conv import Convolution
from .rule import Leaf, Tangent


class Depth(NamedTuple):
    """How the kernel moves along the first of the three axes."""

    kernel: int
    stride: int
    padding: int
    dilation: int

    def planes(self, size: int) -> int:
        """Of the output."""
        return (size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def seen(self, tap: int, planes: int) -> slice:
        """The padded planes that one tap of the kernel sees."""
        start = tap * self.dilation
        return slice(start, start + (planes - 1) * self.stride + 1, self.stride)

    def gathered(self, a: Tensor) -> Tensor:
        """u(a), [N D', C kd, H, W], also of columns [N, C, D, H, W, k]."""
        planes = self.planes(a.shape[2])
        padded = F.pad(a, (0, 0) * (a.dim() - 3) + (self.padding, self.padding)) if self.padding else a
        taps = torch.stack([padded[:, :, self.seen(t, planes)] for t in range(self.kernel)], 2)
        return taps.movedim(3, 1).flatten(2, 3).flatten(0, 1)

    def spread(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """The adjoint of u: cotangents of a [*shape], also of columns."""
        n, channels, size = shape[:3]
        planes = self.planes(size)
        taps = u.unflatten(0, (n, planes)).unflatten(2, (channels, self.kernel)).movedim(1, 3)
        out = u.new_zeros((n, channels, size + 2 * self.padding, *u.shape[2:]))
        for t in range(self.kernel):
            out[:, :, self.seen(t, planes)] += taps[:, :, t]
        return out[:, :, self.padding : self.padding + size]


class _Planar:
    """The weight as one of planes."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf, self.slot = leaf, leaf.slot

    def __call__(self, theta: Sequence[Tensor]) -> Tensor:
        weight = self.leaf(theta)
        assert weight is not None
        return weight.flatten(1, 2)


class VolumeConvolution:
    """z = W * a + b on volumes.

    Args:
        weight: its leaf.
        planar: makes the two-dimensional rule of a leaf of planar weights.
        depth: how the kernel moves along the first axis.
    """

    path, rowwise = "layer rule", True

    def __init__(self, weight: Leaf, planar: Any, depth: Depth) -> None:
        self.depth = depth
        self.inner: Convolution = planar(_Planar(weight))
        self.slots: tuple[int | None, ...] = self.inner.slots

    @property
    def constant_input(self) -> bool:
        return self.inner.constant_input

    @constant_input.setter
    def constant_input(self, value: bool) -> None:
        self.inner.constant_input = value

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        a = inputs[0]
        z, saved = self.inner.forward([self.depth.gathered(a)], theta)
        return self._volumes(z, len(a)), (saved, a.shape)

    def _volumes(self, z: Tensor, n: int) -> Tensor:
        """[N D', O, H', W'] as [N, O, D', H', W'], also of columns."""
        return z.unflatten(0, (n, -1)).movedim(1, 2)

    def _planes(self, z: Tensor) -> Tensor:
        return z.movedim(2, 1).flatten(0, 1)

    def _back(self, found: tuple[list[Tangent], list[Tangent]], shape: Sequence[int]) -> tuple[list[Any], list[Any]]:
        (d_in,), (weight, bias) = found
        spread = None if d_in is None else self.depth.spread(d_in, shape)
        return [spread], [None if weight is None else weight.unflatten(1, (-1, self.depth.kernel)), bias]

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        inner, shape = saved
        return self._back(self.inner.backward(inner, self._planes(delta)), shape)

    def _tangents(self, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> tuple[list[Tangent], list[Tangent]]:
        da, (dweight, dbias) = dinputs[0], dtheta
        gathered = None if da is None else self.depth.gathered(da)
        return [gathered], [None if dweight is None else dweight.flatten(1, 2), dbias]

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        inner, shape = saved
        dz = self.inner.tangent_forward(inner, *self._tangents(dinputs, dtheta))
        return None if dz is None else self._volumes(dz, shape[0])

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        inner, shape = saved
        own, dplanes = self._planes(delta), None if ddelta is None else self._planes(ddelta)
        return self._back(self.inner.tangent_backward(inner, own, *self._tangents(dinputs, dtheta), dplanes), shape)
