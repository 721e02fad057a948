"""The rule of Linear: z = W a + b on the last axis.

Legend: R rows (samples times positions), I/O features, k tangent columns (last axis); ``a`` the layer's input,
``delta`` the cotangent at its output, a leading ``d`` marks a tangent. With parameter tangent (V, c):

    dz = V a + W da + c,   d(delta_a) = V^T delta + W^T d(delta),
    (H v)_W = sum_r d(delta_r) a_r^T + delta_r da_r^T,   (H v)_b = sum_r d(delta_r).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import columns
from .rule import Leaf, Tangent, add, as_rows


class Linear:
    """z = a W^T + b on the last axis of a [..., I]."""

    path, rowwise, constant_input = "layer rule", True, False

    def __init__(self, weight: Leaf, bias: Leaf) -> None:
        self.weight, self.bias = weight, bias
        self.slots: tuple[int | None, ...] = (weight.slot, bias.slot)

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        a, W = inputs[0], self.weight(theta)
        assert W is not None
        return F.linear(a, W, self.bias(theta)), (a, W)

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        a, W = saved
        rows = as_rows(delta)
        grads: list[Tangent] = [None if self.slots[0] is None else torch.mm(rows.T, as_rows(a))]
        grads.append(None if self.slots[1] is None else rows.sum(0))
        return [None if self.constant_input else delta @ W], grads

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        a, W = saved
        da, (V, c) = dinputs[0], dtheta
        given = V if da is None else da
        if given is None:
            return None if c is None else c.expand(*a.shape[:-1], *c.shape)
        dz = (_forward_few if columns.are_few(given, _work(a, W)) else _forward_many)(a, W, da, V)
        dz = dz.reshape(*a.shape[:-1], *dz.shape[1:])
        return dz if c is None else dz + c

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        a, W = saved
        da, V = dinputs[0], dtheta[0]
        given = next((t for t in (ddelta, da, V) if t is not None), None)
        if given is None:
            return [None], [None, None]
        back = _backward_few if columns.are_few(given, _work(a, W)) else _backward_many
        Back = back(as_rows(a), W, as_rows(delta), da, V, ddelta, self.constant_input, self.slots[0] is not None)
        dd_in = None if Back.dd_in is None else Back.dd_in.reshape(*a.shape, given.shape[-1])
        hvp_b = None
        if self.slots[1] is not None and ddelta is not None:
            hvp_b = ddelta.reshape(-1, len(W), ddelta.shape[-1]).sum(0)
        return [dd_in], [Back.hvp_w, hvp_b]


def _work(a: Tensor, W: Tensor) -> int:
    """Multiplications of W a."""
    return a.numel() * len(W)


class _Back(NamedTuple):
    """d(delta_a) [R, I, k] and (H v)_W [O, I, k]."""

    dd_in: Tangent
    hvp_w: Tangent


def _forward_few(a: Tensor, W: Tensor, da: Tangent, V: Tangent) -> Tensor:
    """dz [R, O, k] from columns in front."""
    dz = None if da is None else columns.rows_in_front(da) @ W.T
    if V is not None:
        dz = columns.multiplied(as_rows(a), columns.in_front(V).transpose(1, 2), dz)
    assert dz is not None
    return dz.movedim(0, -1).contiguous()


def _backward_few(
    a: Tensor, W: Tensor, delta: Tensor, da: Tangent, V: Tangent, ddelta: Tangent, constant: bool, wanted: bool
) -> _Back:
    dd = None if ddelta is None else columns.rows_in_front(ddelta)
    dd_in = hvp_w = None
    if not constant:
        dd_in = None if dd is None else dd @ W
        dd_in = dd_in if V is None else columns.multiplied(delta, columns.in_front(V), dd_in)
    if wanted:
        hvp_w = None if dd is None else columns.multiplied(dd.transpose(1, 2), a)
        hvp_w = hvp_w if da is None else columns.multiplied(delta.T, columns.rows_in_front(da), hvp_w)
    dd_in = None if dd_in is None else dd_in.movedim(0, -1).contiguous()
    return _Back(dd_in, None if hvp_w is None else hvp_w.movedim(0, -1))


def _forward_many(a: Tensor, W: Tensor, da: Tangent, V: Tangent) -> Tensor:
    """dz [R, O, k] from columns last."""
    dz = None if da is None else torch.matmul(W, da.reshape(-1, *da.shape[-2:]))
    if V is not None:
        dz = add(dz, torch.matmul(as_rows(a), V).transpose(0, 1))  # [O, R, k] -> [R, O, k]
    assert dz is not None
    return dz


def _backward_many(
    a: Tensor, W: Tensor, delta: Tensor, da: Tangent, V: Tangent, ddelta: Tangent, constant: bool, wanted: bool
) -> _Back:
    dd = None if ddelta is None else ddelta.reshape(-1, *ddelta.shape[-2:])
    dd_in = hvp_w = None
    if not constant:
        dd_in = None if dd is None else torch.matmul(W.T, dd)
        if V is not None:
            dd_in = add(dd_in, torch.matmul(delta, V.transpose(0, 1)).transpose(0, 1))  # [I, R, k] -> [R, I, k]
    if wanted:
        hvp_w = None if dd is None else torch.matmul(a.T, dd.transpose(0, 1))
        if da is not None:
            da = da.reshape(-1, *da.shape[-2:])
            hvp_w = add(hvp_w, torch.matmul(delta.T, da.transpose(0, 1)).transpose(0, 1))
    return _Back(dd_in, hvp_w)
