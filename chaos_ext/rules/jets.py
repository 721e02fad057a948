"""Jets of the nodes of a program: one dictionary, rule -> function. Rules without an entry have none.

A function gets the rule, what its ``forward`` saved (perhaps in inference mode: of use as a copy), the jets of its
inputs, and a way to the jets of its leaves, and returns the jet of the output (``jet``) in torch's differentiable
arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .activation_jets import derivatives, has_derivatives
from .conv import Convolution
from .elementwise import Elementwise, Native, PReLU
from .embedding import Embedding
from .jet import Jet, composed, mapped, plus, product, times
from .joints import Add, Affine, Cat, LinearMap, Multiply, Parameter, Reshape
from .linear import Linear
from .norm import FixedNorm, GroupStatistics, RowStatistics, by_channel
from .padding import Pad
from .pooling import Select
from .rule import Leaf, Rule

LeafJet = Callable[[Leaf], Jet | None]


def has_jet(rule: Rule) -> bool:
    """Whether the rule has one."""
    if type(rule) is Elementwise:
        return isinstance(rule.phi, Native) and has_derivatives(rule.phi.kind)
    return type(rule) in _JETS


def jet_of(rule: Rule, saved: object, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    """The jet of the node's output.

    Args:
        rule: one that ``has_jet``.
        saved: from its ``forward`` at the same point.
        inputs: the jets of its inputs.
        leaf: gives the jet of a parameter or buffer, None of what is absent.
    """
    return _JETS[type(rule)](rule, saved, inputs, leaf)


def _given(jet: Jet | None) -> Jet:
    assert jet is not None
    return jet


def _linear(rule: Linear, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    return plus(product(F.linear, inputs[0], _given(leaf(rule.weight))), leaf(rule.bias))


def _convolution(rule: Convolution, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    bias, places = leaf(rule.bias), len(saved[2]) - 2
    shifted = None if bias is None else mapped(lambda t: t.view(-1, *(1 for _ in range(places))), bias)
    z = product(lambda a, W: rule.function(a, W, None), inputs[0], _given(leaf(rule.weight)))
    return plus(z, shifted)


def _elementwise(rule: Elementwise, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    assert isinstance(rule.phi, Native)
    return composed(inputs[0], *derivatives(rule.phi.kind, inputs[0].value, rule.phi.alpha, rule.phi.beta))


def _prelu(rule: PReLU, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    below, shape = (inputs[0].value.detach() <= 0).to(inputs[0].value.dtype), saved[3]
    weight = mapped(lambda t: t.view(shape), _given(leaf(rule.weight)))
    return plus(mapped(lambda t: (1 - below) * t, inputs[0]), times(mapped(lambda t: below * t, inputs[0]), weight))


def _embedding(rule: Embedding, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    """The row ``padding_idx`` is a constant: neither its tangent nor its gradient."""
    x = saved[0].clone()
    kept = (x != (-1 if rule.padding_idx is None else rule.padding_idx)).unsqueeze(-1)
    found = mapped(lambda W: F.embedding(x, W, padding_idx=rule.padding_idx), _given(leaf(rule.weight)))
    return Jet(found.value, *(None if t is None else t * kept for t in found[1:]))


def _select(rule: Select, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    rows = saved[2].clone()
    return mapped(lambda t: t.reshape(-1)[rows].view(saved[1]), inputs[0])


def _pad(rule: Pad, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    return mapped(rule.function, inputs[0])


def _add(rule: Add, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    return plus(*(_times_number(jet, f) for jet, f in zip(inputs, rule.factors, strict=True)))


def _times_number(jet: Jet, factor: float) -> Jet:
    return jet if factor == 1 else mapped(lambda t: t * factor, jet)


def _multiply(rule: Multiply, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    return times(inputs[0], inputs[1])


def _affine(rule: Affine, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    scaled = _times_number(inputs[0], rule.factor)
    return Jet(scaled.value + rule.shift, *scaled[1:])


def _cat(rule: Cat, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    def joined(i: int) -> Tensor | None:
        parts = [jet[i] for jet in inputs]
        if all(t is None for t in parts):
            return None
        return torch.cat([torch.zeros_like(j[0]) if t is None else t for j, t in zip(inputs, parts, strict=True)], dim)

    dim = rule.dim
    return Jet(torch.cat([jet.value for jet in inputs], dim), joined(1), joined(2))


def _reshape(rule: Reshape, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    return mapped(lambda t: t.reshape(saved[1]), inputs[0])


def _linear_map(rule: LinearMap, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    return mapped(rule.function, inputs[0])


def _parameter(rule: Parameter, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    return _given(leaf(rule.leaf))


def _fixed_norm(rule: FixedNorm, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    shape = by_channel(inputs[0].value.shape)
    mean, variance = (_given(leaf(part)).value.view(shape) for part in (rule.mean, rule.variance))
    scaled = mapped(lambda t: t * (variance + rule.eps).rsqrt(), inputs[0])
    xh = Jet((inputs[0].value - mean) * (variance + rule.eps).rsqrt(), *scaled[1:])
    return _scaled(xh, leaf(rule.weight), leaf(rule.bias), shape)


def _group_statistics(rule: GroupStatistics, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    shape = inputs[0].value.shape
    xh = _normalised(inputs[0], rule.layout(shape), (0, 2), rule.eps)
    return _scaled(xh, leaf(rule.weight), leaf(rule.bias), by_channel(shape))


def _row_statistics(rule: RowStatistics, saved: Any, inputs: Sequence[Jet], leaf: LeafJet) -> Jet:
    shape = inputs[0].value.shape
    xh = _normalised(inputs[0], rule.view(shape), (-1,), rule.eps)
    return _scaled(xh, leaf(rule.weight), leaf(rule.bias), rule.affine(shape))


def _normalised(x: Jet, view: tuple[int, ...], axes: tuple[int, ...], eps: float) -> Jet:
    """x minus its mean, over (variance + eps)^(1/2), with means over the axes of the view."""

    def mean(t: Tensor) -> Tensor:
        return t.mean(axes, keepdim=True)

    xc = mapped(lambda t: t.reshape(view) - mean(t.reshape(view)), x)
    variance = mapped(mean, times(xc, xc))
    u = variance.value + eps
    r = composed(variance, u**-0.5, -0.5 * u**-1.5, 0.75 * u**-2.5)
    return mapped(lambda t: t.reshape(x.value.shape), times(xc, r))


def _scaled(xh: Jet, gamma: Jet | None, beta: Jet | None, shape: tuple[int, ...]) -> Jet:
    """gamma xh + beta."""
    z = xh if gamma is None else times(xh, mapped(lambda t: t.view(shape), gamma))
    return plus(z, None if beta is None else mapped(lambda t: t.view(shape), beta))


_JETS: dict[type, Callable[[Any, Any, Sequence[Jet], LeafJet], Jet]] = {
    Linear: _linear,
    Convolution: _convolution,
    Elementwise: _elementwise,
    PReLU: _prelu,
    Embedding: _embedding,
    Select: _select,
    Pad: _pad,
    Add: _add,
    Multiply: _multiply,
    Affine: _affine,
    Cat: _cat,
    Reshape: _reshape,
    LinearMap: _linear_map,
    Parameter: _parameter,
    FixedNorm: _fixed_norm,
    GroupStatistics: _group_statistics,
    RowStatistics: _row_statistics,
}
