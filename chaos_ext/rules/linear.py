"""The rule of Linear: z = W a + b on the last axis.

Legend: R rows (samples times positions), I/O features, k tangent columns (last axis); ``a`` the layer's input,
``delta`` the cotangent at its output, a leading ``d`` marks a tangent. With parameter tangent (V, c):

    dz = V a + W da + c,   d(delta_a) = V^T delta + W^T d(delta),
    (H v)_W = sum_r d(delta_r) a_r^T + delta_r da_r^T,   (H v)_b = sum_r d(delta_r).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
        V, c = dtheta
        dz = None if dinputs[0] is None else torch.matmul(W, dinputs[0])
        if V is not None:
            rows = torch.matmul(a.reshape(-1, W.shape[1]), V).transpose(0, 1)  # [O, R, k] -> [R, O, k]
            dz = add(dz, rows.reshape(*a.shape[:-1], *rows.shape[1:]))
        if c is not None:
            dz = c.expand(*a.shape[:-1], *c.shape) if dz is None else dz + c
        return dz

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        a, W = saved
        da, V = dinputs[0], dtheta[0]
        rows = as_rows(delta)
        dd_in = None if ddelta is None or self.constant_input else torch.matmul(W.T, ddelta)
        if V is not None and not self.constant_input:
            back = torch.matmul(rows, V.transpose(0, 1)).transpose(0, 1)  # [I, R, k] -> [R, I, k]
            dd_in = add(dd_in, back.reshape(*delta.shape[:-1], *back.shape[1:]))
        dd = None if ddelta is None else ddelta.reshape(-1, len(W), ddelta.shape[-1]).transpose(0, 1)  # [O, R, k]
        hvp_w = hvp_b = None
        if self.slots[0] is not None:
            hvp_w = None if dd is None else torch.matmul(a.reshape(-1, W.shape[1]).T, dd)
            if da is not None:
                da = da.reshape(-1, W.shape[1], da.shape[-1]).transpose(0, 1)  # [I, R, k]
                hvp_w = add(hvp_w, torch.matmul(rows.T, da).transpose(0, 1))
        if self.slots[1] is not None and dd is not None:
            hvp_b = dd.sum(1)
        return [dd_in], [hvp_w, hvp_b]
