"""From a torch.nn.Module to a program of layer rules, through torch.fx.

A model that uses anything without a rule, or whose behaviour torch.fx cannot see (hooks, parametrizations, patched
forwards), is not captured: ``capture`` then says why, and the functional engine takes over.
"""

from __future__ import annotations

import operator
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from .layer_table import FUNCTIONS, METHODS, MODULES
from .layers import Add, Linear, NotLayerwise, Reshape, Rule
from .params import ParameterSpace


@dataclass(frozen=True)
class Node:
    """One step of the program; ``inputs`` index earlier values, value 0 is x, value i + 1 is node i's output."""

    name: str
    rule: Rule
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """The model as rules in topological order.

    Attributes:
        nodes: the steps.
        output: index of the value that the model returns.
        depends: for each value, the set of nodes with parameters that it depends on.
    """

    nodes: tuple[Node, ...]
    output: int
    depends: tuple[frozenset[int], ...]

    @property
    def linears(self) -> list[int]:
        """Indices of the nodes that own differentiated parameters."""
        return [i for i, n in enumerate(self.nodes) if any(s is not None for s in n.rule.slots)]

    @property
    def tied(self) -> bool:
        used = [s for n in self.nodes for s in n.rule.slots if s is not None]
        return len(used) != len(set(used))


def _is_leaf(m: nn.Module) -> bool:
    return type(m) is not nn.Sequential and m.__module__.startswith("torch.nn")


_tracing = threading.RLock()  # torch.fx patches nn.Module for the whole process while it traces


class _Tracer(fx.Tracer):
    """Other threads that run modules meanwhile see torch's own behaviour."""

    def __init__(self) -> None:
        super().__init__()
        self._owner = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._owner:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._owner:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return _is_leaf(m)


def _refuse_invisible(model: nn.Module) -> None:
    for name, m in model.named_modules():
        where = name or "the model"
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            raise NotLayerwise(f"{where} has hooks")
        if "forward" in vars(m):
            raise NotLayerwise(f"{where} has a patched forward")
    module = nn.modules.module
    if module._global_forward_hooks or module._global_forward_pre_hooks or module._global_backward_hooks:
        raise NotLayerwise("global module hooks are registered")


class _Builder:
    """Turns one fx graph into nodes."""

    def __init__(self, model: nn.Module, space: ParameterSpace) -> None:
        # torch.fx never treats the root as a leaf: a model that is itself one layer goes into a container.
        bare = _is_leaf(model)
        self.model, self.space = nn.Sequential(model) if bare else model, space
        self.value: dict[fx.Node, int] = {}
        self.nodes: list[Node] = []
        self.sizes: set[fx.Node] = set()

    def build(self) -> Program:
        with _tracing:
            graph = _Tracer().trace(self.model)
        output = None
        for node in graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "output":
                output = self._input(node.args[0])
            else:
                self._call(node)
        assert output is not None
        return Program(tuple(self.nodes), output, self._dependencies())

    def _placeholder(self, node: fx.Node) -> None:
        if not self.value:
            self.value[node] = 0
        elif not node.args:
            raise NotLayerwise(f"forward takes a second input {node.target!r}")
        elif node.users:
            raise NotLayerwise(f"forward uses its optional argument {node.target!r}")

    def _input(self, arg: object) -> int:
        if not isinstance(arg, fx.Node) or arg not in self.value:
            raise NotLayerwise(f"{arg!r} is not the output of a layer")
        return self.value[arg]

    def _append(self, node: fx.Node, rule: Rule | None, inputs: tuple[int, ...]) -> None:
        if rule is None:
            self.value[node] = inputs[0]
            return
        self.nodes.append(Node(str(node.target) if node.op == "call_module" else node.name, rule, inputs))
        self.value[node] = len(self.nodes)

    def _call(self, node: fx.Node) -> None:
        if node.op == "call_module":
            if len(node.args) != 1 or node.kwargs:
                raise NotLayerwise(f"{node.target} is called with other than one argument")
            self._append(node, self._module_rule(str(node.target)), (self._input(node.args[0]),))
        elif node.op in ("call_function", "call_method"):
            if not self._size(node):
                self._function(node)
        else:
            raise NotLayerwise(f"{node.op} {node.target} (a parameter or buffer used directly)")

    def _module_rule(self, name: str) -> Rule | None:
        m = self.model.get_submodule(name)
        if type(m) is nn.Linear:
            slots = [self.space.index.get(id(p)) for p in (m.weight, m.bias)]
            return Linear(m, *slots)
        if isinstance(m, nn.Dropout) and not m.training:
            return None
        make = MODULES.get(type(m))
        if make is None:
            raise NotLayerwise(f"{name} ({type(m).__name__}) has no layer rule")
        return make(m)

    def _size(self, node: fx.Node) -> bool:
        """x.size(0), x.shape[0] and len-like calls, of use only to a view that keeps the sample axis."""
        args = node.args
        is_size = (
            (node.target == "size" and args[1:] == (0,))
            or (node.target is getattr and args[1:] == ("shape",))
            or (node.target is operator.getitem and args[0] in self.sizes and args[1:] == (0,))
        )
        if is_size:
            self.sizes.add(node)
        return is_size

    def _function(self, node: fx.Node) -> None:
        target = METHODS.get(node.target, node.target) if node.op == "call_method" else node.target
        if target in ("view", "reshape"):
            if len(node.args) != 3 or node.args[1] not in self.sizes or node.args[2] != -1:
                raise NotLayerwise(f"{target} other than {target}(x.size(0), -1)")
            self._append(node, Reshape(), (self._input(node.args[0]),))
        elif target in (operator.add, torch.add, "add") and not node.kwargs and len(node.args) == 2:
            self._append(node, Add(), (self._input(node.args[0]), self._input(node.args[1])))
        elif target in FUNCTIONS:
            self._append(node, self._functional_rule(node, target), (self._input(node.args[0]),))
        else:
            raise NotLayerwise(f"{getattr(node.target, '__name__', node.target)} has no layer rule")

    def _functional_rule(self, node: fx.Node, target: object) -> Rule:
        defaults, make = FUNCTIONS[target]
        given = dict(zip(defaults, node.args[1:], strict=False))
        if len(node.args) - 1 > len(defaults) or not set(node.kwargs) <= set(defaults):
            raise NotLayerwise(f"{node.name} is called with unknown arguments")
        values = {**defaults, **given, **node.kwargs}
        if any(isinstance(v, fx.Node) for v in values.values()):
            raise NotLayerwise(f"{node.name} has an argument that is computed")
        return make(**values)

    def _dependencies(self) -> tuple[frozenset[int], ...]:
        depends: list[frozenset[int]] = [frozenset()]
        for i, n in enumerate(self.nodes):
            own = {i} if any(s is not None for s in n.rule.slots) else set()
            depends.append(frozenset(own).union(*(depends[j] for j in n.inputs)))
        return tuple(depends)


@dataclass(frozen=True)
class Capture:
    """A program, or the reason why there is none."""

    program: Program | None
    reason: str


def _is_plain(v: object) -> bool:
    """A number, a string, None, or a small container of these: what a forward may branch on."""
    if isinstance(v, dict):
        return len(v) <= 32 and all(_is_plain(u) for u in v.values())
    if isinstance(v, (list, tuple, set, frozenset)):
        return len(v) <= 32 and all(_is_plain(u) for u in v)
    return v is None or isinstance(v, (int, float, str))


def _signature(model: nn.Module) -> tuple[object, ...]:
    """What decides the program besides the code of forward: modules, their modes and scalar settings, parameters."""
    parts: list[object] = []
    for m in model.modules():
        settings = tuple((k, repr(v)) for k, v in vars(m).items() if k[0] != "_" and _is_plain(v))
        hooks = len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) + len(m._backward_pre_hooks)
        parts.append((id(m), type(m), hooks, "forward" in vars(m), settings))
        parts.extend((id(p), p.requires_grad) for p in m._parameters.values() if p is not None)
    return tuple(parts)


_cache: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], Capture]] = weakref.WeakKeyDictionary()


def capture(model: nn.Module, space: ParameterSpace, validate: Callable[[Program], str | None]) -> Capture:
    """The model's program; ``validate`` sees each new program once and returns why it must not be used, or None."""
    signature = _signature(model)
    known = _cache.get(model)
    if known is not None and known[0] == signature:
        return known[1]
    result = _trace(model, space)
    if result.program is not None:
        problem = validate(result.program)
        result = Capture(None, problem) if problem else result
    _cache[model] = (signature, result)
    return result


def _trace(model: nn.Module, space: ParameterSpace) -> Capture:
    try:
        _refuse_invisible(model)
        return Capture(_Builder(model, space).build(), "")
    except NotLayerwise as e:
        return Capture(None, str(e))
    except Exception as e:  # torch.fx raises whatever the user's forward does with a symbolic value
        return Capture(None, f"torch.fx cannot trace it ({type(e).__name__}: {e})")
