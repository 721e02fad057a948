"""What decides a model's program besides the code of its forward, and whether it is still so.

Modules, children and parameters have to be the very same objects, held weakly: another may take a freed one's id.
Modes, plain settings (what a forward may branch on), frozen parameters, and the shape and dtype of the input have to be
equal.
"""

from __future__ import annotations

import operator
import weakref
from typing import Any

from torch import Tensor, nn

from ..base.parameters import ModuleTree
from ..base.torch_internals import has_hooks, own_children, own_parameters
from ..rules.table import MODULES


class Signature:
    """Of one model and one input [N, ...]."""

    def __init__(self, tree: ModuleTree, x: Tensor) -> None:
        self._input = x.shape[1:], x.dtype
        self._quiet = not tree.watched
        self._modules = [(_TorchsModule if self._quiet else _UsersModule)(m) for m in tree.modules]

    def holds_for(self, tree: ModuleTree, x: Tensor) -> bool:
        """Whether the model with this tree, and an input like this one, have the same."""
        same = self._input == (x.shape[1:], x.dtype) and self._quiet == (not tree.watched)
        if not same or len(self._modules) != len(tree.modules):
            return False
        return all(known.is_like(m) for known, m in zip(self._modules, tree.modules, strict=True))


class _Relations:
    """The module itself, its children and its parameters."""

    def __init__(self, m: nn.Module) -> None:
        self._self, self._class, self._forward = weakref.ref(m), type(m), type(m).forward
        children, parameters = own_children(m), own_parameters(m)
        self._children = [(k, _weak(c)) for k, c in children.items()]
        self._parameters = [(k, _weak(p), p is not None and p.requires_grad) for k, p in parameters.items()]

    def same(self, m: nn.Module) -> bool:
        if self._self() is not m or type(m) is not self._class or type(m).forward is not self._forward:
            return False
        children, parameters = own_children(m), own_parameters(m)
        if len(children) != len(self._children) or len(parameters) != len(self._parameters):
            return False
        for k, ref in self._children:  # the walk lists a module once, wherever else it is used
            if not _is(children.get(k, _GONE), ref):
                return False
        for k, ref, differentiated in self._parameters:
            p: Any = parameters.get(k, _GONE)
            if not _is(p, ref) or (p is not None and p.requires_grad != differentiated):
                return False
        return True


def _is(o: object, ref: Any) -> bool:
    """Whether o is what the reference was made of; what has died is not the same as what was absent."""
    return o is ref() and (o is None) == (ref is _none)


def _weak(o: Any) -> Any:
    return _none if o is None else weakref.ref(o)


_GONE = object()


def _none() -> None:
    """Stands for what is absent."""


class _TorchsModule:
    """A module of torch's own classes, whose settings are numbers, strings and tuples: compared as objects."""

    def __init__(self, m: nn.Module) -> None:
        self._relations, own = _Relations(m), vars(m)
        names = [k for k, v in own.items() if k[0] != "_" and _is_plain(v)]
        self._size, self._read = len(own), operator.itemgetter("training", *names)
        self._values = self._read(own)
        self._lists = [(k, repr(v)) for k, v in own.items() if k in names and isinstance(v, (list, dict, set))]

    def is_like(self, m: nn.Module) -> bool:
        own = vars(m)
        try:
            values = self._read(own)
        except KeyError:
            return False
        same = len(own) == self._size and all(map(operator.is_, values, self._values))
        return same and all(repr(own[k]) == known for k, known in self._lists) and self._relations.same(m)


class _UsersModule:
    """Any other module: its plain attributes, small containers included, by what they hold."""

    def __init__(self, m: nn.Module) -> None:
        self._relations, self._settings = _Relations(m), _settings(m)

    def is_like(self, m: nn.Module) -> bool:
        return self._relations.same(m) and self._settings == _settings(m)


_SCALARS = frozenset((bool, int, str, type(None)))  # equal values of one of these types are written alike


def _settings(m: nn.Module) -> list[object]:
    own = vars(m)
    parts: list[object] = [MODULES.get(type(m)), has_hooks(m), "forward" in own]
    for k, v in own.items():
        if k[0] != "_":
            if type(v) in _SCALARS:
                parts += (k, type(v), v)
            elif _is_plain(v):
                parts += (k, repr(v))
    return parts


def _is_plain(v: object) -> bool:
    """A number, a string, None, or a small container of these: what a forward may branch on."""
    if isinstance(v, dict):
        return len(v) <= 32 and all(_is_plain(u) for u in v.values())
    if isinstance(v, (list, tuple, set, frozenset)):
        return len(v) <= 32 and all(_is_plain(u) for u in v)
    return v is None or isinstance(v, (int, float, str))
