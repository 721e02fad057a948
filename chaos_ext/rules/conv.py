"""The rule of convolutions, one- and two-dimensional, direct and transposed, through one native operator.

A convolution relates three index sets: input a [N, C, H, W], weight [O, C/g, kh, kw] and output z [N, O, OH, OW]. Each
rule multiplies two of them into the third; in tangents one operand carries k columns. With * the convolution,

    dz = W * da + V * a + c,        d(delta_a) = W^T d(delta) + V^T delta,
    (H v)_W = d(delta) a^T + delta da^T,        (H v)_b = sum over samples and positions of d(delta).

A transposed convolution is the same with the roles of input and output exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad

from .. import _ops
from ..base.workspace import empty
from .rule import Leaf, Tangent, column

# Which operand carries the columns, and which one they go to: X input, W weight, Z output of the direct convolution.
_KINDS = {("Z", "X"): 0, ("Z", "W"): 1, ("X", "Z"): 2, ("X", "W"): 3, ("W", "Z"): 4, ("W", "X"): 5}

# A single column goes to the native operator where that was faster than torch's convolution, on one thread of an
# AVX-512 CPU with the layers of small networks and of resnet18, 8 samples: in float64 (1.2 to 10 times, but for a few
# narrow layers), and in float32 where kernels have one tap, places are few for a large weight, rows are wide and only
# shifted, or little is to be done (1 to 64 samples).
_FEW_PLACES, _FEW_PLACES_TO_WEIGHT, _LARGE_WEIGHT, _WIDE_ROW = 16, 128, 1 << 14, 32
_SMALL_WORK, _CHANNELS, _SAMPLES = 2_000_000, 4, 16  # multiplications, input channels, N


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves: each a pair (height, width)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class Convolution:
    """z = W * a + b.

    Args:
        weight, bias: leaves.
        geometry: stride, zero padding, dilation, groups, of the two-dimensional form.
        forward: torch's own function of (a, W, b).
        transposed: whether the module's input is the output Z of the direct convolution.
    """

    path, rowwise, fresh, constant_input = "layer rule", True, True, False

    def __init__(
        self, weight: Leaf, bias: Leaf, geometry: Geometry, forward: Callable[..., Tensor], transposed: bool = False
    ) -> None:
        self.weight, self.bias, self.geometry, self.function = weight, bias, geometry, forward
        self.source, self.target = ("Z", "X") if transposed else ("X", "Z")
        self.slots: tuple[int | None, ...] = (weight.slot, bias.slot)

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        a, W = inputs[0].contiguous(), self.weight(theta)
        assert W is not None
        z = self.function(a, W, self.bias(theta))
        return z, (a, W.contiguous(), z.shape)

    def _lanes(self, out: str, lanes: str, shape: Sequence[int], scalars: Tensor, d: Tensor, into: Tangent) -> Tensor:
        """The columns of ``out`` from those of ``lanes``; added to ``into`` if there is one."""
        if d.shape[-1] == 1 and not self._is_native(out, lanes, shape, scalars, d):
            result = self._single(out, lanes, shape, scalars, d.squeeze(-1)).unsqueeze(-1)
            return result if into is None else into.add_(result)
        result = empty((*shape, d.shape[-1]), scalars) if into is None else into
        g = self.geometry
        kind = _KINDS[out, lanes]
        args = (list(g.stride), list(g.padding), list(g.dilation), g.groups, into is not None)
        _ops.conv_lanes_(_planar(result, 5), _planar(scalars, 4), _planar(d.contiguous(), 5), kind, *args)
        return result

    def _is_native(self, out: str, lanes: str, shape: Sequence[int], scalars: Tensor, d: Tensor) -> bool:
        """Whether one column is the native operator's."""
        if d.device.type != "cpu" or d.dtype == torch.float64:
            return d.device.type == "cpu"
        other = next(iter({"X", "W", "Z"} - {out, lanes}))
        shapes = {out: shape, lanes: d.shape[:-1], other: scalars.shape}
        places = shapes["X"][0] * min(math.prod(shapes["X"][2:]), math.prod(shapes["Z"][2:]))
        if _is_small(out, shapes, places * math.prod(shapes["W"])):
            return True
        if math.prod(shapes["W"]) >= _LARGE_WEIGHT and places <= (_FEW_PLACES_TO_WEIGHT if out == "W" else _FEW_PLACES):
            return True
        if math.prod(shapes["W"][2:]) == 1 and places > _FEW_PLACES:
            return True
        return other == "W" and shapes[out][-1] >= _WIDE_ROW and self.geometry.stride == (1, 1)

    def _single(self, out: str, lanes: str, shape: Sequence[int], scalars: Tensor, d: Tensor) -> Tensor:
        """One column: torch's own convolution and its gradients."""
        given = {lanes: _planar(d, 4), next(iter({"X", "W", "Z"} - {out, lanes})): _planar(scalars, 4)}
        g = self.geometry
        options = (list(g.stride), list(g.padding), list(g.dilation), g.groups)
        planar = list(shape) if len(shape) == 4 else [*shape[:2], 1, *shape[2:]]
        if out == "Z":
            return F.conv2d(given["X"], given["W"], None, *options).view(*shape)
        if out == "X":
            return grad.conv2d_input(planar, given["W"], given["Z"].contiguous(), *options).view(*shape)
        return grad.conv2d_weight(given["X"], planar, given["Z"].contiguous(), *options).view(*shape)

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        a, W, _ = saved
        delta = delta.contiguous()
        d = column(delta)
        d_in: Tangent = None
        if not self.constant_input:
            d_in = self._lanes(self.source, self.target, a.shape, W, d, None).squeeze(-1)
        grads: list[Tangent] = [None, None]
        if self.slots[0] is not None:
            grads[0] = self._lanes("W", self.target, W.shape, a, d, None).squeeze(-1)
        if self.slots[1] is not None:
            grads[1] = delta.transpose(0, 1).flatten(1).sum(1)
        return [d_in], grads

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        a, W, shape = saved
        V, c = dtheta
        dz: Tangent = None
        if dinputs[0] is not None:
            dz = self._lanes(self.target, self.source, shape, W, dinputs[0], dz)
        if V is not None:
            dz = self._lanes(self.target, "W", shape, a, V, dz)
        if c is not None:
            shifted = c.view(len(c), *(1 for _ in shape[2:]), -1)
            dz = shifted.expand(*shape, c.shape[-1]).clone() if dz is None else dz.add_(shifted)
        return dz

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        a, W, _ = saved
        delta = delta.contiguous()
        dd_in: Tangent = None
        ddelta = None if ddelta is None else ddelta.contiguous()
        if ddelta is not None and not self.constant_input:
            dd_in = self._lanes(self.source, self.target, a.shape, W, ddelta, dd_in)
        if dtheta[0] is not None and not self.constant_input:
            dd_in = self._lanes(self.source, "W", a.shape, delta, dtheta[0], dd_in)
        products: list[Tangent] = [None, None]
        if self.slots[0] is not None:
            if ddelta is not None:
                products[0] = self._lanes("W", self.target, W.shape, a, ddelta, None)
            if dinputs[0] is not None:
                products[0] = self._lanes("W", self.source, W.shape, delta, dinputs[0], products[0])
        if self.slots[1] is not None and ddelta is not None:
            products[1] = _over_places(ddelta)
        return [dd_in], products


def _over_places(t: Tensor) -> Tensor:
    """[N, O, ..., k] summed to [O, k]; few columns with as many places as make a long row of numbers."""
    n, channels, places, k = *t.shape[:2], t.shape[2:-1].numel(), t.shape[-1]
    together = math.gcd(places, 64) if places >= 256 and 1 < k < 16 and t.is_contiguous() else 1
    if together > 1:
        t = t.view(n, channels, -1, together * k).sum(2).view(n, channels, together, k)
    return t.sum((0, *range(2, t.dim() - 1)))


def _planar(t: Tensor, dims: int) -> Tensor:
    """A view with height: [N, C, W, ...] as [N, C, 1, W, ...]."""
    return t if t.dim() == dims else t.unsqueeze(2)


def _is_small(out: str, shapes: dict[str, Sequence[int]], work: int) -> bool:
    """Whether torch's own convolution takes longer to begin than the native one to end."""
    samples, few_channels = shapes["X"][0], shapes["W"][1] < _CHANNELS
    if out == "W":
        return work <= (_SMALL_WORK // 8 if few_channels else 4 * _SMALL_WORK)
    return work <= _SMALL_WORK and (out == "X" or 1 < samples <= _SAMPLES)
