"""Running a user's modules without leaving traces on them: attributes, and what these hold, are put back.

A forward may count its calls, fill a cache, append to a list, draw from a generator of its own, or leave symbolic
values of a tracer where numbers belong. Modules of torch itself write to buffers at most, and cost nothing here.
"""

from __future__ import annotations

import array
import functools
import operator
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import torch_internals as internals
from .restoring import Restoring, put_back
from .tensors import same_values

_MOST = 100_000  # objects that are looked at: a data set that hangs on a module is not copied
_BYTES = (array.array, bytearray)
_PLAIN = (int, float, complex, str, bytes, bool, type(None))
_CONTAINERS = (OrderedDict, dict, list, set, deque)
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


def plain_tensors(modules: Sequence[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Tensors within reach of the modules' attributes that are neither parameters nor buffers, and copies of them."""
    values = [k for k in _walk(modules) if isinstance(k, _Values)]
    return [(k.value, k.kept) for k in values if isinstance(k.value, Tensor)]


def _restore(k: _Kept) -> None:
    if k.changed():
        k.restore()


class _Kept(Protocol):
    """Something that code may write to, with what it was."""

    name: str

    def changed(self) -> bool: ...
    def restore(self) -> None: ...


class _Container:
    """A dict, list, set or deque: which objects it holds, in which order."""

    def __init__(self, container: Any, name: str) -> None:
        self.container, self.name = container, name
        # Its own kind's methods: those of a subclass may do more (Counter.update adds).
        self.kind: Any = next(kind for kind in _CONTAINERS if isinstance(container, kind))
        self.items = _items(container)

    def changed(self) -> bool:
        now = _items(self.container)
        return len(now) != len(self.items) or not all(map(_same, now, self.items))

    def restore(self) -> None:
        if isinstance(self.container, dict):
            self._restore_dict()
        elif self.kind is list:
            list.__setitem__(self.container, slice(None), [item for (item,) in self.items])
        else:
            self.kind.clear(self.container)
            add = set.update if self.kind is set else deque.extend
            add(self.container, [item for (item,) in self.items])

    def _restore_dict(self) -> None:
        """Key by key: a module without attributes, even for a moment, is none."""
        was, now, kind = dict(self.items), self.container, self.kind
        for key in [k for k in kind.__iter__(now) if k not in was]:
            kind.__delitem__(now, key)
        for key, value in was.items():
            kind.__setitem__(now, key, value)
        if list(kind.__iter__(now)) != list(was):
            for key, value in was.items():
                kind.__delitem__(now, key)
                kind.__setitem__(now, key, value)


class _Values:
    """A tensor or array that an attribute holds."""

    def __init__(self, value: Any, name: str, copy: Callable[[Any], Any], same: Callable[..., bool]) -> None:
        self.value, self.name, self.kept, self._same = value, name, copy(value), same

    def changed(self) -> bool:
        return not self._same(self.value, self.kept)

    def restore(self) -> None:
        self.value[slice(None) if isinstance(self.value, _BYTES) else ...] = self.kept


class _Cell:
    """A variable of a closure, and which object it holds."""

    def __init__(self, cell: types.CellType, name: str) -> None:
        self.cell, self.name, self.kept = cell, name, cell.cell_contents

    def changed(self) -> bool:
        return not _same((self.cell.cell_contents,), (self.kept,))

    def restore(self) -> None:
        self.cell.cell_contents = self.kept


class _Slots:
    """Attributes of an object that has no dict for them."""

    def __init__(self, owner: object, names: list[str], name: str) -> None:
        self.owner, self.name, self.kept = owner, name, {n: getattr(owner, n) for n in names if hasattr(owner, n)}

    def changed(self) -> bool:
        return any(not _same((getattr(self.owner, n, None),), (v,)) for n, v in self.kept.items())

    def restore(self) -> None:
        for n, v in self.kept.items():
            object.__setattr__(self.owner, n, v)


class _Generator:
    """A source of random numbers, and its state."""

    def __init__(self, generator: Any, name: str) -> None:
        self.generator, self.name, self.state = generator, name, _state_of(generator)

    def changed(self) -> bool:
        return repr(_state_of(self.generator)) != repr(self.state)

    def restore(self) -> None:
        if isinstance(self.generator, torch.Generator):
            self.generator.set_state(torch.tensor(self.state, dtype=torch.uint8, device="cpu"))
        elif isinstance(self.generator, random.Random):
            self.generator.setstate(self.state)
        else:
            self.generator.bit_generator.state = self.state


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state().tolist()
    return generator.getstate() if isinstance(generator, random.Random) else generator.bit_generator.state


def _items(container: Any) -> list[tuple[Any, ...]]:
    if isinstance(container, dict):
        return list(dict.items(container))
    kind: Any = next(kind for kind in _CONTAINERS if isinstance(container, kind))
    return [(item,) for item in kind.__iter__(container)]


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return all(x is y or (type(x) is type(y) and isinstance(x, _PLAIN) and x == y) for x, y in zip(a, b, strict=True))


def _walk(modules: Sequence[nn.Module], objects: Sequence[Any] = ()) -> Iterator[_Kept]:
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
            yield _Container(value, name)
            if name.rpartition(".")[2] not in _OWN:
                todo.extend((item[-1], _named(name, item)) for item in _items(value))
        elif isinstance(value, (tuple, frozenset)) and len(value) <= _MOST:
            todo.extend((item, name) for item in value)
        elif isinstance(value, Tensor):
            if _is_restorable(value):
                yield _Values(value, name, lambda t: t.detach().clone(), same_values)
        elif _is_of_numpy(value, "ndarray"):
            yield _Values(value, name, lambda a: a.copy(), _equal_arrays)
        elif isinstance(value, _BYTES):
            yield _Values(value, name, lambda a: a[:], operator.eq)
        elif isinstance(value, (torch.Generator, random.Random)) or _is_of_numpy(value, "random.Generator"):
            yield _Generator(value, name)
        elif isinstance(value, types.CellType):
            yield _Cell(value, name)
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
            yield _Slots(value, slots, name)
            todo.extend((getattr(value, n), name) for n in slots if hasattr(value, n))


def _is_of_numpy(value: object, name: str) -> bool:
    numpy = sys.modules.get("numpy")  # without it there are no arrays
    return numpy is not None and isinstance(value, operator.attrgetter(name)(numpy))


def _equal_arrays(a: Any, b: Any) -> bool:
    """NaN is NaN: what was not written to is not written back, either."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


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
    plain = t.layout == torch.strided and not t.is_meta and type(t) is Tensor
    return plain and not t.requires_grad and not t.is_inference()


def has_attributes(value: object) -> bool:
    """A plain object: no module (it has its turn), class or function, and nothing of torch's."""
    skipped = (nn.Module, type, types.FunctionType, types.MethodType, types.ModuleType)
    return (
        not isinstance(value, skipped) and hasattr(value, "__dict__") and not type(value).__module__.startswith("torch")
    )
