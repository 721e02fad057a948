"""Running a user's modules without leaving traces on them: attributes, and what these hold, are put back.

A forward may count its calls, fill a cache, append to a list, draw from a generator of its own, or leave symbolic
values of a tracer where numbers belong: in attributes, in what all instances of its class share, in global variables.
Modules of torch itself write to buffers at most, and cost nothing here.
"""

from __future__ import annotations

import functools
import operator
import random
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import torch_internals as internals
from .kept import (
    BYTES,
    CONTAINERS,
    SPARSE,
    Array,
    Attributes,
    Cell,
    Container,
    Generator,
    Kept,
    Memo,
    Slots,
    Sparse,
    Values,
    items_of,
)
from .overlap import Named, sharing
from .restoring import Restoring, put_back
from .scopes import ClassVariables, globals_of, is_of, user_classes

_MOST = 100_000  # objects that are looked at: a data set that hangs on a module is not copied
_BUILT_IN = frozenset(CONTAINERS)  # without attributes
_GLOBAL = "a global of "  # begins the names of what is reached by way of a global variable, a data set perhaps
_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None), type, property, types.ModuleType))
_REMEMBERING = type(functools.lru_cache(len))
_MOST_BY_GLOBALS = 1_000  # a session's variables: data, results, connections
# Packages whose objects belong to the process, not to a model: what a forward logs stays logged.
_SERVICES = ("asyncio", "concurrent", "io", "logging", "multiprocessing", "queue", "socket", "subprocess", "threading")
_OWN = ("_parameters", "_buffers")  # dicts of nn.Module whose tensors are not looked at here

_torchs: dict[type, bool] = {}


def is_quiet(m: nn.Module) -> bool:
    """Whether calling m runs nothing but a forward of torch's own."""
    cls = type(m)
    if cls not in _torchs:
        # Recurrences keep a list of their weights, which they make anew whenever these are substituted.
        _torchs[cls] = cls.__module__.startswith("torch.nn.modules.") and not issubclass(cls, nn.RNNBase)
    return _torchs[cls] and "forward" not in vars(m) and not internals.has_hooks(m)


def untouched(modules: Sequence[nn.Module], objects: Sequence[Any] = ()) -> Restoring[Callable[[], list[str]]]:
    """Puts back what the code inside writes to modules and other objects; gives a function that names what it wrote.

    Restored are the attributes of every module, its class's, the global variables that its functions name, and the
    lists, dicts, sets, generators and plain objects that these hold, in place: whoever else holds one of these sees it
    restored too. Tensors and arrays among them get their values back. The modules' own parameters and buffers are not
    looked at (see ``refuse_edits``, ``borrowed_buffers``), only which there are.

    Args:
        modules: ``ModuleTree.watched`` of the model that runs.
        objects: containers and tensors, and cells of closures (``held.held_by``).
    """
    found = list(_walk(modules, objects))
    kept = [(k,) for k in found]

    def written() -> list[str]:
        return [k.name for k in found if not isinstance(k, Memo) and k.changed()]

    return Restoring(lambda: written, lambda: put_back(kept, _restore))


def holds_something(value: object) -> bool:
    """Whether anything that can be written to is within reach of it."""
    return next(_walk([], [value]), None) is not None


def plain_tensors(modules: Sequence[nn.Module]) -> list[Values | Sparse]:
    """Tensors within reach of the modules' attributes that are neither parameters nor buffers, with copies of them."""
    return [k for k in _walk(modules) if isinstance(k, (Values, Sparse))]


def shared_buffers(model: nn.Module, modules: Sequence[nn.Module]) -> Named:
    """Buffers that share memory with each other or with a tensor that a watched module holds: copies of them do not."""
    buffers = list(model.named_buffers()) if modules else []
    held = plain_tensors(modules) if buffers else []
    return sharing(buffers, [k.value for k in held if isinstance(k, Values)])


def _restore(k: Kept) -> None:
    if k.changed():
        k.restore()


def _walk(modules: Sequence[nn.Module], objects: Sequence[Any] = ()) -> Iterator[Kept]:
    """Everything within reach of the modules' attributes and of the objects, once."""
    seen = {id(p) for m in modules for p in internals.own_parameters(m).values()}
    given, most = {id(m) for m in modules}, len(seen) + _MOST
    todo: list[tuple[Any, str]] = []
    for m in modules:
        of_parameters = [vars(p) for p in internals.own_parameters(m).values() if p is not None]
        own = Attributes(vars(m), of_parameters, type(m).__name__, _MOST)
        yield own
        seen.update(map(id, own.dicts))
        todo.extend(_held(m, given))
    todo.extend((value, type(value).__name__) for value in objects)
    by_globals = 0
    for cls in dict.fromkeys(c for o in (*modules, *objects) for c in user_classes(type(o))):
        yield ClassVariables(cls)
        todo.extend((value, f"{cls.__name__}.{n}") for n, value in vars(cls).items())
    while todo and len(seen) < most:
        value, name = todo.pop()
        if type(value) in _PLAIN or id(value) in seen:
            continue
        seen.add(id(value))
        if name.startswith(_GLOBAL):
            by_globals += 1
            if by_globals > _MOST_BY_GLOBALS or _is_large(value) or _holds_many(value):
                continue
        if isinstance(value, CONTAINERS) and len(value) <= _MOST:
            yield Container(value, name)
            if value and name.rpartition(".")[2] not in _OWN:
                todo.extend([(item[-1], _named(name, item)) for item in items_of(value)])
            if type(value) in _BUILT_IN:
                continue
        elif (kept := _kept(value, name)) is not None:
            yield kept
        if isinstance(value, types.FunctionType):
            variables, values = globals_of(value)
            if variables is not None:
                yield variables
            todo.extend((v, f"{_GLOBAL}{name}") for v in values)
        todo.extend(_within(value, name, id(value) in given))


def _held(m: nn.Module, given: set[int]) -> list[tuple[Any, str]]:
    """What a module's attributes and the dicts among them hold beside numbers, parameters, buffers and the modules that
    are looked at anyway."""
    found: list[tuple[Any, str]] = []
    for key, value in vars(m).items():
        if type(value) in (dict, OrderedDict):
            if value and len(value) <= _MOST and key not in _OWN:
                items = value.items() if key != "_modules" else [(n, c) for n, c in value.items() if id(c) not in given]
                found.extend([(v, f"{type(m).__name__}.{k}") for k, v in items])
        elif type(value) not in _PLAIN and not (type(value) is tuple and _PLAIN.issuperset(map(type, value))):
            found.append((value, f"{type(m).__name__}.{key}"))
    return found


def _kept(value: Any, name: str) -> Kept | None:
    """The value itself, if it can be written to."""
    if isinstance(value, Tensor):
        if not _is_restorable(value):
            return None
        return Values(value, name) if value.layout == torch.strided else Sparse(value, name)
    if isinstance(value, BYTES) or _is_of_numpy(value, "ndarray"):
        return Array(value, name)
    if isinstance(value, _REMEMBERING):
        return Memo(value, name)
    if _is_generator(value):
        return Generator(value, name)
    if isinstance(value, types.CellType):
        return Cell(value, name)
    slots = _slots_of(value)
    return Slots(value, slots, name) if slots else None


def _within(value: Any, name: str, given: bool) -> Iterator[tuple[Any, str]]:
    """What a value holds, as its attributes or otherwise, unless it is a container."""
    if isinstance(value, (tuple, frozenset)) and len(value) <= _MOST:
        yield from [(item, name) for item in value]
    elif isinstance(value, types.CellType):
        if not _is_large(value.cell_contents):
            yield value.cell_contents, name
    elif isinstance(value, types.FunctionType):
        yield from [(c, name) for c in value.__closure__ or () if is_filled(c)]
        yield from [(part, name) for part in (value.__defaults__, value.__kwdefaults__, vars(value)) if part]
    elif isinstance(value, functools.partial):
        yield from [(part, name) for part in (value.func, value.args, value.keywords)]
    elif isinstance(value, types.MethodType):
        yield from [(value.__self__, name), (value.__func__, name)]
    elif isinstance(value, nn.Module) and not given:  # one that no module has as its child: nobody else looks at it
        yield from [(t, name) for own in (internals.own_buffers, internals.own_parameters) for t in own(value).values()]
    if isinstance(value, nn.Module) or has_attributes(value):
        yield vars(value), name
    yield from [(getattr(value, n), name) for n in _slots_of(value) if hasattr(value, n)]


def _is_large(value: object) -> bool:
    """A tensor or an array of many numbers: a data set is not copied."""
    size = value.numel() if isinstance(value, Tensor) else getattr(value, "size", 0)
    return isinstance(size, int) and size > _MOST


def _holds_many(value: object) -> bool:
    return isinstance(value, CONTAINERS) and len(value) > _MOST_BY_GLOBALS


def _is_generator(value: object) -> bool:
    """One with a state of its own: what draws from the global ones, held or not, is refused (``randomness``)."""
    if isinstance(value, random.Random):
        return not isinstance(value, random.SystemRandom) and value is not getattr(random.random, "__self__", None)
    if _is_of_numpy(value, "random.RandomState"):
        return value is not getattr(sys.modules["numpy"].random.rand, "__self__", None)
    if isinstance(value, torch.Generator):
        return value is not torch.default_generator
    return _is_of_numpy(value, "random.Generator")


def _is_of_numpy(value: object, name: str) -> bool:
    numpy = sys.modules.get("numpy")  # without it there are no arrays
    return numpy is not None and isinstance(value, operator.attrgetter(name)(numpy))


def is_filled(cell: types.CellType) -> bool:
    """Whether a closure's variable has a value."""
    try:
        cell.cell_contents  # noqa: B018 - raises where there is nothing
    except ValueError:
        return False
    return True


def _slots_of(value: object) -> list[str]:
    """Attributes in slots of a class that is neither built in nor torch's."""
    if is_of(type(value), "builtins", "collections", "functools", "torch", "weakref"):
        return []
    named = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    return [n for names in named for n in ([names] if isinstance(names, str) else names) if not n.startswith("__")]


def _named(name: str, item: tuple[Any, ...]) -> str:
    return f"{name}.{item[0]}" if len(item) == 2 and isinstance(item[0], str) else name


def _is_restorable(t: Tensor) -> bool:
    """Not those of another kind inside (``__torch_dispatch__``), such as what transformations wrap."""
    plain = type(t) in (Tensor, nn.Parameter) or type(t).__torch_dispatch__ is Tensor.__torch_dispatch__
    if not plain or t.is_nested or t.is_meta or t.is_inference():
        return False
    return t.layout in (torch.strided, *SPARSE)


def has_attributes(value: object) -> bool:
    """A plain object: no module (it has its turn), class or function, and nothing of torch's."""
    skipped = (nn.Module, type, types.FunctionType, types.MethodType, types.ModuleType)
    return not isinstance(value, skipped) and hasattr(value, "__dict__") and not is_of(type(value), "torch", *_SERVICES)
