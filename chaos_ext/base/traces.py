"""Running a user's modules without leaving traces on them: attributes, and what these hold, are put back.

A forward may count its calls, fill a cache, append to a list, draw from a generator of its own, or leave symbolic
values of a tracer where numbers belong. Modules of torch itself write to buffers at most, and cost nothing here.
"""

from __future__ import annotations

import functools
import operator
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import torch_internals as internals
from .kept import BYTES, SPARSE, Cell, Container, Generator, Kept, Slots, Sparse, Values, equal_arrays, items_of
from .restoring import Restoring, put_back
from .tensors import copy_of, same_values, unexpanded

_MOST = 100_000  # objects that are looked at: a data set that hangs on a module is not copied
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

    Restored are the attributes of every module, and the lists, dicts, sets, generators and plain objects that they
    hold, in place: whoever else holds one of these sees it restored too. Tensors and arrays among them get their values
    back. Parameters and buffers are not looked at (see ``borrowed_buffers``), only which there are.

    Args:
        modules: ``ModuleTree.watched`` of the model that runs.
        objects: containers and tensors, and cells of closures (``held.held_by``).
    """
    found = list(_walk(modules, objects))
    kept = [(k,) for k in found]

    def written() -> list[str]:
        return [k.name for k in found if k.changed()]

    return Restoring(lambda: written, lambda: put_back(kept, _restore))


def holds_something(value: object) -> bool:
    """Whether anything that can be written to is within reach of it."""
    return next(_walk([], [value]), None) is not None


def plain_tensors(modules: Sequence[nn.Module]) -> list[Values | Sparse]:
    """Tensors within reach of the modules' attributes that are neither parameters nor buffers, with copies of them."""
    return [k for k in _walk(modules) if isinstance(k, (Values, Sparse)) and isinstance(k.value, Tensor)]


def _restore(k: Kept) -> None:
    if k.changed():
        k.restore()


def _walk(modules: Sequence[nn.Module], objects: Sequence[Any] = ()) -> Iterator[Kept]:
    """Everything within reach of the modules' attributes and of the objects, once."""
    seen, given = set[int](), {id(m) for m in modules}
    todo: list[tuple[Any, str]] = [(vars(m), type(m).__name__) for m in modules]
    todo.extend((value, type(value).__name__) for value in objects)
    while todo and len(seen) < _MOST:
        value, name = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (dict, list, set, deque)) and len(value) <= _MOST:
            yield Container(value, name)
            if name.rpartition(".")[2] not in _OWN:
                todo.extend((item[-1], _named(name, item)) for item in items_of(value))
        elif isinstance(value, (tuple, frozenset)) and len(value) <= _MOST:
            todo.extend((item, name) for item in value)
        elif isinstance(value, Tensor):
            if _is_restorable(value):
                strided = value.layout == torch.strided
                yield Values(unexpanded(value), name, copy_of, same_values) if strided else Sparse(value, name)
        elif _is_of_numpy(value, "ndarray"):
            yield Values(value, name, lambda a: a.copy(), equal_arrays)
        elif isinstance(value, BYTES):
            yield Values(value, name, lambda a: a[:], operator.eq)
        elif isinstance(value, (torch.Generator, random.Random)) or _is_of_numpy(value, "random.Generator"):
            yield Generator(value, name)
        elif isinstance(value, types.CellType):
            yield Cell(value, name)
            if not (isinstance(value.cell_contents, Tensor) and value.cell_contents.numel() > _MOST):
                todo.append((value.cell_contents, name))
        elif isinstance(value, types.FunctionType):
            todo.extend((c, name) for c in value.__closure__ or () if is_filled(c))
            held = (value.__defaults__, value.__kwdefaults__, vars(value))
            todo.extend((part, name) for part in held if part)
        elif isinstance(value, functools.partial):
            todo.extend((part, name) for part in (value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            todo.extend(((value.__self__, name), (value.__func__, name)))
        elif isinstance(value, nn.Module):  # one that no module has as its child; its buffers are nobody else's care
            todo.extend((b, name) for b in internals.own_buffers(value).values() if id(value) not in given)
            todo.append((vars(value), name))
        elif has_attributes(value):
            todo.append((vars(value), name))
        elif slots := _slots_of(value):
            yield Slots(value, slots, name)
            todo.extend((getattr(value, n), name) for n in slots if hasattr(value, n))


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
    if type(value).__module__.partition(".")[0] in ("builtins", "collections", "functools", "torch", "weakref"):
        return []
    named = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    return [n for names in named for n in ([names] if isinstance(names, str) else names) if not n.startswith("__")]


def _named(name: str, item: tuple[Any, ...]) -> str:
    return f"{name}.{item[0]}" if len(item) == 2 and isinstance(item[0], str) else name


def _is_restorable(t: Tensor) -> bool:
    known = t.layout in (torch.strided, *SPARSE) and not t.is_meta and type(t) is Tensor
    return known and not t.requires_grad and not t.is_inference()


def has_attributes(value: object) -> bool:
    """A plain object: no module (it has its turn), class or function, and nothing of torch's."""
    skipped = (nn.Module, type, types.FunctionType, types.MethodType, types.ModuleType)
    return (
        not isinstance(value, skipped) and hasattr(value, "__dict__") and not type(value).__module__.startswith("torch")
    )
