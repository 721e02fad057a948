"""The rules of normalisation: BatchNorm (training and eval mode), LayerNorm, GroupNorm.

With means over a set of axes, xc = x - mean(x), r = (mean(xc^2) + eps)^(-1/2), xh = r xc, z = gamma xh + beta:

    dxh  = r (dx - mean dx - xh mean(xh dx))
    dr/r = - r mean(xh dx)
    delta_x = r (e - mean e - xh q),    e = gamma delta,  q = mean(xh e)
    d(delta_x) = (dr/r) delta_x + r (de - mean de - dxh q - xh dq),    dq = mean(dxh e + xh de)
    (H v)_gamma = sum xh d(delta) + dxh delta,    (H v)_beta = sum d(delta)

Three rules differ in what the mean runs over. ``FixedNorm``: nothing, xh = (x - m) r with constants m and r.
``GroupStatistics``: samples and positions, so that samples interact; a group is a channel and has one gamma and one
beta, which the native operators take in the same passes. ``RowStatistics``: entries of one sample, each with its gamma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _ops
from ..base.workspace import empty
from .rule import Leaf, Tangent, add, column, sum_to


class Normalised(NamedTuple):
    """What ``forward`` leaves to the other rules.

    Attributes:
        xh: [*x].
        r: one for each group, in a shape that broadcasts against x viewed in groups.
        gamma: in ``shape`` (None: 1).
        shape: in which gamma and beta broadcast against x.
        own: the shape of gamma and beta themselves.
    """

    xh: Tensor
    r: Tensor
    gamma: Tangent
    shape: tuple[int, ...]
    own: tuple[int, ...]


def _channels(shape: torch.Size) -> tuple[int, int, int]:
    return shape[0], shape[1], shape[2:].numel()


class FixedNorm:
    """BatchNorm in eval mode, on x [N, C, ...]: the mean and variance are buffers."""

    path, fresh, rowwise = "layer rule", True, True
    layout = staticmethod(_channels)

    def __init__(self, weight: Leaf, bias: Leaf, mean: Leaf, variance: Leaf, eps: float) -> None:
        self.weight, self.bias, self.mean, self.variance, self.eps = weight, bias, mean, variance, eps
        self.slots: tuple[int | None, ...] = (weight.slot, bias.slot)

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Normalised]:
        x, mean, variance = inputs[0], self.mean(theta), self.variance(theta)
        assert mean is not None
        assert variance is not None
        shape = by_channel(x.shape)
        r = (variance + self.eps).rsqrt().view(shape)
        return _affine((x - mean.view(shape)) * r, r, self.weight(theta), self.bias(theta), shape)

    def backward(self, saved: Normalised, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [_scaled(saved, delta) * saved.r], _gradients(self.slots, saved, delta)

    def tangent_forward(self, saved: Normalised, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        dx, r, gamma = dinputs[0], saved.r, saved.gamma
        dz = None if dx is None else dx * column(r if gamma is None else r * gamma)
        return _moved(dz, saved, dtheta)

    def tangent_backward(
        self, saved: Normalised, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        r = column(saved.r)
        products = _products(self.slots, saved, delta, dinputs[0], ddelta, lambda dx: dx * r)
        de = _scaled_tangent(saved, delta, dtheta[0], ddelta)
        return [None if de is None else de * r], products


class GroupStatistics:
    """BatchNorm in training mode, on x [N, C, ...] as N x C x M: a group is a channel, with means over N and M."""

    path, fresh, rowwise = "layer rule", True, False
    layout = staticmethod(_channels)

    def __init__(self, weight: Leaf, bias: Leaf, eps: float) -> None:
        self.weight, self.bias, self.eps = weight, bias, eps
        self.slots: tuple[int | None, ...] = (weight.slot, bias.slot)

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Normalised]:
        x = inputs[0]
        xh, r = _normalise(x, self.layout(x.shape), (0, 2), self.eps)
        return _affine(xh, r, self.weight(theta), self.bias(theta), by_channel(x.shape))

    def backward(self, saved: Normalised, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        gradients = _gradients(self.slots, saved, delta)
        return [_adjoint(saved, _scaled(saved, delta), self.layout(saved.xh.shape), (0, 2))], gradients

    def tangent_forward(self, saved: Normalised, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        if dinputs[0] is None and dtheta[0] is None and dtheta[1] is None:
            return None
        return _tangent(saved, self.layout(saved.xh.shape), dinputs[0], saved.gamma, *dtheta)

    def tangent_backward(
        self, saved: Normalised, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        dx, dgamma = dinputs[0], dtheta[0]
        if dx is None and dgamma is None and ddelta is None:
            return [None], [None, None]
        layout = self.layout(saved.xh.shape)
        dd_in, sums = _adjoint_tangent(saved, layout, delta, dx, ddelta, saved.gamma, dgamma)
        return [dd_in], [p if s is not None else None for p, s in zip(sums, self.slots, strict=True)]


class RowStatistics:
    """LayerNorm and GroupNorm: means over the last axis of a view of x.

    Args:
        weight, bias: leaves of gamma and beta (their values may be None).
        affine: shape of x -> shape in which gamma and beta broadcast against x.
        view: shape of x -> shape with the entries of a group as its last axis.
        eps: added to the variance.
        rowwise: whether x has an axis of samples besides those of a group.
    """

    path, fresh = "layer rule", True

    def __init__(
        self,
        weight: Leaf,
        bias: Leaf,
        affine: Callable[[torch.Size], tuple[int, ...]],
        view: Callable[[torch.Size], tuple[int, ...]],
        eps: float,
        rowwise: bool,
    ) -> None:
        self.weight, self.bias, self.affine, self.view, self.eps = weight, bias, affine, view, eps
        self.rowwise = rowwise
        self.slots: tuple[int | None, ...] = (weight.slot, bias.slot)

    def layout(self, shape: torch.Size) -> tuple[int, int, int]:
        *rows, entries = self.view(shape)
        return 1, math.prod(rows), entries

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Normalised]:
        x = inputs[0]
        xh, r = _normalise(x, self.view(x.shape), (-1,), self.eps)
        return _affine(xh, r, self.weight(theta), self.bias(theta), self.affine(x.shape))

    def backward(self, saved: Normalised, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        gradients = _gradients(self.slots, saved, delta)
        return [_adjoint(saved, _scaled(saved, delta), self.view(saved.xh.shape), (-1,))], gradients

    def tangent_forward(self, saved: Normalised, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        dz: Tangent = None
        if dinputs[0] is not None:
            dz = _tangent(saved, self.layout(saved.xh.shape), dinputs[0])
            dz = dz if saved.gamma is None else dz.mul_(column(saved.gamma))
        return _moved(dz, saved, dtheta)

    def tangent_backward(
        self, saved: Normalised, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        dx, dgamma = dinputs[0], dtheta[0]
        if dx is None and dgamma is None and ddelta is None:
            return [None], [None, None]
        layout = self.layout(saved.xh.shape)
        products = _products(self.slots, saved, delta, dx, ddelta, lambda dx: _tangent(saved, layout, dx))
        e, de = _scaled(saved, delta), _scaled_tangent(saved, delta, dgamma, ddelta)
        return [_adjoint_tangent(saved, layout, e, dx, de)[0]], products


def by_channel(shape: torch.Size) -> tuple[int, ...]:
    """The shape in which [C] broadcasts against x [N, C, ...]."""
    return (1, shape[1], *(1 for _ in shape[2:]))


def _normalise(x: Tensor, view: tuple[int, ...], axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """xh [*x] and r, with means over the axes of the view."""
    xc = x.reshape(view) - x.reshape(view).mean(axes, keepdim=True)
    r = (xc.square().mean(axes, keepdim=True) + eps).rsqrt()
    return (xc * r).contiguous().view(x.shape), r


def _affine(xh: Tensor, r: Tensor, weight: Tangent, bias: Tangent, shape: tuple[int, ...]) -> tuple[Tensor, Normalised]:
    """z = gamma xh + beta, with what ``forward`` saves."""
    gamma = None if weight is None else weight.view(shape)
    z = xh if gamma is None else xh * gamma
    own = next((p.shape for p in (weight, bias) if p is not None), shape)
    return z if bias is None else z + bias.view(shape), Normalised(xh, r, gamma, shape, own)


def _gradients(slots: Sequence[int | None], saved: Normalised, delta: Tensor) -> list[Tangent]:
    """Those of gamma and beta: sum xh delta and sum delta."""
    gamma = None if slots[0] is None else sum_to(delta * saved.xh, saved.shape).view(saved.own)
    beta = None if slots[1] is None else sum_to(delta, saved.shape).view(saved.own)
    return [gamma, beta]


def _scaled(saved: Normalised, delta: Tensor) -> Tensor:
    """e = gamma delta."""
    return delta if saved.gamma is None else delta * saved.gamma


def _scaled_tangent(saved: Normalised, delta: Tensor, dgamma: Tangent, ddelta: Tangent) -> Tangent:
    """de = gamma d(delta) + dgamma delta."""
    de = ddelta if ddelta is None or saved.gamma is None else ddelta * column(saved.gamma)
    return de if dgamma is None else add(de, dgamma.view(*saved.shape, -1) * column(delta))


def _adjoint(saved: Normalised, e: Tensor, view: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    """delta_x = r (e - mean e - xh mean(xh e)), with means over the axes of the view."""
    e, h = e.reshape(view), saved.xh.view(view)
    return (saved.r * (e - e.mean(axes, keepdim=True) - h * (h * e).mean(axes, keepdim=True))).view(saved.xh.shape)


def _moved(dz: Tangent, saved: Normalised, dtheta: Sequence[Tangent]) -> Tangent:
    """dz, with dgamma xh + dbeta added to it (in its memory)."""
    dgamma, dbeta = dtheta
    if dgamma is not None:
        dz = add(dz, dgamma.view(*saved.shape, -1) * column(saved.xh))
    if dbeta is not None:
        shifted = dbeta.view(*saved.shape, -1)
        dz = shifted.expand(*saved.xh.shape, dbeta.shape[-1]).clone() if dz is None else dz.add_(shifted)
    return dz


def _tangent(
    saved: Normalised,
    layout: tuple[int, int, int],
    dx: Tangent,
    gamma: Tangent = None,
    dgamma: Tangent = None,
    dbeta: Tangent = None,
) -> Tensor:
    """dxh [*x, k] for x as [B, G, M], means over B and M; with gamma and its tangents [G, k], d(gamma xh + beta)."""
    k = next(t.shape[-1] for t in (dx, dgamma, dbeta) if t is not None)
    out = empty((*layout, k), saved.xh)
    own = _viewed(gamma, (-1,)), _viewed(dgamma, (layout[1], k)), _viewed(dbeta, (layout[1], k))
    _ops.norm_tangent_(out, saved.xh.view(layout), saved.r.reshape(-1), _viewed(dx, out.shape), *own)
    return out.view(*saved.xh.shape, k)


def _adjoint_tangent(
    saved: Normalised,
    layout: tuple[int, int, int],
    e: Tensor,
    dx: Tangent,
    de: Tangent,
    gamma: Tangent = None,
    dgamma: Tangent = None,
) -> tuple[Tensor, list[Tangent]]:
    """Tangent of what ``_adjoint`` makes of gamma e, and those of the sums of xh e and of e over each group."""
    k = next(t.shape[-1] for t in (dx, de, dgamma) if t is not None)
    out, sums = empty((*layout, k), saved.xh), saved.xh.new_empty(2, layout[1], k)
    plain = saved.xh.view(layout), saved.r.reshape(-1), e.reshape(layout).contiguous()
    wide = _viewed(dx, out.shape), _viewed(de, out.shape)
    _ops.norm_tangent_backward_(
        out, sums[0], sums[1], *plain, *wide, _viewed(gamma, (-1,)), _viewed(dgamma, (layout[1], k))
    )
    return out.view(*saved.xh.shape, k), [sums[0], sums[1]]


def _viewed(t: Tangent, shape: tuple[int, ...]) -> Tangent:
    return None if t is None else t.reshape(shape).contiguous()


def _products(
    slots: Sequence[int | None],
    saved: Normalised,
    delta: Tensor,
    dx: Tangent,
    ddelta: Tangent,
    normalise: Callable[[Tensor], Tensor],
) -> list[Tangent]:
    """(H v)_gamma and (H v)_beta where gamma varies within a group; ``normalise``: dx -> dxh."""
    products: list[Tangent] = [None, None]
    if slots[0] is not None:
        products[0] = None if ddelta is None else _summed(saved, saved.xh, ddelta)
        if dx is not None:
            products[0] = add(products[0], _summed(saved, delta, normalise(dx)))
    if slots[1] is not None and ddelta is not None:
        products[1] = _summed(saved, torch.ones_like(saved.xh), ddelta)
    return products


def _summed(saved: Normalised, weights: Tensor, t: Tensor) -> Tensor:
    """weights * t summed to gamma's own shape, for t [*x, k]; per channel as products, without a temporary."""
    k, own = t.shape[-1], saved.own
    if len(own) == 1 and saved.shape == (1, own[0], *(1 for _ in saved.shape[2:])):
        rows = weights.reshape(len(weights) * own[0], 1, -1)
        return torch.bmm(rows, t.reshape(*rows.shape[::2], k)).view(len(weights), own[0], k).sum(0)
    return sum_to(t * column(weights), saved.shape, columns=True).view(*own, k)
