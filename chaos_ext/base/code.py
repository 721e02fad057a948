"""The functions that modules run, by the places that they are looked up in: whether others have been put there.

A program stands for torch's functions. Libraries and tests replace these for a whole process, or for a class:
``torch.nn.functional.linear``, ``nn.Conv2d._conv_forward``, ``nn.ReLU.__call__``.
"""

from __future__ import annotations

import operator
import sys
import types
from collections.abc import Iterable
from typing import Any

from torch import nn

_ROOTS = ("__call__", "_call_impl", "forward")  # what a call of a module runs
_FOLLOWED = ("torch.nn.", "torch._jit_internal")  # whose functions are looked into
_NATIVE = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.ModuleType)


class Code:
    """Of the forwards of some classes, and of what these name in torch.

    Attributes:
        replaced: a function of torch's in whose place is one that is not torch's, and may do anything; or None.
    """

    def __init__(self, classes: Iterable[type[nn.Module]]) -> None:
        found = _Places()
        for cls in classes:
            for name in _ROOTS:
                found.method(cls, name)
        places = [(owner, sorted(names)) for owner, names in found.names.values()]
        # Of two names at least attrgetter makes a tuple.
        self._places = [(operator.attrgetter(*names, names[0]), owner) for owner, names in places]
        self._functions = self._look()
        self.replaced = next((f"{_called(o)}.{n}" for o, names in places for n in names if _is_replaced(o, n)), None)

    def is_same(self) -> bool:
        """Whether all functions are where they were."""
        try:
            return self._look() == self._functions
        except AttributeError:
            return False

    def _look(self) -> list[object]:
        return [tuple(map(_unwrapped, read(owner))) for read, owner in self._places]


def _unwrapped(value: Any) -> Any:
    """Itself, or what torch.fx has wrapped for the time that it traces in some thread: ``nn.Module.__call__``."""
    while isinstance(value, types.FunctionType) and _home(value) == "torch.fx._symbolic_trace":
        if not hasattr(value, "__wrapped__"):
            break
        value = value.__wrapped__
    return value


def _called(owner: Any) -> str:
    return owner.__name__ if isinstance(owner, types.ModuleType) else f"{owner.__module__}.{owner.__qualname__}"


def _is_torchs(name: str) -> bool:
    return name.partition(".")[0] == "torch"


def _is_replaced(owner: Any, name: str) -> bool:
    """Whether this place is torch's, and what is there is not."""
    value = getattr(owner, name)
    if not _is_torchs(_called(owner)):
        return False
    if isinstance(value, types.FunctionType):
        return not _is_torchs(_home(value)) and _home(value) not in sys.stdlib_module_names
    return not isinstance(value, _NATIVE) and not _is_torchs(type(value).__module__)


def _home(function: types.FunctionType) -> str:
    """The module that it reads its variables from: ``functools.wraps`` copies the ``__module__`` of another."""
    return str(function.__globals__.get("__name__"))


class _Places:
    """Names of functions by the modules and classes that they are attributes of, as functions are followed."""

    def __init__(self) -> None:
        self.names: dict[int, tuple[Any, set[str]]] = {}
        self._seen: set[tuple[int, type | None]] = set()

    def method(self, cls: type, name: str) -> None:
        """A method of a class."""
        value = getattr(cls, name, None)
        if isinstance(value, types.FunctionType):
            self._add(cls, name)
            if name == "forward" or name not in _ROOTS:
                self._follow(value, cls)

    def _add(self, owner: Any, name: str) -> None:
        self.names.setdefault(id(owner), (owner, set()))[1].add(name)

    def _follow(self, function: types.FunctionType, cls: type | None = None) -> None:
        if (id(function), cls) in self._seen:
            return
        self._seen.add((id(function), cls))
        names = _named_in(function.__code__)
        if cls is not None:
            for name in names:
                self.method(cls, name)
        module = sys.modules.get(_home(function))
        if module is not None and vars(module) is function.__globals__:
            self._globals(module, names)
        for cell in function.__closure__ or ():
            if _is_function(cell):
                self._follow(cell.cell_contents)

    def _globals(self, module: types.ModuleType, names: set[str]) -> None:
        for name in names & vars(module).keys():
            value = vars(module)[name]
            if isinstance(value, types.ModuleType) and _is_torchs(value.__name__):
                for inner in names & vars(value).keys():
                    self._function(value, inner)
            else:
                self._function(module, name)

    def _function(self, module: types.ModuleType, name: str) -> None:
        value = vars(module)[name]
        if not callable(value) or isinstance(value, type) or "torch_function" in name:  # the protocol of subclasses
            return
        self._add(module, name)
        if isinstance(value, types.FunctionType) and _home(value).startswith(_FOLLOWED):
            self._follow(value)


def _is_function(cell: types.CellType) -> bool:
    try:
        return isinstance(cell.cell_contents, types.FunctionType)
    except ValueError:  # an empty one
        return False


def _named_in(code: types.CodeType) -> set[str]:
    inner = [_named_in(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*inner)
