"""Turns a torch.fx graph into a program: a layer rule for each node that has one, torch's derivatives for the rest."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..base.guards import refuse_randomness
from ..base.parameters import ParameterSpace
from ..rules import table as table
from ..rules.automatic import AutoRule
from ..rules.joints import Add, Affine, Cat, LinearMap, Multiply, Parameter, Reshape
from ..rules.linear import Linear
from ..rules.rule import Leaf, NotLayerwise, Rule
from .program import Node, Program
from .region import Region


class Builder:
    """One fx graph, executed once on a real batch to know what its values are."""

    def __init__(self, model: nn.Module, space: ParameterSpace, graph: fx.Graph, x: Tensor) -> None:
        self.model, self.space, self.graph = model, space, graph
        self.nodes: list[Node] = []
        self.value: dict[fx.Node, int] = {}
        self.shape: dict[fx.Node, torch.Size] = {}
        self._discrete: set[fx.Node] = set()  # tensors of integers or booleans
        self._execute(x)

    def _execute(self, x: Tensor) -> None:
        """Shapes of all tensors; other values (sizes, tuples) have none."""
        env: dict[fx.Node, Any] = {}
        modules = dict(self.model.named_modules())
        with torch.no_grad(), refuse_randomness(self.model, x.device):
            for node in self.graph.nodes:
                env[node] = self._run(node, env, modules, x)
                if isinstance(env[node], Tensor):
                    self.shape[node] = env[node].shape
                    if not env[node].is_floating_point():
                        self._discrete.add(node)

    def _run(self, node: fx.Node, env: dict[fx.Node, Any], modules: dict[str, nn.Module], x: Tensor) -> Any:
        target: Any = node.target
        args, kwargs = fx.map_arg(node.args, lambda n: env[n]), fx.map_arg(node.kwargs, lambda n: env[n])
        if node.op == "placeholder":
            return x.clone() if not env else (node.args[0] if node.args else None)
        if node.op == "get_attr":
            return operator.attrgetter(target)(self.model)
        if node.op == "call_module":
            return modules[target](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return None if node.op == "output" else target(*args, **kwargs)

    def build(self) -> Program:
        output = None
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "output":
                output = node.args[0]
            elif node.target is operator.getitem and not node.users:
                pass  # one of several results that forward does not use, such as a recurrence's last state
            elif node in self.shape and node.op != "get_attr":
                self._tensor(node)
        if not isinstance(output, fx.Node) or output not in self.value:
            raise NotLayerwise("forward returns something else than one tensor that it computed")
        return Program.of(self.nodes, self.value[output])

    def _placeholder(self, node: fx.Node) -> None:
        if not self.value:
            self.value[node] = 0
        elif not node.args:
            raise NotLayerwise(f"forward takes a second input {node.target!r}")
        elif node.users:
            raise NotLayerwise(f"forward uses its optional argument {node.target!r}")

    def _append(self, node: fx.Node, rules: Sequence[Rule], inputs: tuple[int, ...]) -> None:
        name = str(node.target) if node.op == "call_module" else node.name
        for rule in rules:
            self.nodes.append(Node(name, rule, inputs))
            inputs = (len(self.nodes),)
        self.value[node] = inputs[0]

    def _tensor(self, node: fx.Node) -> None:
        try:
            if node in self._discrete:
                raise NotLayerwise("its result is not a floating-point tensor")
            rules, parents = self._module(node) if node.op == "call_module" else self._function(node)
            self._append(node, rules, tuple(self._input(p) for p in parents))
        except NotLayerwise as e:
            self._automatic(node, str(e))

    def _automatic(self, node: fx.Node, why: str) -> None:
        region = Region(node, self.value, self.model, self.space)
        name = str(node.target) if node.op == "call_module" else node.name
        if region.inputs or any(leaf.slot is not None for leaf in region.leaves):
            self._append(node, [AutoRule(region, region.leaves, f"{name} ({why})")], tuple(region.inputs))
        # A constant of the graph is part of whoever reads it.

    def _input(self, arg: object) -> int:
        if isinstance(arg, int):
            return arg
        if isinstance(arg, fx.Node) and arg.op == "get_attr" and arg in self.shape and arg not in self.value:
            self._append(arg, [Parameter(self._attribute(arg))], ())
        if not isinstance(arg, fx.Node) or arg not in self.value:
            raise NotLayerwise("an operand that is not the output of a layer")
        return self.value[arg]

    def _module(self, node: fx.Node) -> tuple[list[Rule], list[Any]]:
        m = self.model.get_submodule(str(node.target))
        if len(node.args) != 1 or node.kwargs:
            raise NotLayerwise("called with other than one argument")
        source = node.args[0]
        self._input(source)
        shape = self.shape[source]  # type: ignore[index]
        if type(m) in table.RESHAPE_MODULES:
            return [Reshape.of(m)], [source]
        if type(m) in table.LINEAR_MODULES:
            return [LinearMap(self._one_tensor(node), len(shape) == len(self.shape[node]))], [source]
        make = table.MODULES.get(type(m))
        if make is None:
            raise NotLayerwise(f"{type(m).__name__} has no layer rule")
        made = make(m, lambda name: self._leaf(m, name), shape)
        return (made if isinstance(made, list) else [] if made is None else [made]), [source]

    def _leaf(self, module: nn.Module, name: str) -> Leaf:
        value = getattr(module, name)
        return Leaf(module, name, None if value is None else self.space.index.get(id(value)))

    def _attribute(self, arg: object) -> Leaf:
        """A parameter or buffer that forward itself reads."""
        if not isinstance(arg, fx.Node) or arg.op != "get_attr":
            raise NotLayerwise("a computed weight")
        owner, _, name = str(arg.target).rpartition(".")
        return self._leaf(self.model.get_submodule(owner), name)

    def _function(self, node: fx.Node) -> tuple[list[Rule], list[Any]]:
        target, args = node.target, node.args
        if target in table.ADDITIONS:
            return self._sum(node, table.ADDITIONS[target])
        if target in table.PRODUCTS or target in (operator.truediv, operator.neg, torch.div, torch.neg, "div", "neg"):
            return self._product(node)
        if target in table.CONCATENATIONS:
            return self._cat(node)
        if target is F.linear:
            return self._linear(node)
        if target in (F.dropout, F.dropout2d) and self._argument(node, 2, "training", True) is False:
            return [], [args[0]]
        if target in table.MAX_POOLS:
            return self._max_pool(node, table.MAX_POOLS[target])
        if target in table.RESHAPES:
            return self._reshape(node)
        if (rowwise := self._linear_map(node)) is not None:
            return [LinearMap(self._one_tensor(node), rowwise)], [args[0]]
        if target in table.FUNCTIONS:
            return [self._activation(node)], [args[0]]
        raise NotLayerwise(f"{getattr(target, '__name__', target)} has no layer rule")

    def _reshape(self, node: fx.Node) -> tuple[list[Rule], list[Any]]:
        """Further inputs, of which only sizes are read, may follow the tensor itself."""
        region = Region(node, self.value, self.model, self.space)
        if region.leaves or not region.inputs or region.inputs[0] != self._input(node.args[0]):
            raise NotLayerwise("reads parameters")
        return [Reshape(lambda inputs: region(inputs, []))], list(region.inputs)

    def _one_tensor(self, node: fx.Node) -> Callable[[Tensor], Tensor]:
        region = Region(node, self.value, self.model, self.space)
        if len(region.inputs) != 1 or region.leaves:
            raise NotLayerwise("reads more than one tensor")
        return lambda a: region([a], [])

    @staticmethod
    def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
        value = node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
        if isinstance(value, fx.Node):
            raise NotLayerwise(f"its argument {name} is computed")
        return value

    def _sum(self, node: fx.Node, sign: float) -> tuple[list[Rule], list[Any]]:
        if node.kwargs or len(node.args) != 2:
            raise NotLayerwise("a sum with further arguments")
        a, b = node.args
        if isinstance(b, (int, float)):
            return [Affine(1.0, sign * b)], [a]
        if isinstance(a, (int, float)):
            return [Affine(sign, a)], [b]
        return [Add(1.0, sign)], [a, b]

    def _product(self, node: fx.Node) -> tuple[list[Rule], list[Any]]:
        if node.kwargs or len(node.args) > 2:
            raise NotLayerwise("a product with further arguments")
        if node.target in (operator.neg, torch.neg, "neg"):
            return [Affine(-1.0, 0.0)], [node.args[0]]
        a, b = node.args
        division = node.target in (operator.truediv, torch.div, "div")
        if isinstance(b, (int, float)):
            return [Affine(1 / b if division else b, 0.0)], [a]
        if division:
            raise NotLayerwise("division by a tensor has no layer rule")
        if isinstance(a, (int, float)):
            return [Affine(a, 0.0)], [b]
        return [Multiply()], [a, b]

    def _cat(self, node: fx.Node) -> tuple[list[Rule], list[Any]]:
        parts = node.args[0]
        dim = node.kwargs.get("axis", self._argument(node, 1, "dim", 0))
        if not isinstance(parts, (list, tuple)) or not isinstance(dim, int):
            raise NotLayerwise("a concatenation of computed length")
        return [Cat(dim % len(self.shape[node]))], list(parts)

    def _linear(self, node: fx.Node) -> tuple[list[Rule], list[Any]]:
        arguments = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
        weight = self._attribute(arguments["weight"])
        bias = arguments.get("bias")
        none = Leaf(None, "bias", None)
        return [Linear(weight, none if bias is None else self._attribute(bias))], [arguments["input"]]

    def _max_pool(self, node: fx.Node, dims: int) -> tuple[list[Rule], list[Any]]:
        names = {"kernel_size": None, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
        given = {n: self._argument(node, i + 1, n, d) for i, (n, d) in enumerate(names.items())}
        if node.kwargs.get("return_indices"):
            raise NotLayerwise("return_indices")
        source: Any = node.args[0] if node.args else node.kwargs["input"]
        self._input(source)
        return [table.max_pool(self.shape[source], dims, **given)], [source]

    def _activation(self, node: fx.Node) -> Rule:
        defaults, make = table.FUNCTIONS[node.target]
        given = dict(zip(defaults, node.args[1:], strict=False))
        if len(node.args) - 1 > len(defaults) or not set(node.kwargs) <= set(defaults):
            raise NotLayerwise("called with unknown arguments")
        values = {**defaults, **given, **node.kwargs}
        if any(isinstance(v, fx.Node) for v in values.values()):
            raise NotLayerwise("an argument that is computed")
        return make(**values)

    def _linear_map(self, node: fx.Node) -> bool | None:
        """Whether samples stay apart, if the node is a linear map of its first argument; else None."""
        target = node.target
        if not node.args or not isinstance(node.args[0], fx.Node) or node.args[0] not in self.value:
            return None
        axes = len(self.shape[node.args[0]])
        if target in table.POOLS:
            return axes == len(self.shape[node])
        if target in table.REDUCTIONS:
            dims = self._argument(node, 1, "dim", None)
            dims = [dims] if isinstance(dims, int) else dims
            return dims is not None and all(d % axes != 0 for d in dims)
        if target in table.PERMUTATIONS:
            order: list[Any] = [d for a in node.args[1:] for d in (a if isinstance(a, (tuple, list)) else (a,))]
            if not order or not all(isinstance(d, int) for d in order):
                return None
            return order[0] == 0 if target in (torch.permute, "permute") else all(d % axes != 0 for d in order)
        if target is operator.getitem:
            first = node.args[1][0] if isinstance(node.args[1], tuple) and node.args[1] else node.args[1]
            static = not _has_node(node.args[1]) and not _has_tensor(node.args[1])
            return bool(first == slice(None)) if static else None
        return None


def _has_node(arg: object) -> bool:
    if isinstance(arg, slice):
        return any(isinstance(a, fx.Node) for a in (arg.start, arg.stop, arg.step))
    return isinstance(arg, fx.Node) or (isinstance(arg, (tuple, list)) and any(_has_node(a) for a in arg))


def _has_tensor(arg: object) -> bool:
    return isinstance(arg, (Tensor, list)) or (isinstance(arg, tuple) and any(_has_tensor(a) for a in arg))
