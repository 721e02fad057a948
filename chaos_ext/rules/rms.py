"""The rule of RMSNorm: z = gamma xh, xh = r x, r = (mean(x^2) + eps)^(-1/2), with means over the last axes.

dxh = r (dx - xh mean(xh dx)),   dr/r = - r mean(xh dx)
delta_x = r (e - xh q),   e = gamma delta,   q = mean(xh e)
d(delta_x) = (dr/r) delta_x + r (de - dxh q - xh dq),   dq = mean(dxh e + xh de)
(H v)_gamma = sum xh d(delta) + dxh delta
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .rule import Leaf, Tangent, add, column, sum_to


class _Saved(NamedTuple):
    """xh [*x], r with axes of length 1 for those of the mean, gamma in their sizes (None: 1)."""

    xh: Tensor
    r: Tensor
    gamma: Tangent


class RmsNorm:
    """RMSNorm over the last axes.

    Args:
        weight: leaf of gamma.
        axes: how many axes a mean is over.
        eps: added to the mean; None: the resolution of the dtype.
        rowwise: whether there is an axis of samples besides these.
    """

    path, fresh = "layer rule", True

    def __init__(self, weight: Leaf, axes: int, eps: float | None, rowwise: bool) -> None:
        self.weight, self.eps, self.rowwise = weight, eps, rowwise
        self._over = tuple(range(-axes, 0))
        self._over_columns = tuple(range(-axes - 1, -1))
        self.slots: tuple[int | None, ...] = (weight.slot,)

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, _Saved]:
        x, gamma = inputs[0], self.weight(theta)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        r = (x.square().mean(self._over, keepdim=True) + eps).rsqrt()
        xh = x * r
        return xh if gamma is None else xh * gamma, _Saved(xh, r, gamma)

    def _mean(self, t: Tensor) -> Tensor:
        """Of a tangent."""
        return t.mean(self._over_columns, keepdim=True)

    def _normalised(self, saved: _Saved, dx: Tensor) -> Tensor:
        """dxh."""
        xh = column(saved.xh)
        return (dx - xh * self._mean(xh * dx)).mul_(column(saved.r))

    def backward(self, saved: _Saved, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        xh, r, gamma = saved
        e = delta if gamma is None else delta * gamma
        g = None if gamma is None or self.slots[0] is None else sum_to(delta * xh, gamma.shape)
        return [r * (e - xh * (xh * e).mean(self._over, keepdim=True))], [g]

    def tangent_forward(self, saved: _Saved, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        dz: Tangent = None
        if dinputs[0] is not None:
            dz = self._normalised(saved, dinputs[0])
            dz = dz if saved.gamma is None else dz.mul_(column(saved.gamma))
        return dz if dtheta[0] is None else add(dz, dtheta[0] * column(saved.xh))

    def tangent_backward(
        self, saved: _Saved, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        dx, dgamma, gamma = dinputs[0], dtheta[0], saved.gamma
        dxh = None if dx is None else self._normalised(saved, dx)
        de = ddelta if ddelta is None or gamma is None else ddelta * column(gamma)
        de = de if dgamma is None else add(de, dgamma * column(delta))
        product: Tangent = None
        if gamma is not None and self.slots[0] is not None:
            product = None if ddelta is None else ddelta * column(saved.xh)
            product = product if dxh is None else add(product, dxh * column(delta))
            product = None if product is None else sum_to(product, gamma.shape, columns=True)
        return [self._moved(saved, delta, dx, dxh, de)], [product]

    def _moved(self, saved: _Saved, delta: Tensor, dx: Tangent, dxh: Tangent, de: Tangent) -> Tangent:
        """d(delta_x)."""
        xh, r, gamma = column(saved.xh), column(saved.r), saved.gamma
        out = None if de is None else r * (de - xh * self._mean(xh * de))
        if dx is None or dxh is None:
            return out
        e = column(delta if gamma is None else delta * gamma)
        q, turn = self._mean(xh * e), self._mean(xh * dx)
        return add(out, -r * (dxh * q + xh * self._mean(dxh * e)) - r.square() * turn * (e - xh * q))
