"""Which functions and methods of tensors have a layer rule: one dictionary, target -> handler.

A handler gets the graph (``Site``) and a node. It returns the rules to be applied in turn, with the operands of the
first, or raises ``NotLayerwise`` with the reason why torch's own derivatives have to do.
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
Handler = Callable[[Site, fx.Node], Operation]


def handle(site: Site, node: fx.Node) -> Operation:
    """The rules and operands of a call of a function or method; raises NotLayerwise where there are none."""
    handler = HANDLERS.get(node.target)
    if handler is None:
        raise _no_rule(node)
    return handler(site, node)


def _no_rule(node: fx.Node) -> NotLayerwise:
    return NotLayerwise(f"{getattr(node.target, '__name__', node.target)} has no layer rule")


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    value = node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
    if isinstance(value, fx.Node):
        raise NotLayerwise(f"its argument {name} is computed")
    return value


def _sum(site: Site, node: fx.Node, sign: float) -> Operation:
    if node.kwargs or len(node.args) != 2:
        raise NotLayerwise("a sum with further arguments")
    a, b = node.args
    if isinstance(b, (int, float)):
        return [Affine(1.0, sign * b)], [a]
    if isinstance(a, (int, float)):
        return [Affine(sign, a)], [b]
    return [Add(1.0, sign)], [a, b]


def _factors(node: fx.Node) -> tuple[Any, ...]:
    """The operands of a product, a quotient or a change of sign."""
    if node.kwargs or len(node.args) > 2:
        raise NotLayerwise("a product with further arguments")
    return node.args


def _negative(site: Site, node: fx.Node) -> Operation:
    return [Affine(-1.0, 0.0)], [_factors(node)[0]]


def _quotient(site: Site, node: fx.Node) -> Operation:
    a, b = _factors(node)
    if not isinstance(b, (int, float)):
        raise NotLayerwise("division by a tensor has no layer rule")
    return [Affine(1 / b, 0.0)], [a]


def _product(site: Site, node: fx.Node) -> Operation:
    a, b = _factors(node)
    if isinstance(b, (int, float)):
        return [Affine(b, 0.0)], [a]
    if isinstance(a, (int, float)):
        return [Affine(a, 0.0)], [b]
    return [Multiply()], [a, b]


def _concatenation(site: Site, node: fx.Node) -> Operation:
    parts = node.args[0]
    dim = node.kwargs.get("axis", _argument(node, 1, "dim", 0))
    if not isinstance(parts, (list, tuple)) or not isinstance(dim, int):
        raise NotLayerwise("a concatenation of computed length")
    return [Cat(dim % len(site.shape[node]))], list(parts)


def _linear(site: Site, node: fx.Node) -> Operation:
    arguments = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
    weight = site.attribute(arguments["weight"])
    bias = arguments.get("bias")
    none = Leaf(None, "bias", None)
    return [Linear(weight, none if bias is None else site.attribute(bias))], [arguments["input"]]


def _dropout(site: Site, node: fx.Node) -> Operation:
    if _argument(node, 2, "training", True) is not False:
        raise _no_rule(node)
    return [], [node.args[0]]


def _max_pool(site: Site, node: fx.Node, dims: int) -> Operation:
    names = {"kernel_size": None, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
    given = {n: _argument(node, i + 1, n, d) for i, (n, d) in enumerate(names.items())}
    if node.kwargs.get("return_indices"):
        raise NotLayerwise("return_indices")
    source: Any = node.args[0] if node.args else node.kwargs["input"]
    site.input(source)
    return [max_pool(site.shape[source], dims, **given)], [source]


def _reshape(site: Site, node: fx.Node) -> Operation:
    """Keeps the numbers and their order. Further inputs, of which only sizes are read, may follow the tensor itself."""
    region = site.region(node)
    if region.leaves or not region.inputs or region.inputs[0] != site.input(node.args[0]):
        raise NotLayerwise("reads parameters")
    return [Reshape(lambda inputs: region(inputs, []))], list(region.inputs)


def _activation(site: Site, node: fx.Node, defaults: Mapping[str, object], make: Callable[..., Rule]) -> Operation:
    given = dict(zip(defaults, node.args[1:], strict=False))
    if len(node.args) - 1 > len(defaults) or not set(node.kwargs) <= set(defaults):
        raise NotLayerwise("called with unknown arguments")
    values = {**defaults, **given, **node.kwargs}
    if any(isinstance(v, fx.Node) for v in values.values()):
        raise NotLayerwise("an argument that is computed")
    return [make(**values)], [node.args[0]]


# Linear maps of one tensor. Each says whether it keeps samples apart.


def _linear_map(site: Site, node: fx.Node, rowwise: bool) -> Operation:
    region = site.region(node)
    if len(region.inputs) != 1 or region.leaves:
        raise NotLayerwise("reads more than one tensor")

    def function(a: Tensor) -> Tensor:
        return region([a], [])

    return [LinearMap(function, rowwise)], [node.args[0]]


def _axes(site: Site, node: fx.Node) -> int:
    """How many axes the tensor has that the map is applied to."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source not in site.value:
        raise _no_rule(node)
    return len(site.shape[source])


def _pool(site: Site, node: fx.Node) -> Operation:
    return _linear_map(site, node, rowwise=_axes(site, node) == len(site.shape[node]))


def _reduction(site: Site, node: fx.Node) -> Operation:
    axes, dims = _axes(site, node), _argument(node, 1, "dim", None)
    dims = [dims] if isinstance(dims, int) else dims
    return _linear_map(site, node, rowwise=dims is not None and all(d % axes != 0 for d in dims))


def _order(node: fx.Node) -> list[int]:
    """The axes that a permutation names, in a tuple or one by one."""
    order: list[Any] = [d for a in node.args[1:] for d in (a if isinstance(a, (tuple, list)) else (a,))]
    if not order or not all(isinstance(d, int) for d in order):
        raise _no_rule(node)
    return order


def _permutation(site: Site, node: fx.Node) -> Operation:
    _axes(site, node)
    return _linear_map(site, node, rowwise=_order(node)[0] == 0)


def _transposition(site: Site, node: fx.Node) -> Operation:
    axes = _axes(site, node)
    return _linear_map(site, node, rowwise=all(d % axes != 0 for d in _order(node)))


def _index(site: Site, node: fx.Node) -> Operation:
    _axes(site, node)
    index = node.args[1]
    if _has_node(index) or _has_tensor(index):
        raise _no_rule(node)
    first = index[0] if isinstance(index, tuple) and index else index
    return _linear_map(site, node, rowwise=bool(first == slice(None)))


def _has_node(arg: object) -> bool:
    if isinstance(arg, slice):
        return any(isinstance(a, fx.Node) for a in (arg.start, arg.stop, arg.step))
    return isinstance(arg, fx.Node) or (isinstance(arg, (tuple, list)) and any(_has_node(a) for a in arg))


def _has_tensor(arg: object) -> bool:
    return isinstance(arg, (Tensor, list)) or (isinstance(arg, tuple) and any(_has_tensor(a) for a in arg))


# Handler -> functions, and names of methods, that it handles.
_TARGETS: list[tuple[Handler, tuple[object, ...]]] = [
    (partial(_sum, sign=1.0), (operator.add, operator.iadd, torch.add, "add", "add_")),
    (partial(_sum, sign=-1.0), (operator.sub, operator.isub, torch.sub, "sub", "sub_")),
    (_product, (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_")),
    (_quotient, (operator.truediv, torch.div, "div")),
    (_negative, (operator.neg, torch.neg, "neg")),
    (_concatenation, (torch.cat, torch.concat, torch.concatenate)),
    (_linear, (F.linear,)),
    (_dropout, (F.dropout, F.dropout2d)),
    (partial(_max_pool, dims=1), (F.max_pool1d, torch.max_pool1d)),
    (partial(_max_pool, dims=2), (F.max_pool2d, torch.max_pool2d)),
    (_reshape, (torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten)),
    (_reshape, ("view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten", "contiguous", "view_as")),
    (_pool, (F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)),
    (_pool, (torch.avg_pool1d, torch.adaptive_avg_pool1d, F.interpolate, F.pixel_shuffle)),
    (_reduction, (torch.mean, torch.sum, "mean", "sum")),
    (_permutation, (torch.permute, "permute")),
    (_transposition, (torch.transpose, torch.swapaxes, "transpose")),
    (_index, (operator.getitem,)),
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

HANDLERS: dict[object, Handler] = {target: handler for handler, targets in _TARGETS for target in targets}
HANDLERS |= {
    target: partial(_activation, defaults=defaults, make=make) for target, (defaults, make) in _ACTIVATIONS.items()
}
