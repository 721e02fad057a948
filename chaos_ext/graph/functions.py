"""Which functions and methods of tensors have a layer rule: one dictionary, target -> handler.

A handler gets the graph (``Site``) and a call with its arguments by name. It returns the rules to be applied in turn,
with the operands of the first, or raises ``NotLayerwise`` with the reason why torch's own derivatives have to do.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from .. import _ops
from ..rules.elementwise import Elementwise, gelu
from ..rules.joints import Add, Affine, Cat, LinearMap, Multiply, Reshape
from ..rules.linear import Linear
from ..rules.rule import Leaf, NotLayerwise, Rule
from ..rules.table import max_pool
from .arguments import Call, has_node, has_tensor
from .region import Region


class Site(Protocol):
    """What a handler may ask of the graph that is being built.

    Attributes:
        value: index of each tensor that is already a value of the program.
        shape: of each tensor, on the batch that was captured.
    """

    value: dict[fx.Node, int]
    shape: dict[fx.Node, torch.Size]

    def input(self, arg: object) -> int:
        """Index of an operand among the values; raises NotLayerwise for what is no tensor of the program."""

    def attribute(self, arg: object) -> Leaf:
        """A parameter or buffer that forward itself reads; raises NotLayerwise for anything else."""

    def region(self, node: fx.Node) -> Region:
        """The node as a function, to be run by torch."""


Operation = tuple[list[Rule], list[Any]]  # rules to be applied in turn, operands of the first
Handler = Callable[[Site, Call], Operation]


def handle(site: Site, node: fx.Node) -> Operation:
    """The rules and operands of a call of a function or method; raises NotLayerwise where there are none."""
    known = HANDLERS.get(node.target)
    if known is None:
        raise _no_rule(node)
    handler, names = known
    return handler(site, Call(node, names))


def _no_rule(node: fx.Node) -> NotLayerwise:
    return NotLayerwise(f"{getattr(node.target, '__name__', node.target)} has no layer rule")


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
    if not isinstance(b, (int, float)):
        raise NotLayerwise("division by a tensor has no layer rule")
    return [Affine(1 / b, 0.0)], [call["input"]]


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


def _linear(site: Site, call: Call) -> Operation:
    weight, bias = site.attribute(call["weight"]), call.get("bias")
    none = Leaf(None, "bias", None)
    return [Linear(weight, none if bias is None else site.attribute(bias))], [call["input"]]


def _dropout(site: Site, call: Call) -> Operation:
    if call.plain("training", True) is not False:
        raise _no_rule(call.node)
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
    region, own = site.region(call.node), site.input(call["input"])
    if region.leaves or own not in region.inputs:
        raise NotLayerwise("reads parameters")
    operands = [own, *(i for i in region.inputs if i != own)]
    order = [operands.index(i) for i in region.inputs]
    return [Reshape(lambda inputs: region([inputs[i] for i in order], []))], operands


def _activation(site: Site, call: Call, defaults: Mapping[str, object], make: Callable[..., Rule]) -> Operation:
    call.without_others(("input", *defaults), "called with unknown arguments")
    return [make(**{name: call.plain(name, default) for name, default in defaults.items()})], [call["input"]]


# Linear maps of one tensor. Each says whether it keeps samples apart.


def _linear_map(site: Site, call: Call, rowwise: bool) -> Operation:
    region = site.region(call.node)
    if len(region.inputs) != 1 or region.leaves:
        raise NotLayerwise("reads more than one tensor")

    def function(a: Tensor) -> Tensor:
        return region([a], [])

    return [LinearMap(function, rowwise)], [call["input"]]


def _axes(site: Site, call: Call) -> int:
    """How many axes the tensor has that the map is applied to."""
    source = call["input"]
    if not isinstance(source, fx.Node) or source not in site.value:
        raise _no_rule(call.node)
    return len(site.shape[source])


def _pool(site: Site, call: Call) -> Operation:
    return _linear_map(site, call, rowwise=_axes(site, call) == len(site.shape[call.node]))


def _reduction(site: Site, call: Call) -> Operation:
    axes, dims = _axes(site, call), call.plain("dim")
    dims = [dims] if isinstance(dims, int) else dims
    return _linear_map(site, call, rowwise=bool(dims) and all(d % axes != 0 for d in dims))  # (): over all


def _order(call: Call, *given: Any) -> list[int]:
    """The axes that a permutation names, in a tuple or one by one."""
    order: list[Any] = [d for a in given for d in (a if isinstance(a, (tuple, list)) else (a,))]
    if not order or not all(isinstance(d, int) for d in order):
        raise _no_rule(call.node)
    return order


def _permutation(site: Site, call: Call) -> Operation:
    axes = _axes(site, call)
    return _linear_map(site, call, rowwise=_order(call, call["dims"], *call.further)[0] % axes == 0)


def _transposition(site: Site, call: Call, names: tuple[str, str]) -> Operation:
    axes, order = _axes(site, call), _order(call, *(call[name] for name in names))
    return _linear_map(site, call, rowwise=all(d % axes != 0 for d in order))


def _index(site: Site, call: Call) -> Operation:
    _axes(site, call)
    index = call["index"]
    if has_node(index) or has_tensor(index):
        raise _no_rule(call.node)
    first = index[0] if isinstance(index, tuple) and index else index
    return _linear_map(site, call, rowwise=bool(first == slice(None)))


_ONE, _PAIR, _DIM = ("input",), ("input", "other"), ("input", "dim")
_PARTS, _WEIGHTS, _TRAINING = ("tensors", "dim"), ("input", "weight", "bias"), ("input", "p", "training")
_WINDOW = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_SWAP, _SWAP_AXES = ("dim0", "dim1"), ("axis0", "axis1")

# Handler, names of the arguments that may be given in order, functions and names of methods that it handles.
_TARGETS: list[tuple[Handler, tuple[str, ...], tuple[object, ...]]] = [
    (partial(_sum, sign=1.0), _PAIR, (operator.add, operator.iadd, torch.add, "add", "add_")),
    (partial(_sum, sign=-1.0), _PAIR, (operator.sub, operator.isub, torch.sub, "sub", "sub_")),
    (_product, _PAIR, (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_")),
    (_quotient, _PAIR, (operator.truediv, torch.div, "div")),
    (_negative, _ONE, (operator.neg, torch.neg, "neg")),
    (_concatenation, _PARTS, (torch.cat, torch.concat, torch.concatenate)),
    (_linear, _WEIGHTS, (F.linear,)),
    (_dropout, _TRAINING, (F.dropout, F.dropout2d)),
    (partial(_max_pool, dims=1), _WINDOW, (F.max_pool1d, torch.max_pool1d)),
    (partial(_max_pool, dims=2), _WINDOW, (F.max_pool2d, torch.max_pool2d)),
    (_reshape, _ONE, (torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten)),
    (_reshape, _ONE, ("view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten", "contiguous", "view_as")),
    (_pool, _ONE, (F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)),
    (_pool, _ONE, (torch.avg_pool1d, torch.adaptive_avg_pool1d, F.interpolate, F.pixel_shuffle)),
    (_reduction, _DIM, (torch.mean, torch.sum, "mean", "sum")),
    (_permutation, ("input", "dims"), (torch.permute, "permute")),
    (partial(_transposition, names=_SWAP), ("input", *_SWAP), (torch.transpose, "transpose")),
    (partial(_transposition, names=_SWAP_AXES), ("input", *_SWAP_AXES), (torch.swapaxes,)),
    (_index, ("input", "index"), (operator.getitem,)),
]

# Activation -> names of the arguments after the input with their defaults, and the rule that they make.
_ACTIVATIONS: dict[object, tuple[dict[str, object], Callable[..., Rule]]] = {
    F.leaky_relu: (
        {"negative_slope": 0.01, "inplace": False},
        lambda negative_slope, inplace: Elementwise(_ops.LEAKY_RELU, negative_slope),
    ),
    F.elu: ({"alpha": 1.0, "inplace": False}, lambda alpha, inplace: Elementwise(_ops.ELU, alpha)),
    F.celu: ({"alpha": 1.0, "inplace": False}, lambda alpha, inplace: Elementwise(_ops.CELU, alpha)),
    F.softplus: ({"beta": 1.0, "threshold": 20.0}, lambda beta, threshold: Elementwise(_ops.SOFTPLUS, beta, threshold)),
    F.gelu: ({"approximate": "none"}, gelu),
    F.hardtanh: (
        {"min_val": -1.0, "max_val": 1.0, "inplace": False},
        lambda min_val, max_val, inplace: Elementwise(_ops.HARDTANH, min_val, max_val),
    ),
    F.relu6: ({"inplace": False}, lambda inplace: Elementwise(_ops.HARDTANH, 0.0, 6.0)),
}
_PLAIN_ACTIVATIONS: dict[int, tuple[object, ...]] = {
    _ops.RELU: (F.relu, torch.relu, "relu", "relu_", torch.relu_),
    _ops.SELU: (F.selu, torch.selu),
    _ops.SIGMOID: (torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_"),
    _ops.TANH: (torch.tanh, F.tanh, "tanh", "tanh_"),
    _ops.SILU: (F.silu,),
}
_ACTIVATIONS |= {
    f: ({"inplace": False}, lambda inplace, kind=kind: Elementwise(kind))
    for kind, functions in _PLAIN_ACTIVATIONS.items()
    for f in functions
}

HANDLERS: dict[object, tuple[Handler, tuple[str, ...]]] = {t: (h, names) for h, names, ts in _TARGETS for t in ts}
HANDLERS |= {
    target: (partial(_activation, defaults=defaults, make=make), ("input", *defaults))
    for target, (defaults, make) in _ACTIVATIONS.items()
}
