"""The rules of Linear, elementwise activations, PReLU and Embedding.

Legend: R rows (samples times positions), I/O features, k tangent columns (last axis); ``a`` a layer's input, ``delta``
the cotangent at its output, a leading ``d`` marks a tangent.

Linear, z = W a + b, with parameter tangent (V, c):
    dz = V a + W da + c,   d(delta_a) = V^T delta + W^T d(delta_z),
    (H v)_W = sum_r d(delta_r) a_r^T + delta_r da_r^T,   (H v)_b = sum_r d(delta_r).
Elementwise a = phi(z):
    da = phi'(z) dz,   d(delta_z) = phi''(z) dz * delta_a + phi'(z) d(delta_a).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _ops
from .rule import Leaf, Tangent, add, column


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
        rows = _rows(delta)
        grads: list[Tangent] = [None if self.slots[0] is None else torch.mm(rows.T, _rows(a))]
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
        rows = _rows(delta)
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


def _rows(t: Tensor) -> Tensor:
    """[..., I] as [R, I]."""
    return t if t.dim() == 2 else t.reshape(-1, t.shape[-1])


class Elementwise:
    """a = phi(z), one of the activations of csrc/layers/activation."""

    path, rowwise, fresh = "layer rule", True, True
    slots: tuple[int | None, ...] = ()

    def __init__(self, kind: int, alpha: float = 0.0, beta: float = 0.0) -> None:
        self.kind, self.alpha, self.beta = kind, alpha, beta

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        a, d1, d2 = _ops.activation(inputs[0].contiguous(), self.kind, self.alpha, self.beta)
        return a, (d1, d2 if d2.numel() else None)

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [saved[0] * delta], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        return None if dinputs[0] is None else dinputs[0] * column(saved[0])

    def tangent_forward_(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        """In place unless the tangent is needed again."""
        if saved[1] is not None or dinputs[0] is None:
            return self.tangent_forward(saved, dinputs, dtheta)
        return dinputs[0].mul_(column(saved[0]))

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        return self._pull(saved, delta, dinputs, None if ddelta is None else ddelta * column(saved[0]))

    def tangent_backward_(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        """In place."""
        return self._pull(saved, delta, dinputs, None if ddelta is None else ddelta.mul_(column(saved[0])))

    def _pull(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dd_in: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        d2 = saved[1]
        if d2 is not None and dinputs[0] is not None:
            curved = column(d2 * delta)
            dd_in = dinputs[0] * curved if dd_in is None else dd_in.addcmul_(dinputs[0], curved)
        return [dd_in], []


class PReLU:
    """a = max(z, 0) + w min(z, 0) with one w, or one w a channel (axis 1); at z = 0 the slope is w, as in torch."""

    path, rowwise = "layer rule", True

    def __init__(self, weight: Leaf) -> None:
        self.weight = weight
        self.slots: tuple[int | None, ...] = (weight.slot,)

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        z, w = inputs[0], self.weight(theta)
        assert w is not None
        shape = (1, len(w), *(1 for _ in z.shape[2:])) if z.dim() > 1 else (len(w),)
        below = (z <= 0).to(z.dtype)
        slope = 1 - below + below * w.view(shape)
        return slope * z, (below * z, below, slope, shape)

    def _reduce(self, t: Tensor, shape: tuple[int, ...], columns: bool) -> Tensor:
        return sum_rows(t, shape, columns).reshape(-1, *t.shape[-1:] if columns else ())

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        negative, _, slope, shape = saved
        return [slope * delta], [None if self.slots[0] is None else self._reduce(delta * negative, shape, False)]

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        negative, _, slope, shape = saved
        dz = None if dinputs[0] is None else dinputs[0] * column(slope)
        dw = dtheta[0]
        return dz if dw is None else add(dz, dw.view(*shape, -1) * column(negative))

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        negative, below, slope, shape = saved
        dd_in = None if ddelta is None else ddelta * column(slope)
        if dtheta[0] is not None:
            dd_in = add(dd_in, dtheta[0].view(*shape, -1) * column(below * delta))
        product = None if ddelta is None else ddelta * column(negative)
        if dinputs[0] is not None:
            product = add(product, dinputs[0] * column(below * delta))
        if self.slots[0] is None or product is None:
            return [dd_in], [None]
        return [dd_in], [self._reduce(product, shape, True)]


def sum_rows(t: Tensor, shape: Sequence[int], columns: bool) -> Tensor:
    """Sums to a broadcastable ``shape``, keeping a last axis k if there is one."""
    return t.sum_to_size(*shape, t.shape[-1]) if columns else t.sum_to_size(*shape)


class Embedding:
    """z = W[x] for indices x; the row ``padding_idx`` is a constant, as its gradient in torch is zero."""

    path, rowwise = "layer rule", True

    def __init__(self, weight: Leaf, padding_idx: int | None) -> None:
        self.weight, self.padding_idx = weight, padding_idx
        self.slots: tuple[int | None, ...] = (weight.slot,)

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        x, W = inputs[0], self.weight(theta)
        assert W is not None
        return F.embedding(x, W), (x, W.shape)

    def _scatter(self, saved: Any, rows: Tensor) -> Tensor:
        """Sums rows [*x.shape, D, ...] over equal indices, without atomics: one-hot times rows."""
        x, shape = saved
        rows = rows.reshape(x.numel(), -1)
        used, where = torch.unique(x.reshape(-1), return_inverse=True)
        hot = F.one_hot(where, len(used)).to(rows)
        if self.padding_idx is not None:
            hot[:, used == self.padding_idx] = 0
        out = rows.new_zeros(shape[0], rows.shape[1])
        out[used] = hot.T @ rows
        return out

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [None], [None if self.slots[0] is None else self._scatter(saved, delta).view(saved[1])]

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        if dtheta[0] is None:
            return None
        x, V = saved[0], dtheta[0]
        dz = V[x]
        if self.padding_idx is not None:
            dz[x == self.padding_idx] = 0
        return dz

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        if ddelta is None or self.slots[0] is None:
            return [None], [None]
        return [None], [self._scatter(saved, ddelta).view(*saved[1], -1)]
