"""The rule of normalisation: BatchNorm (training and eval mode), LayerNorm, GroupNorm.

With means over a set of axes, xc = x - mean(x), r = (mean(xc^2) + eps)^(-1/2), xh = r xc, z = gamma xh + beta:

    dxh  = r (dx - mean dx - xh mean(xh dx))
    dr/r = - r mean(xh dx)
    delta_x = r (e - mean e - xh q),    e = gamma delta,  q = mean(xh e)
    d(delta_x) = (dr/r) delta_x + r (de - mean de - dxh q - xh dq),    dq = mean(dxh e + xh de)

In eval mode BatchNorm is xh = (x - m) r with constants m and r. Batch statistics are part of the function: in training
mode samples interact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ..base.workspace import empty
from .rule import Leaf, Tangent, add, column


class Normalisation:
    """z = gamma * xh + beta.

    Args:
        weight, bias: gamma and beta (their values may be None).
        affine: shape of x -> shape in which gamma and beta broadcast against x.
        group: shape of x -> (shape to view x in, axes of the mean) of the statistics.
        eps: added to the variance.
        rowwise: False where the mean runs over samples.
        fixed: leaves of the mean and variance in eval mode, instead of statistics of x.
    """

    path, fresh = "layer rule", True

    def __init__(
        self,
        weight: Leaf,
        bias: Leaf,
        affine: Callable[[torch.Size], tuple[int, ...]],
        group: Callable[[torch.Size], tuple[tuple[int, ...], tuple[int, ...]]],
        eps: float,
        rowwise: bool,
        fixed: tuple[Leaf, Leaf] | None = None,
    ) -> None:
        self.weight, self.bias, self.affine, self.group, self.eps = weight, bias, affine, group, eps
        self.rowwise, self.fixed = rowwise, fixed
        self.slots: tuple[int | None, ...] = (weight.slot, bias.slot)

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        x = inputs[0]
        shape = self.affine(x.shape)
        if self.fixed is not None:
            mean, variance = (leaf(theta) for leaf in self.fixed)
            assert mean is not None
            assert variance is not None
            r = (variance + self.eps).rsqrt().view(shape)
            xh = (x - mean.view(shape)) * r
        else:
            view, axes = self.group(x.shape)
            xc = x.reshape(view) - x.reshape(view).mean(axes, keepdim=True)
            r = (xc.square().mean(axes, keepdim=True) + self.eps).rsqrt()
            xh = (xc * r).view(x.shape)
        weight, bias = self.weight(theta), self.bias(theta)
        gamma = None if weight is None else weight.view(shape)
        z = xh if gamma is None else xh * gamma
        own = next((p.shape for p in (weight, bias) if p is not None), shape)
        return z if bias is None else z + bias.view(shape), (xh, r, gamma, shape, own)

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        xh, r, gamma, shape, own = saved
        grads: list[Tangent] = [None, None]
        if self.slots[0] is not None:
            grads[0] = (delta * xh).sum_to_size(shape).view(own)
        if self.slots[1] is not None:
            grads[1] = delta.sum_to_size(shape).view(own)
        e = delta if gamma is None else delta * gamma
        return [self._pull(e, xh, r)], grads

    def _pull(self, e: Tensor, xh: Tensor, r: Tensor) -> Tensor:
        """The adjoint of x -> xh at e [*x]."""
        if self.fixed is not None:
            return e * r
        view, axes = self.group(xh.shape)
        e, h = e.reshape(view), xh.view(view)
        return (r * (e - e.mean(axes, keepdim=True) - h * (h * e).mean(axes, keepdim=True))).view(xh.shape)

    def _by_group(self, xh: Tensor) -> bool:
        """Batch statistics: every group has one gamma and one beta, which the operator takes in the same passes."""
        return self.fixed is None and len(self.group(xh.shape)[1]) == 2

    def _layout(self, xh: Tensor) -> tuple[int, int, int]:
        """x as [B, G, M]: groups G, means over B and M."""
        view, axes = self.group(xh.shape)
        return (view[0], view[1], view[2]) if len(axes) == 2 else (1, math.prod(view[:-1]), view[-1])

    def _normalised(self, d: Tangent, saved: Any, affine: Sequence[Tangent] = (None, None, None)) -> Tensor:
        """Tangent of xh under d [*x, k]; with gamma, dgamma and dbeta that of gamma xh + beta, one of each a group."""
        xh, r = saved[:2]
        layout, gamma = self._layout(xh), affine[0]
        k = next(t.shape[-1] for t in (d, *affine[1:]) if t is not None)
        out = empty((*layout, k), xh)
        scale = None if gamma is None else gamma.reshape(-1)
        own = [None if t is None else t.contiguous() for t in affine[1:]]
        _ops.norm_tangent_(out, xh.view(layout), r.reshape(-1), _viewed(d, out.shape), scale, *own)
        return out.view(*xh.shape, k)

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        xh, r, gamma, shape, _ = saved
        dx, (dgamma, dbeta) = dinputs[0], dtheta
        if dx is None and dgamma is None and dbeta is None:
            return None
        if self._by_group(saved[0]):
            return self._normalised(dx, saved, (gamma, dgamma, dbeta))
        dz: Tangent = None
        if dx is not None:
            if self.fixed is not None:
                dz = dx * column(r if gamma is None else r * gamma)
            else:
                dz = self._normalised(dx, saved)
                dz = dz if gamma is None else dz.mul_(column(gamma))
        if dgamma is not None:
            dz = add(dz, dgamma.view(*shape, -1) * column(xh))
        if dbeta is not None:
            shifted = dbeta.view(*shape, -1)
            dz = shifted.expand(*xh.shape, dbeta.shape[-1]).clone() if dz is None else dz.add_(shifted)
        return dz

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        gamma, dx, dgamma = saved[2], dinputs[0], dtheta[0]
        if dx is None and dgamma is None and ddelta is None:
            return [None], [None, None]
        if self._by_group(saved[0]):
            dd_in, products = self._adjoint(saved, delta, dx, ddelta, gamma, dgamma)
            return [dd_in], [p if s is not None else None for p, s in zip(products, self.slots, strict=True)]
        products = self._products(saved, delta, dx, ddelta)
        e = delta if gamma is None else delta * gamma
        de = ddelta if ddelta is None or gamma is None else ddelta * column(gamma)
        if dgamma is not None:
            de = add(de, dgamma.view(*saved[3], -1) * column(delta))
        if self.fixed is not None:
            return [None if de is None else de * column(saved[1])], products
        return [None if dx is None and de is None else self._adjoint(saved, e, dx, de)[0]], products

    def _adjoint(
        self, saved: Any, e: Tensor, dx: Tangent, de: Tangent, gamma: Tangent = None, dgamma: Tangent = None
    ) -> tuple[Tensor, list[Tangent]]:
        """Tangent of what ``_pull`` makes of gamma e, and those of the sums of xh e and of e over each group."""
        xh, r = saved[:2]
        layout = self._layout(xh)
        k = next(t.shape[-1] for t in (dx, de, dgamma) if t is not None)
        out, sums = empty((*layout, k), xh), xh.new_empty(2, layout[1], k)
        scale = None if gamma is None else gamma.reshape(-1)
        plain = (xh.view(layout), r.reshape(-1), e.reshape(layout).contiguous())
        own = None if dgamma is None else dgamma.contiguous()
        wide = _viewed(dx, out.shape), _viewed(de, out.shape)
        _ops.norm_tangent_backward_(out, sums[0], sums[1], *plain, *wide, scale, own)
        return out.view(*xh.shape, k), [sums[0], sums[1]]

    def _products(self, saved: Any, delta: Tensor, dx: Tangent, ddelta: Tangent) -> list[Tangent]:
        """The tangents of the gradients, sum xh delta and sum delta, where gamma varies within a group."""
        xh, r, _, shape, own = saved
        products: list[Tangent] = [None, None]
        if self.slots[0] is not None:
            first = None if ddelta is None else _summed(ddelta, xh, shape, own)
            if dx is not None:
                dxh = dx * column(r) if self.fixed is not None else self._normalised(dx, saved)
                first = add(first, _summed(dxh, delta, shape, own))
            products[0] = first
        if self.slots[1] is not None and ddelta is not None:
            products[1] = _summed(ddelta, torch.ones_like(xh), shape, own)
        return products


def _viewed(t: Tangent, shape: torch.Size) -> Tangent:
    return None if t is None else t.reshape(shape).contiguous()


def _summed(t: Tensor, weights: Tensor, shape: tuple[int, ...], own: torch.Size) -> Tensor:
    """weights * t summed to gamma's own shape, for t [*x, k]; per channel as products, without a temporary."""
    k = t.shape[-1]
    if len(own) == 1 and shape == (1, own[0], *(1 for _ in shape[2:])):
        rows = weights.reshape(len(weights) * own[0], 1, -1)
        return torch.bmm(rows, t.reshape(*rows.shape[::2], k)).view(len(weights), own[0], k).sum(0)
    return (t * column(weights)).sum_to_size(*shape, k).view(*own, k)
