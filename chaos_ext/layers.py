"""The four rules of each layer: forward, backward, and the tangents of both.

Legend: N batch, I/O features, k tangent columns; ``a`` a layer's input, ``delta`` the cotangent at its output, a
leading ``d`` marks a tangent, whose tensors carry the column index k first. A tangent of None is zero.

Linear, z = W a + b, with parameter tangent (V, c):
    dz = V a + W da + c,   d(delta_a) = V^T delta + W^T d(delta_z),
    (H v)_W = sum_n d(delta_n) a_n^T + delta_n da_n^T,   (H v)_b = sum_n d(delta_n).
Elementwise a = phi(z):
    da = phi'(z) dz,   d(delta_z) = phi''(z) dz * delta_a + phi'(z) d(delta_a).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import _ops

Tangent = Tensor | None


def add(a: Tangent, b: Tangent) -> Tangent:
    """Sum of two tangents where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


class Rule(Protocol):
    """The calculus of one node of the graph.

    ``slots`` are the indices into theta of the parameters that the node differentiates (None: frozen or absent).
    """

    slots: tuple[int | None, ...]

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        """Output and whatever the other rules need."""

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tensor], list[Tangent]]:
        """Cotangents of the inputs, and the gradient of each slot."""

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        """Tangent of the output under tangents of the inputs and of the slots."""

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        """Tangents of ``backward``'s results."""


class Linear:
    """z = a W^T + b on rows a [N, I]."""

    def __init__(self, module: nn.Linear, weight_slot: int | None, bias_slot: int | None) -> None:
        # Frozen parameters are read from the module each time; without any, the program holds no part of the model.
        frozen = weight_slot is None or (bias_slot is None and module.bias is not None)
        self.module = module if frozen else None
        self.slots: tuple[int | None, ...] = (weight_slot, bias_slot)

    def weight(self, theta: Sequence[Tensor]) -> Tensor:
        slot = self.slots[0]
        if slot is not None:
            return theta[slot]
        assert self.module is not None
        return self.module.weight.detach().to(theta[0])

    def bias(self, theta: Sequence[Tensor]) -> Tangent:
        slot = self.slots[1]
        if slot is not None:
            return theta[slot]
        return None if self.module is None or self.module.bias is None else self.module.bias.detach().to(theta[0])

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        a, W = inputs[0], self.weight(theta)
        if a.dim() != 2:
            raise NotLayerwise(f"Linear on a {a.dim()}-dimensional input: rows of one sample interact later")
        return F.linear(a, W, self.bias(theta)), (a, W)

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tensor], list[Tangent]]:
        a, W = saved
        grads: list[Tangent] = [None if self.slots[0] is None else delta.T @ a]
        grads.append(None if self.slots[1] is None else delta.sum(0))
        return [delta @ W], grads

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        a, W = saved
        dz = None if dinputs[0] is None else dinputs[0] @ W.T
        V, c = dtheta
        if V is not None:
            dz = add(dz, torch.matmul(a, V.transpose(1, 2)))
        if c is not None:
            dz = c.unsqueeze(1).expand(-1, len(a), -1) if dz is None else dz + c.unsqueeze(1)
        return dz

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        a, W = saved
        da, V = dinputs[0], dtheta[0]
        dd_in = None if ddelta is None else ddelta @ W
        if V is not None:
            dd_in = add(dd_in, torch.matmul(delta, V))
        hvp_w = hvp_b = None
        if self.slots[0] is not None:
            hvp_w = None if ddelta is None else torch.matmul(ddelta.transpose(1, 2), a)
            if da is not None:
                hvp_w = add(hvp_w, torch.matmul(delta.T, da))
        if self.slots[1] is not None and ddelta is not None:
            hvp_b = ddelta.sum(1)
        return [dd_in], [hvp_w, hvp_b]


class Elementwise:
    """a = phi(z), one of the activations of csrc/layers/activation."""

    slots: tuple[int | None, ...] = ()

    def __init__(self, kind: int, alpha: float = 0.0, beta: float = 0.0) -> None:
        self.kind, self.alpha, self.beta = kind, alpha, beta

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        a, d1, d2 = _ops.activation(inputs[0].contiguous(), self.kind, self.alpha, self.beta)
        return a, (d1, d2 if d2.numel() else None)

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tensor], list[Tangent]]:
        return [saved[0] * delta], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        return None if dinputs[0] is None else dinputs[0] * saved[0]

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        d1, d2 = saved
        dd_in = None if ddelta is None else ddelta * d1
        if d2 is not None and dinputs[0] is not None:
            curved = d2 * delta
            dd_in = dinputs[0] * curved if dd_in is None else torch.addcmul(dd_in, dinputs[0], curved)
        return [dd_in], []


class Reshape:
    """[N, ...] to [N, features]: Flatten and views that keep the sample axis."""

    slots: tuple[int | None, ...] = ()

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        a = inputs[0]
        if a.dim() < 2:
            raise NotLayerwise(f"flatten of a {a.dim()}-dimensional tensor")
        return a.reshape(len(a), math.prod(a.shape[1:])), a.shape

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tensor], list[Tangent]]:
        return [delta.reshape(saved)], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        d = dinputs[0]
        return None if d is None else d.reshape(len(d), saved[0], math.prod(saved[1:]))

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        return [None if ddelta is None else ddelta.reshape(len(ddelta), *saved)], []


class Add:
    """a + b of equal shapes: a residual connection."""

    slots: tuple[int | None, ...] = ()

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        a, b = inputs
        if a.shape != b.shape:
            raise NotLayerwise(f"sum of shapes {tuple(a.shape)} and {tuple(b.shape)}")
        return a + b, None

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tensor], list[Tangent]]:
        return [delta, delta], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        return add(dinputs[0], dinputs[1])

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        return [ddelta, ddelta], []


class NotLayerwise(Exception):  # noqa: N818 - a signal between engines, never seen by users
    """The graph, at these shapes, is outside the layer rules; the functional engine takes over."""
