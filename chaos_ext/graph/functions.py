"""Which functions and methods of tensors have a layer rule: one dictionary, target -> handler.

A handler gets the graph (``Site``) and a call with its arguments by name. It returns the rules to be applied in turn,
with the operands of the first, or raises ``NotLayerwise`` with the reason why torch's own derivatives have to do.
"""

from __future__ import annotations

import operator
from functools import partial

import torch
from torch import fx
from torch.nn import functional as F

from ..rules import activations as formulas
from ..rules.joints import Add, Affine, Cat, Multiply, Reshape
from ..rules.makers import max_pool
from ..rules.rule import NotLayerwise
from . import activations, contractions, layers, reading, shapes, windows
from .arguments import Call
from .site import Handler, Operation, Site, axes_of, linear_map, no_rule, sizes_only


def handle(site: Site, node: fx.Node) -> Operation:
    """The rules and operands of a call of a function or method; raises NotLayerwise where there are none."""
    known = HANDLERS.get(node.target) or HANDLERS.get(_address(node.target))
    if known is None:
        raise no_rule(node)
    handler, names = known
    return handler(site, Call(node, names))


def _address(function: object) -> str:
    """Where a function that is not torch's own is defined."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"


def _sum(site: Site, call: Call, sign: float) -> Operation:
    call.without_others(_PAIR, "a sum with further arguments")
    a, b = call["input"], call["other"]
    if isinstance(b, (int, float)):
        return [Affine(1.0, sign * b)], [a]
    if isinstance(a, (int, float)):
        return [Affine(sign, a)], [b]
    return [Add(1.0, sign)], [a, b]


def _negative(site: Site, call: Call) -> Operation:
    call.without_others(_ONE, "a product with further arguments")
    return [Affine(-1.0, 0.0)], [call["input"]]


def _quotient(site: Site, call: Call) -> Operation:
    b = call.without_others(_PAIR, "a product with further arguments")["other"]
    if isinstance(b, (int, float)):
        return [Affine(1 / b, 0.0)], [call["input"]]
    inverse = site.step([formulas.reciprocal()], [b])
    if isinstance(call["input"], (int, float)):
        return [Affine(call["input"], 0.0)], [inverse]
    return [Multiply()], [call["input"], inverse]


def _product(site: Site, call: Call) -> Operation:
    call.without_others(_PAIR, "a product with further arguments")
    a, b = call["input"], call["other"]
    if isinstance(b, (int, float)):
        return [Affine(b, 0.0)], [a]
    if isinstance(a, (int, float)):
        return [Affine(a, 0.0)], [b]
    return [Multiply()], [a, b]


def _concatenation(site: Site, call: Call) -> Operation:
    parts, dim = call["tensors"], call.plain("dim", 0)
    if not isinstance(parts, (list, tuple)) or not isinstance(dim, int):
        raise NotLayerwise("a concatenation of computed length")
    return [Cat(dim % len(site.shape[call.node]))], list(parts)


def _dropout(site: Site, call: Call) -> Operation:
    if call.plain("training", True) is not False:
        raise no_rule(call.node)
    return [], [call["input"]]


def _stochastic_depth(site: Site, call: Call) -> Operation:
    if call.plain("training", True) is not False and call.plain("p") != 0:
        raise no_rule(call.node)
    return [], [call["input"]]


def _max_pool(site: Site, call: Call, dims: int) -> Operation:
    names = {"kernel_size": None, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
    given = {n: call.plain(n, d) for n, d in names.items()}
    if call.plain("return_indices"):
        raise NotLayerwise("return_indices")
    source = call["input"]
    site.input(source)
    return [max_pool(site.shape[source], dims, **given)], [source]


def _reshape(site: Site, call: Call) -> Operation:
    """Keeps the numbers and their order. Further inputs, of which only sizes are read, may follow the tensor itself."""
    function, operands = sizes_only(site, call)
    return [Reshape(function)], operands


def _pool(site: Site, call: Call) -> Operation:
    return linear_map(site, call, rowwise=axes_of(site, call) == len(site.shape[call.node]))


def _reduction(site: Site, call: Call) -> Operation:
    axes, dims = axes_of(site, call), call.plain("dim")
    dims = [dims] if isinstance(dims, int) else dims
    return linear_map(site, call, rowwise=bool(dims) and all(d % axes != 0 for d in dims))  # (): over all


_ONE, _PAIR, _DIM = ("input",), ("input", "other"), ("input", "dim")
_PARTS, _TRAINING = ("tensors", "dim"), ("input", "p", "training")
_WINDOW = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")

# Handler, names of the arguments that may be given in order, functions and names of methods that it handles.
_TARGETS: list[tuple[Handler, tuple[str, ...], tuple[object, ...]]] = [
    (partial(_sum, sign=1.0), _PAIR, (operator.add, operator.iadd, torch.add, "add", "add_")),
    (partial(_sum, sign=-1.0), _PAIR, (operator.sub, operator.isub, torch.sub, "sub", "sub_")),
    (_product, _PAIR, (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_")),
    (_quotient, _PAIR, (operator.truediv, torch.div, "div")),
    (_negative, _ONE, (operator.neg, torch.neg, "neg")),
    (_concatenation, _PARTS, (torch.cat, torch.concat, torch.concatenate)),
    (_dropout, _TRAINING, (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)),
    (_stochastic_depth, ("input", "p", "mode", "training"), ("torchvision.ops.stochastic_depth.stochastic_depth",)),
    (partial(_max_pool, dims=1), _WINDOW, (F.max_pool1d, torch.max_pool1d)),
    (partial(_max_pool, dims=2), _WINDOW, (F.max_pool2d, torch.max_pool2d)),
    (partial(_max_pool, dims=3), _WINDOW, (F.max_pool3d, torch.max_pool3d)),
    (_reshape, _ONE, (torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten)),
    (_reshape, _ONE, ("view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten", "contiguous", "view_as")),
    (_pool, _ONE, (F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)),
    (_pool, _ONE, (F.avg_pool3d, F.adaptive_avg_pool3d, F.pixel_unshuffle, F.channel_shuffle, torch.channel_shuffle)),
    (_pool, _ONE, (torch.avg_pool1d, torch.adaptive_avg_pool1d, F.interpolate, F.pixel_shuffle)),
    (_reduction, _DIM, (torch.mean, torch.sum, "mean", "sum")),
]
_OTHERS = (
    *activations.TARGETS,
    *shapes.TARGETS,
    *contractions.TARGETS,
    *layers.TARGETS,
    *reading.TARGETS,
    *windows.TARGETS,
)

HANDLERS: dict[object, tuple[Handler, tuple[str, ...]]] = {
    t: (h, names) for h, names, ts in (*_TARGETS, *_OTHERS) for t in ts
}
