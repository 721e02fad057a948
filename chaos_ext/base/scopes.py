"""Variables that outlive a call beside attributes: of classes, and global ones that functions name."""

from __future__ import annotations

import dis
import functools
import types
import weakref
from typing import Any

from .kept import same_objects

_ABSENT = object()
_CODE = (types.FunctionType, types.ModuleType, types.BuiltinFunctionType, type)


class ClassVariables:
    """What a class holds: a counter of all its instances, a cache that they share."""

    def __init__(self, cls: type) -> None:
        self.cls, self.name, self.kept = cls, cls.__name__, dict(vars(cls))

    def changed(self) -> bool:
        now = vars(self.cls)
        return now.keys() != self.kept.keys() or not same_objects(tuple(now[n] for n in self.kept), self._values())

    def restore(self) -> None:
        now = dict(vars(self.cls))
        for n in now.keys() - self.kept.keys():
            type.__delattr__(self.cls, n)
        for n, v in self.kept.items():
            if n not in now or not same_objects((now[n],), (v,)):
                type.__setattr__(self.cls, n, v)

    def _values(self) -> tuple[Any, ...]:
        return tuple(self.kept.values())


class Globals:
    """Global variables that a function reads or writes, and which objects they hold."""

    def __init__(self, scope: dict[str, Any], names: tuple[str, ...]) -> None:
        self.scope, self.name = scope, f"the global {', '.join(names)}"
        self.kept = {n: scope.get(n, _ABSENT) for n in names}

    def changed(self) -> bool:
        now = tuple(self.scope.get(n, _ABSENT) for n in self.kept)
        return not same_objects(now, tuple(self.kept.values()))

    def restore(self) -> None:
        for n, v in self.kept.items():
            if v is not _ABSENT:
                self.scope[n] = v
            else:
                self.scope.pop(n, None)


_known: weakref.WeakKeyDictionary[type, tuple[type, ...]] = weakref.WeakKeyDictionary()


def user_classes(cls: type) -> tuple[type, ...]:
    """Those among a class and its bases that are neither built in nor torch's."""
    if cls not in _known:
        _known[cls] = tuple(kind for kind in cls.__mro__ if not is_of(kind, "builtins", "torch", "typing", "abc"))
    return _known[cls]


def is_of(cls: type, *packages: str) -> bool:
    """Whether a class was defined in one of these packages, not in one whose name begins like theirs."""
    return cls.__module__.partition(".")[0] in packages


def globals_of(function: types.FunctionType) -> tuple[Globals | None, list[Any]]:
    """The variables that a function's code names, unless they are code themselves; and what may be written to there.

    Functions of the same file are followed by the caller: a forward fills a cache through a helper, too.
    """
    scope, variables, values = function.__globals__, [], []
    read, written = _global_names(function.__code__)
    for n in read | written:
        value = scope.get(n, _ABSENT)
        if isinstance(value, types.FunctionType):
            values.extend([value] if value.__globals__ is scope else [])
        elif (value is not _ABSENT or n in written) and not isinstance(value, _CODE):
            variables.append(n)
            values.append(value)
    return (Globals(scope, tuple(sorted(variables))) if variables else None), values


@functools.lru_cache(maxsize=4096)
def _global_names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Names of global variables that it, or a function inside of it, reads; and writes."""
    read, written = set[str](), set[str]()
    for i in dis.get_instructions(code):
        if i.opname == "LOAD_GLOBAL":
            read.add(i.argval)
        elif i.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            written.add(i.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more, others = _global_names(inner)
            read |= more
            written |= others
    return frozenset(read), frozenset(written)
