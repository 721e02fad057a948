"""The rules of elementwise activations: those without parameters, and PReLU.

Activation a = phi(z), from phi' and phi'' at z:

    da = phi'(z) dz,   d(delta_z) = phi''(z) dz * delta_a + phi'(z) d(delta_a).

PReLU a = max(z, 0) + w min(z, 0), with slope s = 1 above and w at or below 0, n = min(z, 0), b = [z <= 0], tangent u:

    da = s dz + u n,   d(delta_z) = s d(delta_a) + u b delta_a,   (H v)_w = sum n d(delta_a) + b dz delta_a.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import _ops
from .rule import Leaf, Tangent, add, column, sum_to

Derivatives = tuple[Tensor, Tensor, Tensor | None]  # phi, phi' and phi'' at z; None: piecewise linear


class Elementwise:
    """a = phi(z).

    Args:
        phi: z -> (phi, phi', phi'') at z, of a formula (see ``activations``) or one of csrc/layers/activation.
    """

    path, rowwise, fresh = "layer rule", True, True
    slots: tuple[int | None, ...] = ()

    def __init__(self, phi: Callable[[Tensor], Derivatives]) -> None:
        self.phi = phi

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        a, d1, d2 = self.phi(inputs[0])
        return a, (d1, d2)

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


@dataclass(frozen=True)
class Native:
    """phi of csrc/layers/activation, with its settings."""

    kind: int
    alpha: float = 0.0
    beta: float = 0.0

    def __call__(self, z: Tensor) -> Derivatives:
        a, d1, d2 = _ops.activation(z.contiguous(), self.kind, self.alpha, self.beta)
        return a, d1, d2 if d2.numel() else None


def native(kind: int, alpha: float = 0.0, beta: float = 0.0) -> Elementwise:
    """One of the activations of csrc/layers/activation, with its settings."""
    return Elementwise(Native(kind, alpha, beta))


def gelu(approximate: str) -> Elementwise:
    """The rule of torch's GELU, ``approximate`` being "tanh" or "none"."""
    return native(_ops.GELU_TANH if approximate == "tanh" else _ops.GELU_ERF)


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
        return sum_to(t, shape, columns).reshape(-1, *t.shape[-1:] if columns else ())

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
