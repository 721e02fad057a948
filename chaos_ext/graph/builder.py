"""Turns a torch.fx graph into a program: a layer rule for each node that has one, torch's derivatives for the rest."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..base.parameters import ParameterSpace
from ..base.randomness import without_randomness
from ..base.torch_internals import without_grad
from ..rules.automatic import AutoRule
from ..rules.joints import Parameter
from ..rules.rule import Leaf, NotLayerwise, Rule
from ..rules.table import MODULES
from .arguments import only_argument
from .functions import Operation, handle
from .program import Node, Program
from .region import Region
from .tracing import own_name


class Builder:
    """One fx graph, executed once on a real batch to know what its values are."""

    def __init__(self, model: nn.Sequential, space: ParameterSpace, graph: fx.Graph, x: Tensor) -> None:
        self.model, self.space, self.graph = model, space, graph
        self.nodes: list[Node] = []
        self.value: dict[fx.Node, int] = {}
        self.shape: dict[fx.Node, torch.Size] = {}
        self._discrete: set[fx.Node] = set()  # tensors of integers or booleans
        without_randomness(lambda: self._execute(x), model[0], x.device)

    @without_grad
    def _execute(self, x: Tensor) -> None:
        """Shapes of all tensors; other values (sizes, tuples) have none."""
        env: dict[fx.Node, Any] = {}
        modules = dict(self.model.named_modules())
        for node in self.graph.nodes:
            env[node] = self._run(node, env, modules, x)
        for node, value in env.items():
            if isinstance(value, Tensor):
                self.shape[node] = value.shape
                if not value.is_floating_point():
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
        else:
            raise NotLayerwise(f"forward takes a second input {node.target!r}")

    def _append(self, node: fx.Node, rules: Sequence[Rule], inputs: tuple[int, ...]) -> None:
        name = _name(node)
        for rule in rules:
            self.nodes.append(Node(name, rule, inputs))
            inputs = (len(self.nodes),)
        self.value[node] = inputs[0]

    def _tensor(self, node: fx.Node) -> None:
        try:
            if node in self._discrete:
                raise NotLayerwise("its result is not a floating-point tensor")
            rules, parents = self._module(node) if node.op == "call_module" else handle(self, node)
            self._append(node, rules, tuple(self.input(p) for p in parents))
        except NotLayerwise as e:
            self._automatic(node, str(e))

    def _automatic(self, node: fx.Node, why: str) -> None:
        region, name = self.region(node), _name(node)
        if region.inputs or any(leaf.slot is not None for leaf in region.leaves):
            self._append(node, [AutoRule(region, region.leaves, f"{name} ({why})")], tuple(region.inputs))
        # A constant of the graph is part of whoever reads it.

    def _module(self, node: fx.Node) -> Operation:
        m = self.model.get_submodule(str(node.target))
        source = only_argument(node, m)
        self.input(source)
        shape = self.shape[source]
        make = MODULES.get(type(m))
        if make is None:
            raise NotLayerwise(f"{type(m).__name__} has no layer rule")
        made = make(m, lambda name: self._leaf(m, name), shape)
        return (made if isinstance(made, list) else [] if made is None else [made]), [source]

    def _leaf(self, module: nn.Module, name: str) -> Leaf:
        value = getattr(module, name)
        return Leaf(module, name, None if value is None else self.space.index.get(id(value)))

    # What the handlers ask (``functions.Site``).

    def input(self, arg: object) -> int:
        """Index of an operand among the values; a parameter that forward reads becomes one."""
        if isinstance(arg, int):
            return arg
        if isinstance(arg, fx.Node) and arg.op == "get_attr" and arg in self.shape and arg not in self.value:
            self._append(arg, [Parameter(self.attribute(arg))], ())
        if not isinstance(arg, fx.Node) or arg not in self.value:
            raise NotLayerwise("an operand that is not the output of a layer")
        return self.value[arg]

    def attribute(self, arg: object) -> Leaf:
        """A parameter or buffer that forward itself reads."""
        if not isinstance(arg, fx.Node) or arg.op != "get_attr":
            raise NotLayerwise("a computed weight")
        owner, _, name = str(arg.target).rpartition(".")
        return self._leaf(self.model.get_submodule(owner), name)

    def region(self, node: fx.Node) -> Region:
        """The node as a function, to be run by torch."""
        return Region(node, self.value, self.model, self.space)


def _name(node: fx.Node) -> str:
    return own_name(node.target) if node.op == "call_module" else node.name
