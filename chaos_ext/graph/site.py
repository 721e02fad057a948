"""What handlers of functions and modules may ask of the graph that is being built, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from ..rules.joints import LinearMap
from ..rules.rule import Leaf, NotLayerwise, Rule
from .arguments import Call
from .region import Region

Parts = tuple[Any, ...]  # of values by index, None for one that has no rule, or of such tuples


class Site(Protocol):
    """The graph that is being built.

    Attributes:
        value: index of each tensor that is already a value of the program.
        shape, dtype: of each tensor, on the batch that was captured.
        parts: of each tuple whose entries are values of the program, these.
    """

    value: dict[fx.Node, int]
    shape: dict[fx.Node, torch.Size]
    dtype: dict[fx.Node, torch.dtype]
    parts: dict[fx.Node, Parts]

    def input(self, arg: object) -> int:
        """Index of an operand among the values; raises NotLayerwise for what is no tensor of the program."""

    def attribute(self, arg: object) -> Leaf:
        """A parameter or buffer that forward itself reads; raises NotLayerwise for anything else."""

    def leaf(self, module: nn.Module, name: str) -> Leaf:
        """A parameter or buffer of a module."""

    def region(self, node: fx.Node) -> Region:
        """The node as a function, to be run by torch."""

    def step(self, rules: Sequence[Rule], operands: Sequence[Any]) -> int:
        """Makes a value of its own by rules that are applied in turn; its index, an operand of other steps."""


# What reads nothing of a tensor but its size, dtype and device.
_FACTORIES = frozenset(
    (
        *(torch.arange, torch.tensor, torch.zeros, torch.ones, torch.full, torch.eye, torch.linspace),
        *(torch.zeros_like, torch.ones_like, torch.full_like, "new_zeros", "new_ones", "new_full"),
    )
)

Operation = tuple[list[Rule], list[Any]]  # rules to be applied in turn, operands of the first
Handler = Callable[[Site, Call], Operation]


def is_discrete(site: Site, arg: object) -> bool:
    """Whether an operand is a tensor of integers or booleans."""
    return isinstance(arg, fx.Node) and arg in site.dtype and not site.dtype[arg].is_floating_point


def reads_no_numbers(site: Site, node: fx.Node) -> bool:
    """Whether a node makes a tensor without reading those of the program, but for what they are like."""
    like = node.op == "call_method" or getattr(node.target, "__name__", "").endswith("_like")
    read = [n for n in node.all_input_nodes if n in site.value and not (like and n is node.args[0])]
    return node.target in _FACTORIES and not read


def no_rule(node: fx.Node) -> NotLayerwise:
    """That the function or method has none."""
    return NotLayerwise(f"{getattr(node.target, '__name__', node.target)} has no layer rule")


def axes_of(site: Site, call: Call, name: str = "input") -> int:
    """How many axes a tensor has that the function is applied to."""
    source = call[name]
    if not isinstance(source, fx.Node) or source not in site.shape or is_discrete(site, source):
        raise no_rule(call.node)
    site.input(source)
    return len(site.shape[source])


def axis(call: Call, axes: int, name: str = "dim", default: int | None = None) -> int:
    """An axis that an argument names, counted from the first."""
    dim = call.plain(name, default)
    if not isinstance(dim, int) or not -axes <= dim < axes:
        raise NotLayerwise(f"{name} is {dim!r}")
    return dim % axes


def linear_map(site: Site, call: Call, rowwise: bool) -> Operation:
    """The node as a linear function of its only tensor."""
    site.input(call["input"])
    region = site.region(call.node)
    if len(region.inputs) != 1 or region.leaves:
        raise NotLayerwise("reads more than one tensor")

    def function(a: Tensor) -> Tensor:
        return region([a], [])

    return [LinearMap(function, rowwise)], [call["input"]]


def sizes_only(site: Site, call: Call) -> tuple[Callable[[Sequence[Tensor]], Tensor], list[Any]]:
    """The node as a function of its tensor and of the sizes of further ones, and its operands, the tensor first."""
    own, region = site.input(call["input"]), site.region(call.node)
    if region.leaves or own not in region.inputs:
        raise NotLayerwise("reads parameters")
    operands = [own, *(i for i in region.inputs if i != own)]
    order = [operands.index(i) for i in region.inputs]
    return lambda inputs: region([inputs[i] for i in order], []), operands
