"""Layers of all members at once: forward and backward by hand.

Legend: b members, N samples, R rows (samples times positions), I/O features, C channels, K taps of a kernel, L output
positions; ``a`` the input [b, N, ...] (or [N, ...], where it is the same for all members), ``delta`` the cotangent at
the output. With W [b, O, I] every product is a batched one, of the same kernel for every member:

    z = a W^T + c,   delta_a = delta W,   g_W = delta^T a,   g_c = sum of delta over rows.

A convolution is that on the windows of its input [b, C K, N L], with weights [b, O, C K].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..rules.conv import Convolution
from ..rules.elementwise import Elementwise
from ..rules.linear import Linear
from ..rules.rule import NotLayerwise, Rule
from .scratch import Scratch

Cotangents = list[Tensor | None]


class Layer(Protocol):
    """One node of the program, for all members."""

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor], scratch: Scratch) -> tuple[Tensor, Any]:
        """The output [b, N, ...], and what ``backward`` needs.

        Args:
            inputs: each [b, N, ...].
            theta: all parameters, each [b, *shape].
            scratch: memory.
        """

    def backward(
        self, saved: Any, delta: Tensor, grads: Sequence[Tensor], need: Sequence[bool], scratch: Scratch
    ) -> Cotangents:
        """Cotangents of the inputs; the gradients go to ``grads``.

        Args:
            saved: from ``forward``.
            delta: the cotangent of the output; not to be written to.
            grads: of all parameters, each [b, *shape].
            need: which inputs' cotangents are wanted.
            scratch: memory.
        """


def layer_of(rule: Rule) -> Layer:
    """The batched form of a rule.

    Raises:
        NotLayerwise: there is none.
    """
    free = all(s is None for s in rule.slots)
    if isinstance(rule, Elementwise):
        return BatchedElementwise(rule)
    if free and rule.rowwise:
        return SampleBySample(rule)
    if isinstance(rule, Linear) and rule.slots[0] is not None:
        return BatchedLinear(rule)
    if isinstance(rule, Convolution) and rule.slots[0] is not None and _is_plain(rule):
        return BatchedConvolution(rule)
    raise NotLayerwise(f"{type(rule).__name__} has no batched rule")


def _is_plain(rule: Convolution) -> bool:
    return rule.source == "X" and rule.geometry.groups == 1


def _bias(rule: Linear | Convolution, theta: Sequence[Tensor]) -> Tensor | None:
    """[b, O]; a frozen one is the same for all."""
    if rule.bias.slot is not None:
        return theta[rule.bias.slot]
    shared = rule.bias(theta)
    return None if shared is None else shared.unsqueeze(0)


class BatchedLinear:
    """z = a W^T + c."""

    def __init__(self, rule: Linear) -> None:
        self.rule = rule

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor], scratch: Scratch) -> tuple[Tensor, Any]:
        a = inputs[0]
        W, c = theta[self.rule.slots[0]], _bias(self.rule, theta)  # type: ignore[index]
        b, features = len(W), W.shape[2]
        rows = scratch.aligned(a.reshape(b, -1, features), (self, "a"))
        z = scratch.take((self, "z"), (b, rows.shape[1], W.shape[1]), W)
        if c is None:
            torch.bmm(rows, W.transpose(1, 2), out=z)
        else:
            z.copy_(c.unsqueeze(1)).baddbmm_(rows, W.transpose(1, 2))
        return z.view(*a.shape[:-1], W.shape[1]), (rows, W, a.shape)

    def backward(
        self, saved: Any, delta: Tensor, grads: Sequence[Tensor], need: Sequence[bool], scratch: Scratch
    ) -> Cotangents:
        a, W, shape = saved
        rows = scratch.aligned(delta.reshape(len(W), a.shape[1], -1), (self, "delta"))
        w, c = self.rule.slots
        torch.bmm(rows.transpose(1, 2), a, out=grads[w])  # type: ignore[index]
        if c is not None:
            torch.sum(rows, 1, out=grads[c])
        if not need[0]:
            return [None]
        return [torch.bmm(rows, W, out=scratch.take((self, "back"), a.shape, W)).view(shape)]


class BatchedElementwise:
    """a = phi(z) on whole blocks, what fills them up included."""

    def __init__(self, rule: Elementwise) -> None:
        self.rule = rule

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor], scratch: Scratch) -> tuple[Tensor, Any]:
        z, block = scratch.block(inputs[0], (self, "z"))
        a, *derivatives = [t if t is None else t.as_strided(z.shape, z.stride()) for t in self.rule.phi(block)]
        return a, derivatives  # type: ignore[return-value]

    def backward(
        self, saved: Any, delta: Tensor, grads: Sequence[Tensor], need: Sequence[bool], scratch: Scratch
    ) -> Cotangents:
        return [torch.mul(delta, saved[0], out=scratch.take((self, "back"), delta.shape, delta))]


class SampleBySample:
    """A rule without parameters for which members are further samples."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor], scratch: Scratch) -> tuple[Tensor, Any]:
        b, n = inputs[0].shape[:2]
        z, saved = self.rule.forward([t.flatten(0, 1) for t in inputs], [t[0] for t in theta[:1]])
        return scratch.aligned(z.unflatten(0, (b, n)), (self, "z")), (saved, b)

    def backward(
        self, saved: Any, delta: Tensor, grads: Sequence[Tensor], need: Sequence[bool], scratch: Scratch
    ) -> Cotangents:
        inner, b = saved
        cotangents, _ = self.rule.backward(inner, delta.flatten(0, 1))
        return [
            None if d is None or not wanted else d.unflatten(0, (b, -1))
            for d, wanted in zip(cotangents, need, strict=True)
        ]


class BatchedConvolution:
    """z = W * a + c, one- and two-dimensional, by windows: channels before samples inside, samples first outside."""

    def __init__(self, rule: Convolution) -> None:
        self.rule = rule

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor], scratch: Scratch) -> tuple[Tensor, Any]:
        a, W = _planar(inputs[0]), theta[self.rule.slots[0]]  # type: ignore[index]
        c, flat = _bias(self.rule, theta), inputs[0].dim() == 4
        taps = (1, W.shape[3]) if W.dim() == 4 else (W.shape[3], W.shape[4])
        g = self.rule.geometry
        framed = self._framed(a, scratch)
        windows = _windows(framed, taps, g.stride, g.dilation)  # a view [b, C, kh, kw, N, OH, OW]
        columns = scratch.take((self, "columns"), windows.shape, a).copy_(windows)
        matrix = columns.view(len(W), -1, windows.shape[4:].numel())
        z = scratch.take((self, "z"), (len(W), W.shape[1], matrix.shape[2]), W)
        weights = scratch.aligned(W.reshape(*W.shape[:2], -1), (self, "W"))
        if c is None:
            torch.bmm(weights, matrix, out=z)
        else:
            z.copy_(c.unsqueeze(2)).baddbmm_(weights, matrix)
        out = z.view(len(W), -1, *windows.shape[4:]).transpose(1, 2)
        return out.squeeze(3) if flat else out, (weights, matrix, framed.shape, windows.shape, inputs[0].shape)

    def _framed(self, a: Tensor, scratch: Scratch) -> Tensor:
        """[b, C, N, H, W] with its zero padding."""
        h, w = self.rule.geometry.padding
        a = a.transpose(1, 2)
        framed = scratch.take((self, "framed"), (*a.shape[:3], a.shape[3] + 2 * h, a.shape[4] + 2 * w), a)
        _inside(framed, h, w).copy_(a)  # the frame stays zero
        return framed

    def backward(
        self, saved: Any, delta: Tensor, grads: Sequence[Tensor], need: Sequence[bool], scratch: Scratch
    ) -> Cotangents:
        weights, matrix, framed, windows, shape = saved
        z = _planar(delta).transpose(1, 2)
        rows = scratch.copy(z, (self, "delta")).view(len(weights), weights.shape[1], -1)
        w, c = self.rule.slots
        torch.bmm(rows, matrix.transpose(1, 2), out=grads[w].view(weights.shape))  # type: ignore[index]
        if c is not None:
            torch.sum(rows, 2, out=grads[c])
        if not need[0]:
            return [None]
        back = scratch.take((self, "back"), matrix.shape, weights)
        torch.bmm(weights.transpose(1, 2), rows, out=back)
        return [self._folded(back.view(windows), framed, scratch).reshape(shape)]

    def _folded(self, columns: Tensor, framed: torch.Size, scratch: Scratch) -> Tensor:
        """Each input gets the sum over the windows that it lies in, tap by tap: [b, N, C, H, W]."""
        g, total = self.rule.geometry, scratch.take((self, "folded"), framed, columns).zero_()
        taps = (columns.shape[2], columns.shape[3])
        windows = _windows(total, taps, g.stride, g.dilation)
        for i in range(taps[0]):
            for j in range(taps[1]):
                windows[:, :, i, j] += columns[:, :, i, j]
        return _inside(total, *g.padding).transpose(1, 2)


def _planar(a: Tensor) -> Tensor:
    """[b, N, C, W] as [b, N, C, 1, W]."""
    return a if a.dim() == 5 else a.unsqueeze(3)


def _inside(framed: Tensor, h: int, w: int) -> Tensor:
    return framed[..., h : framed.shape[-2] - h, w : framed.shape[-1] - w]


def _windows(framed: Tensor, taps: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """A view of framed [b, C, N, H, W] as [b, C, kh, kw, N, OH, OW]: what tap (i, j) sees at each position."""
    b, c, n, h, w = framed.shape
    out = [(s - d * (k - 1) - 1) // t + 1 for s, k, t, d in zip((h, w), taps, stride, dilation, strict=True)]
    of_b, of_c, of_n, of_h, of_w = framed.stride()
    strides = (of_b, of_c, of_h * dilation[0], of_w * dilation[1], of_n, of_h * stride[0], of_w * stride[1])
    return framed.as_strided((b, c, *taps, n, *out), strides, framed.storage_offset())
