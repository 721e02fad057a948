"""Handlers of functions of two or three activations: matrix products, softmax, attention."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _ops
from ..rules.constants import Choice, Constant
from ..rules.contraction import Contraction, product_letters
from ..rules.elementwise import native
from ..rules.joints import Add, Affine, Multiply
from ..rules.rule import NotLayerwise
from ..rules.softmax import LogSoftmax, Softmax
from ..rules.views import Slice
from .arguments import Call, has_node
from .site import Handler, Operation, Site, axes_of, axis, is_discrete, linear_map


def _matrix_product(site: Site, call: Call, second: str) -> Operation:
    call.without_others(("input", second), "a product with further arguments")
    letters = product_letters(axes_of(site, call), axes_of(site, call, second))
    return [Contraction(*letters)], [call["input"], call[second]]


def _einsum(site: Site, call: Call) -> Operation:
    equation: Any = call["equation"]
    operands: Sequence[Any] = call.further
    operands = operands[0] if len(operands) == 1 and isinstance(operands[0], (tuple, list)) else operands
    if not isinstance(equation, str) or any(not c.isalpha() for c in equation.translate(_PUNCTUATION)):
        raise NotLayerwise("an equation of letters is expected")
    inputs, _, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if "->" not in equation:
        out = "".join(sorted(c for c in set("".join(terms)) if sum(t.count(c) for t in terms) == 1))
    if len(terms) == 1:
        return linear_map_of(site, call, terms[0], out, operands)
    if len(terms) != 2 or len(operands) != 2:
        raise NotLayerwise("einsum of more than two operands has no layer rule")
    return [Contraction(terms[0], terms[1], out)], list(operands)


_PUNCTUATION = str.maketrans("", "", " ,->")


def linear_map_of(site: Site, call: Call, term: str, out: str, operands: Sequence[Any]) -> Operation:
    """einsum of one operand."""
    if len(operands) != 1:
        raise NotLayerwise("einsum of operands that its equation does not name")
    rules, _ = linear_map(site, Call(call.node, ("equation", "input")), rowwise=term[:1] == out[:1] != "")
    return rules, [operands[0]]


def _softmax(site: Site, call: Call, kind: type[Softmax] | type[LogSoftmax], sign: float = 1.0) -> Operation:
    known = ("input", "dim", "_stacklevel", "dtype")
    if call.without_others(known, "softmax with unknown arguments").get("dtype") is not None:
        raise NotLayerwise("softmax to another dtype")
    dim = axis(call, axes_of(site, call), default=None)
    return [*([Affine(sign, 0.0)] if sign != 1 else []), kind(dim)], [call["input"]]


def _attention(site: Site, call: Call) -> Operation:
    """softmax(scale q k^T + mask) v."""
    if call.plain("dropout_p", 0.0) != 0:
        raise NotLayerwise("dropout of attention draws random numbers")
    axes = [axes_of(site, call, name) for name in ("query", "key", "value")]
    if call.plain("enable_gqa", False) or len(set(axes)) > 1:
        raise NotLayerwise("grouped queries have no layer rule")
    causal, mask, scale = call.plain("is_causal", False), call.get("attn_mask"), call.plain("scale")
    scale = 1 / math.sqrt(site.shape[call["query"]][-1]) if scale is None else scale
    return attend(site, [call[n] for n in ("query", "key", "value")], axes[0], scale, mask, causal)


def attend(
    site: Site, qkv: Sequence[Any], axes: int, scale: float, mask: Any = None, causal: bool = False
) -> Operation:
    """The steps of attention on queries, keys and values of so many axes.

    Args:
        site: the graph.
        qkv: operands [..., L, E], [..., S, E], [..., S, F].
        axes: of each.
        scale: of the queries.
        mask: an operand that broadcasts against [..., L, S]: what is added, or of booleans, which entries take part.
        causal: whether entries above the diagonal take no part.
    """
    query, key, value = qkv
    scores = scores_of(site, query, key, axes, scale)
    if causal:
        scores = site.step([Choice(second=-math.inf)], [site.step([Constant(_lower)], [scores]), scores])
    if mask is not None and is_discrete(site, mask):
        scores = site.step([Choice(second=-math.inf)], [mask, scores])
    elif mask is not None:
        scores = site.step([Add()], [scores, mask])
    weights = site.step([Softmax(axes - 1, rows_of_zeros=causal or mask is not None)], [scores])
    return [Contraction(*product_letters(axes, axes))], [weights, value]


def scores_of(site: Site, query: Any, key: Any, axes: int, scale: float) -> int:
    """scale q k^T for operands of so many axes."""
    first, second, out = product_letters(axes, axes)
    scaled = site.step([Affine(scale, 0.0)], [query])
    return site.step([Contraction(first, second[:-2] + "ci", out)], [scaled, key])


def gated(site: Site, source: Any, axes: int, dim: int) -> Operation:
    """GLU: the first half along an axis, times the sigmoid of the second."""
    dim %= axes
    half = site.shape[source][dim] // 2
    first, second = (Slice((slice(None),) * dim + (s,)) for s in (slice(half), slice(half, None)))
    gate = site.step([second, native(_ops.SIGMOID)], [source])
    return [Multiply()], [site.step([first], [source]), gate]


def _glu(site: Site, call: Call) -> Operation:
    axes = axes_of(site, call)
    return gated(site, call["input"], axes, axis(call, axes, default=-1))


def _lower(inputs: Sequence[Tensor], leaves: object) -> Tensor:
    """Which entries are on or below the diagonal."""
    return torch.ones(inputs[0].shape[-2:], dtype=torch.bool, device=inputs[0].device).tril()


def _choice(site: Site, call: Call) -> Operation:
    """where(condition, input, other)."""
    return _chosen(site, call["condition"], call["input"], call["other"])


def _filled(site: Site, call: Call) -> Operation:
    """input.masked_fill(mask, value)."""
    return _chosen(site, call["mask"], call["value"], call["input"])


def _chosen(site: Site, mask: Any, first: Any, second: Any) -> Operation:
    if not is_discrete(site, mask):
        raise NotLayerwise("a mask that is not of booleans")
    numbers = [n if isinstance(n, (int, float)) else None for n in (first, second)]
    if has_node((first, second)) is False:
        raise NotLayerwise("a choice between numbers")
    tensors = [t for t, n in zip((first, second), numbers, strict=True) if n is None]
    return [Choice(*numbers)], [mask, *tensors]


_SOFTMAX = ("input", "dim", "_stacklevel", "dtype")
_OF_TORCH = ("input", "dim", "dtype")
_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def _product_with(second: str) -> Handler:
    return lambda site, call: _matrix_product(site, call, second)


def _kinds(kind: Any, sign: float = 1.0) -> Handler:
    return lambda site, call: _softmax(site, call, kind, sign)


TARGETS: list[tuple[Handler, tuple[str, ...], tuple[object, ...]]] = [
    (_product_with("other"), ("input", "other"), (torch.matmul, "matmul", operator.matmul)),
    (_product_with("mat2"), ("input", "mat2"), (torch.mm, "mm", torch.bmm, "bmm")),
    (_product_with("vec"), ("input", "vec"), (torch.mv, "mv")),
    (_einsum, ("equation",), (torch.einsum, torch.functional.einsum)),
    (_kinds(Softmax), _SOFTMAX, (F.softmax,)),
    (_kinds(Softmax), _OF_TORCH, (torch.softmax, "softmax")),
    (_kinds(LogSoftmax), _SOFTMAX, (F.log_softmax,)),
    (_kinds(LogSoftmax), _OF_TORCH, (torch.log_softmax, "log_softmax")),
    (_kinds(Softmax, -1.0), _SOFTMAX, (F.softmin,)),
    (_attention, _ATTENTION, (F.scaled_dot_product_attention,)),
    (_glu, ("input", "dim"), (F.glu,)),
    (_choice, ("condition", "input", "other"), (torch.where,)),
    (_filled, ("input", "mask", "value"), (torch.masked_fill, "masked_fill", "masked_fill_")),
]
