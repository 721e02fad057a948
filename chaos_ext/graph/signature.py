"""What decides a model's program besides the code of its forward, and whether it is still so.

Modules, children and parameters have to be the very same objects in the same order, held weakly: another may take a
freed one's id. Modes, plain settings (what a forward may branch on), frozen parameters, which buffers there are, shapes
and the dtype of the input have to be equal, and torch's functions where they were (``code``).
"""

from __future__ import annotations

import numbers
import operator
import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..base.code import Code
from ..base.parameters import ModuleTree, ParameterSpace
from ..base.torch_internals import has_global_hooks, has_hooks, own_parts
from ..rules.table import MODULES


class Signature:
    """Of one model and one input [N, ...].

    Attributes:
        is_complete: whether it tells all that the output depends on besides the values of x, parameters and buffers:
            torch's own modules with plain settings.
        replaced: a function of torch's that somebody has replaced, or None.
    """

    def __init__(self, tree: ModuleTree, space: ParameterSpace, x: Tensor) -> None:
        self._input = x.shape[1:], x.dtype, space.shapes
        self._quiet, self._hooked = not tree.watched, has_global_hooks()
        self._modules = [(_TorchsModule if self._quiet else _UsersModule)(m) for m in tree.modules]
        self._code = Code(dict.fromkeys(map(type, tree.modules)))
        self.replaced = self._code.replaced
        self.is_complete = self._quiet and all(m.is_plain for m in self._modules)

    def holds_for(self, tree: ModuleTree, space: ParameterSpace, x: Tensor) -> bool:
        """Whether the model with this tree, and an input like this one, have the same."""
        same = self._input == (x.shape[1:], x.dtype, space.shapes) and self._quiet == (not tree.watched)
        if not same or len(self._modules) != len(tree.modules) or self._hooked != has_global_hooks():
            return False
        pairs = zip(self._modules, tree.modules, strict=True)
        return all(known.is_like(m) for known, m in pairs) and self._code.is_same()


class _Relations:
    """The module itself, its children, its parameters, and which buffers it has."""

    def __init__(self, m: nn.Module) -> None:
        self._self, self._class = weakref.ref(m), type(m)
        children, parameters, buffers = own_parts(m)
        self._children, self._parameters = _References(children), _References(parameters)
        self._differentiated, self._buffers = _differentiated(parameters), _present(buffers)

    def same(self, m: nn.Module) -> bool:
        if self._self() is not m or type(m) is not self._class:
            return False
        children, parameters, buffers = own_parts(m)
        if (children or self._children.names) and not self._children.are(children):
            return False
        if (parameters or self._parameters.names) and not (
            self._parameters.are(parameters) and _differentiated(parameters) == self._differentiated
        ):
            return False
        return not (buffers or self._buffers) or _present(buffers) == self._buffers


class _References:
    """Objects by name, in their order: the walk lists a module once, wherever else it is used.

    Only of real dicts the keys come by iterating: torch.jit has its own.
    """

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self.names, self._refs = list(objects.keys()), [_weak(o) for o in objects.values()]

    def are(self, objects: Mapping[str, Any]) -> bool:
        return list(objects.keys()) == self.names and all(map(_is, objects.values(), self._refs))


def _differentiated(parameters: Mapping[str, Any]) -> list[bool]:
    return [p is not None and p.requires_grad for p in parameters.values()]


def _present(buffers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Which there are, of which dtype: values do not matter, but without any BatchNorm does otherwise, and so does
    attention with a mask of bools."""
    return [(k, None if b is None else b.dtype) for k, b in buffers.items()]


def _is(o: object, ref: Any) -> bool:
    """Whether o is what the reference was made of; what has died is not the same as what was absent."""
    return o is ref() and (o is not None or ref is _none)


def _weak(o: Any) -> Any:
    return _none if o is None else weakref.ref(o)


def _none() -> None:
    """Stands for what is absent."""


_BOOKKEEPING = frozenset(vars(nn.Module()))


class _TorchsModule:
    """A module of torch's own classes, whose settings are numbers, strings and tuples: compared as objects.

    Attributes:
        is_plain: whether they all are.
    """

    def __init__(self, m: nn.Module) -> None:
        self._relations, own = _Relations(m), vars(m)
        settings = [k for k in own if k not in _BOOKKEEPING]
        names = [k for k in settings if _is_plain(own[k])]
        self.is_plain = names == settings
        # Of two names at least it makes a tuple.
        self._size, self._read = len(own), operator.itemgetter("training", "training", *names)
        self._values = self._read(own)
        self._lists = [(k, repr(own[k])) for k in names if _can_change(own[k])]

    def is_like(self, m: nn.Module) -> bool:
        own = vars(m)
        try:
            values = self._read(own)
        except KeyError:
            return False
        same = len(own) == self._size and all(map(operator.is_, values, self._values))
        return same and all(repr(own[k]) == known for k, known in self._lists) and self._relations.same(m)


def _can_change(v: object) -> bool:
    """Whether a plain value is a list, a dict or a set, or holds one."""
    return isinstance(v, (list, dict, set)) or (isinstance(v, tuple) and any(map(_can_change, v)))


class _UsersModule:
    """Any other module: its plain attributes, small containers included, by what they hold."""

    is_plain = False  # its forward may depend on anything

    def __init__(self, m: nn.Module) -> None:
        self._relations, self._settings = _Relations(m), _settings(m)

    def is_like(self, m: nn.Module) -> bool:
        return self._relations.same(m) and self._settings == _settings(m)


_SCALARS = frozenset((bool, int, str, type(None)))  # equal values of one of these types are written alike


def _settings(m: nn.Module) -> list[object]:
    own = vars(m)
    parts: list[object] = [MODULES.get(type(m)), has_hooks(m), "forward" in own]
    for k, v in own.items():
        if k not in _BOOKKEEPING:
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
    return v is None or isinstance(v, (int, float, str, numbers.Number))  # numpy's are numbers too
