"""Turns a torch.fx graph into a program: a layer rule for each node that has one, torch's derivatives for the rest."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..base.parameters import ParameterSpace
from ..base.randomness import without_randomness
from ..base.torch_internals import without_grad
from ..rules.automatic import AutoRule
from ..rules.constants import Constant
from ..rules.joints import Parameter
from ..rules.rule import Leaf, NotLayerwise, Rule
from ..rules.table import MODULES
from .arguments import only_argument
from .functions import handle
from .modules import COMPOSED, composed, several
from .program import Node, Program
from .region import Region
from .site import Operation, Parts, is_discrete, reads_no_numbers
from .tracing import own_name


class Builder:
    """One fx graph, executed once on a real batch to know what its values are."""

    def __init__(self, model: nn.Sequential, space: ParameterSpace, graph: fx.Graph, x: Tensor) -> None:
        self.model, self.space, self.graph = model, space, graph
        self.nodes: list[Node] = []
        self.value: dict[fx.Node, int] = {}
        self.shape: dict[fx.Node, torch.Size] = {}
        self.dtype: dict[fx.Node, torch.dtype] = {}
        self.parts: dict[fx.Node, Parts] = {}
        self._name = ""  # of the node that is being built
        self._follows = [False]  # of each value, whether a derivative passes from a parameter to it
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
                self.shape[node], self.dtype[node] = value.shape, value.dtype

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
            elif node.op in ("call_module", "call_function"):
                self._several(node)
        if not isinstance(output, fx.Node) or output not in self.value:
            raise NotLayerwise("forward returns something else than one tensor that it computed")
        return Program.of(self.nodes, self.value[output])

    def _placeholder(self, node: fx.Node) -> None:
        if not self.value:
            self.value[node] = 0
        else:
            raise NotLayerwise(f"forward takes a second input {node.target!r}")

    def _append(self, rules: Sequence[Rule], inputs: tuple[int, ...]) -> int:
        for rule in rules:
            self.nodes.append(Node(self._name, rule, inputs))
            follows = any(s is not None for s in rule.slots) or any(self._follows[i] for i in inputs)
            self._follows.append(follows and not isinstance(rule, Constant))
            inputs = (len(self.nodes),)
        return inputs[0]

    def _tensor(self, node: fx.Node) -> None:
        try:
            with self._all_or_nothing(node):
                if is_discrete(self, node):
                    raise NotLayerwise("its result is not a floating-point tensor")
                rules, parents = self._module(node) if node.op == "call_module" else handle(self, node)
                self.value[node] = self._append(rules, tuple(self.input(p) for p in parents))
        except NotLayerwise as e:
            self._automatic(node, str(e))

    def _several(self, node: fx.Node) -> None:
        """A tuple, or what is no tensor; without a rule, its entries are computed where they are taken out of it."""
        with contextlib.suppress(NotLayerwise), self._all_or_nothing(node):
            parts = self._entries(node)
            if parts is not None:
                self.parts[node] = parts

    def _entries(self, node: fx.Node) -> Parts | None:
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            return None if type(module) in MODULES else several(self, node, module)
        source, index = node.args[:2] if node.target is operator.getitem else (None, None)
        held = self.parts.get(source) if isinstance(source, fx.Node) else None
        entry = held[index] if held is not None and isinstance(index, int) and -len(held) <= index < len(held) else None
        return entry if isinstance(entry, tuple) else None

    @contextlib.contextmanager
    def _all_or_nothing(self, node: fx.Node) -> Iterator[None]:
        """Steps made before a handler finds that it cannot go on are taken back."""
        self._name, before = _name(node), len(self.nodes)
        try:
            yield
        except NotLayerwise:
            del self.nodes[before:], self._follows[before + 1 :]
            self.value = {n: i for n, i in self.value.items() if i <= before}
            raise

    def _automatic(self, node: fx.Node, why: str) -> None:
        region = self.region(node)
        follows = any(self._follows[i] for i in region.inputs) or any(leaf.slot is not None for leaf in region.leaves)
        if is_discrete(self, node) or reads_no_numbers(self, node) or not follows:
            rule: Rule = Constant(region, region.leaves)
        else:
            rule = AutoRule(region, region.leaves, f"{self._name} ({why})")
        self.value[node] = self._append([rule], tuple(region.inputs))

    def _module(self, node: fx.Node) -> Operation:
        m = self.model.get_submodule(str(node.target))
        if type(m) not in MODULES and type(m) in COMPOSED:
            return composed(self, node, m)
        source = only_argument(node, m)
        self.input(source)
        shape = self.shape[source]
        make = MODULES.get(type(m))
        if make is None:
            raise NotLayerwise(f"{type(m).__name__} has no layer rule")
        made = make(m, lambda name: self.leaf(m, name), shape)
        return (made if isinstance(made, list) else [] if made is None else [made]), [source]

    # What the handlers ask (``functions.Site``).

    def input(self, arg: object) -> int:
        """Index of an operand among the values; a parameter that forward reads becomes one."""
        if isinstance(arg, int):
            return arg
        if isinstance(arg, fx.Node) and arg.op == "get_attr" and arg in self.shape and arg not in self.value:
            self._name, here = _name(arg), self._name
            self.value[arg] = self._append([Parameter(self.attribute(arg))], ())
            self._name = here
        if not isinstance(arg, fx.Node) or arg not in self.value:
            raise NotLayerwise("an operand that is not the output of a layer")
        return self.value[arg]

    def attribute(self, arg: object) -> Leaf:
        """A parameter or buffer that forward itself reads."""
        if not isinstance(arg, fx.Node) or arg.op != "get_attr":
            raise NotLayerwise("a computed weight")
        owner, _, name = str(arg.target).rpartition(".")
        return self.leaf(self.model.get_submodule(owner), name)

    def leaf(self, module: nn.Module, name: str) -> Leaf:
        """A parameter or buffer of a module."""
        value = getattr(module, name)
        return Leaf(module, name, None if value is None else self.space.index.get(id(value)))

    def step(self, rules: Sequence[Rule], operands: Sequence[Any]) -> int:
        """A value of its own, by rules applied in turn."""
        return self._append(rules, tuple(self.input(o) for o in operands))

    def region(self, node: fx.Node) -> Region:
        """The node as a function, to be run by torch."""
        return Region(node, self.value, self.model, self.space)


def _name(node: fx.Node) -> str:
    return own_name(node.target) if node.op == "call_module" else node.name
