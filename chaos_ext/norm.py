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

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

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

    path = "layer rule"

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

    @staticmethod
    def _means(d: Tensor, weights: Tensor, view: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
        """Means of weights * d over each group [B, w, k], for d [B, M, k] and w rows of weights [B, w, M]."""
        total = torch.bmm(weights, d)
        if len(axes) == 1:
            return total / view[-1]
        over_samples = total.view(*view[:2], *total.shape[1:]).sum(0, keepdim=True) / (view[0] * view[-1])
        return over_samples.expand(*view[:2], *total.shape[1:]).reshape(total.shape)

    def _push(self, dx: Tensor, xh: Tensor, r: Tensor, factor: Tensor | None = None) -> Tensor:
        """Tangent of xh (times ``factor`` [*x]) under dx [*x, k]: the same symmetric map.

        Two passes over dx and one of scaling: sums and their subtraction are products with the rows [1, xh].
        """
        scale = r if self.fixed is not None else r.expand(self.group(xh.shape)[0]).reshape(xh.shape)
        scale = scale if factor is None else scale * factor
        if self.fixed is not None:
            return dx * column(scale)
        view, axes = self.group(xh.shape)
        h = xh.view(-1, view[-1])
        basis = torch.stack([torch.ones_like(h), h], 1)
        d = dx.reshape(*h.shape, -1)
        out = torch.baddbmm(d, basis.transpose(1, 2), self._means(d, basis, view, axes), alpha=-1)
        return out.view(dx.shape).mul_(column(scale))

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        xh, r, gamma, shape, _ = saved
        dz: Tangent = None
        if dinputs[0] is not None:
            dz = self._push(dinputs[0], xh, r, gamma)
        dgamma, dbeta = dtheta
        if dgamma is not None:
            dz = add(dz, dgamma.view(*shape, -1) * column(xh))
        if dbeta is not None:
            shifted = dbeta.view(*shape, -1)
            dz = shifted.expand(*xh.shape, dbeta.shape[-1]) if dz is None else dz + shifted
        return dz

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        xh, r, gamma, shape, own = saved
        dx, dgamma = dinputs[0], dtheta[0]
        dxh = None if dx is None else self._push(dx, xh, r)
        products: list[Tangent] = [None, None]
        if self.slots[0] is not None:
            first = None if ddelta is None else _summed(ddelta, xh, shape, own)
            products[0] = first if dxh is None else add(first, _summed(dxh, delta, shape, own))
        if self.slots[1] is not None and ddelta is not None:
            products[1] = _summed(ddelta, torch.ones_like(xh), shape, own)
        e = delta if gamma is None else delta * gamma
        de = ddelta if ddelta is None or gamma is None else ddelta * column(gamma)
        if dgamma is not None:
            de = add(de, dgamma.view(*shape, -1) * column(delta))
        dd_in = None if de is None else self._push(de, xh, r)
        if dx is not None and self.fixed is None:
            assert dxh is not None
            dd_in = add(dd_in, self._curvature(e, dx, dxh, xh, r))
        return [dd_in], products

    def _curvature(self, e: Tensor, dx: Tensor, dxh: Tensor, xh: Tensor, r: Tensor) -> Tensor:
        """What dx changes of the adjoint at fixed e: (dr/r) pull(e) - r (dxh q + xh mean(dxh e))."""
        view, axes = self.group(xh.shape)
        h, flat_e = xh.view(-1, view[-1]), e.reshape(-1, view[-1])
        pulled, rows = self._pull(e, xh, r).reshape(h.shape), r.expand(*view[:-1], 1).reshape(-1, 1, 1)
        d, dh = dx.reshape(*h.shape, -1), dxh.reshape(*h.shape, -1)
        q = (xh.view(view) * e.reshape(view)).mean(axes, keepdim=True).expand(*view[:-1], 1).reshape(-1, 1, 1)
        drr, dq = self._means(d, h.unsqueeze(1), view, axes), self._means(dh, flat_e.unsqueeze(1), view, axes)
        weights = torch.stack([pulled, h], 2) * rows
        out = torch.baddbmm(dh * (rows * q), weights, torch.cat([drr, dq], 1))
        return out.neg_().view(dx.shape)


def _summed(t: Tensor, weights: Tensor, shape: tuple[int, ...], own: torch.Size) -> Tensor:
    """weights * t summed to gamma's own shape, for t [*x, k]; per channel as products, without a temporary."""
    k = t.shape[-1]
    if len(own) == 1 and shape == (1, own[0], *(1 for _ in shape[2:])):
        rows = weights.reshape(len(weights) * own[0], 1, -1)
        return torch.bmm(rows, t.reshape(*rows.shape[::2], k)).view(len(weights), own[0], k).sum(0)
    return (t * column(weights)).sum_to_size(*shape, k).view(*own, k)
