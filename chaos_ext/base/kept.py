"""Things that a user's code may write to, each with what it was: to be compared, and put back in place."""

from __future__ import annotations

import array
import random
import types
from collections import OrderedDict, deque
from typing import Any, Protocol

import torch
from torch import Tensor

from .tensors import copy_of, same_values, unexpanded
from .torch_internals import detached, stored_parts

SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
BYTES = (array.array, bytearray)
_PLAIN = (int, float, complex, str, bytes, bool, type(None))
_DICTS = (OrderedDict, dict)
CONTAINERS = (OrderedDict, dict, list, set, deque)


class Kept(Protocol):
    """Something that code may write to, with what it was."""

    name: str

    def changed(self) -> bool: ...
    def restore(self) -> None: ...


class Container:
    """A dict, list, set or deque: which objects it holds, in which order."""

    def __init__(self, container: Any, name: str) -> None:
        self.container, self.name = container, name
        # Its own kind's methods: those of a subclass may do more (Counter.update adds).
        self.kind: Any = next(kind for kind in CONTAINERS if isinstance(container, kind))
        self.items = items_of(container)

    def changed(self) -> bool:
        now = items_of(self.container)
        return len(now) != len(self.items) or not all(map(same_objects, now, self.items))

    def restore(self) -> None:
        if isinstance(self.container, dict):
            _restore_dict(self.container, self.items, self.kind)
        elif self.kind is list:
            list.__setitem__(self.container, slice(None), [item for (item,) in self.items])
        else:
            self.kind.clear(self.container)
            add = set.update if self.kind is set else deque.extend
            add(self.container, [item for (item,) in self.items])


def _restore_dict(now: Any, items: list[tuple[Any, ...]], kind: Any) -> None:
    """Key by key: a module without attributes, even for a moment, is none."""
    was = dict(items)
    for key in [k for k in kind.__iter__(now) if k not in was]:
        kind.__delitem__(now, key)
    for key, value in was.items():
        kind.__setitem__(now, key, value)
    if list(kind.__iter__(now)) != list(was):
        for key, value in was.items():
            kind.__delitem__(now, key)
            kind.__setitem__(now, key, value)


class Attributes:
    """A module's dict of attributes, the dicts in it, and those of its parameters, as one: most are empty, and stay so.

    Args:
        attributes: of the module.
        others: attributes of its parameters.
        name: of the module.
        most: entries of a dict that is looked at.
    """

    def __init__(self, attributes: dict[str, Any], others: list[dict[str, Any]], name: str, most: int) -> None:
        self.name = name
        inside = [v for v in attributes.values() if type(v) in _DICTS and len(v) <= most]
        self.dicts = [attributes, *inside, *others]
        self._items = [tuple(d.items()) for d in self.dicts]

    def changed(self) -> bool:
        return any(map(_is_other, self.dicts, self._items))

    def restore(self) -> None:
        for now, items in zip(self.dicts, self._items, strict=True):
            if _is_other(now, items):
                _restore_dict(now, list(items), type(now))


def _is_other(now: dict[Any, Any], items: tuple[tuple[Any, Any], ...]) -> bool:
    if not items or len(now) != len(items):
        return len(now) != len(items)
    if all(k is key and v is value for (k, v), (key, value) in zip(now.items(), items, strict=True)):
        return False
    return not all(map(same_objects, now.items(), items))


class Values:
    """A tensor that an attribute holds."""

    def __init__(self, value: Tensor, name: str) -> None:
        self.value, self.name, self.kept = value, name, copy_of(detached(value))

    def changed(self) -> bool:
        return not same_values(unexpanded(detached(self.value)), unexpanded(self.kept))

    def restore(self) -> None:
        now, was = unexpanded(detached(self.value)), unexpanded(self.kept)
        if now.shape == was.shape and now.dtype == was.dtype:
            now[...] = was
        else:  # of another size (resize_) or kind (.data = ...)
            self.value.data = copy_of(self.kept)


class Array:
    """An array of numpy or Python."""

    def __init__(self, value: Any, name: str) -> None:
        self.value, self.name = value, name
        self.kept: Any = value[:] if isinstance(value, BYTES) else value.copy()

    def changed(self) -> bool:
        same = self.value == self.kept if isinstance(self.value, BYTES) else equal_arrays(self.value, self.kept)
        return not same

    def restore(self) -> None:
        self.value[slice(None) if isinstance(self.value, BYTES) else ...] = self.kept


class Memo:
    """What ``functools.lru_cache`` remembers: forgotten, if it grew, since it may be a tracer's or a transform's."""

    def __init__(self, function: Any, name: str) -> None:
        self.function, self.name, self.kept = function, name, function.cache_info().misses

    def changed(self) -> bool:
        return bool(self.function.cache_info().misses != self.kept)

    def restore(self) -> None:
        self.function.cache_clear()


class Sparse:
    """A sparse tensor: where its entries are, and their values."""

    def __init__(self, value: Tensor, name: str) -> None:
        self.value, self.name, self.kept = value, name, value.detach().clone()

    def changed(self) -> bool:
        pairs = zip(stored_parts(self.value), stored_parts(self.kept), strict=True)
        return self.value.shape != self.kept.shape or not all(same_values(now, was) for now, was in pairs)

    def restore(self) -> None:
        now, was = stored_parts(self.value), stored_parts(self.kept)
        if self.value.shape == self.kept.shape and all(a.shape == b.shape for a, b in zip(now, was, strict=True)):
            for a, b in zip(now, was, strict=True):
                a.copy_(b)
        else:  # entries came or went, in memory of their own
            value, kept = self.value, self.kept
            if value.layout != torch.sparse_coo:
                value.resize_as_sparse_(kept)
            elif value.shape != kept.shape:
                value.sparse_resize_and_clear_(kept.shape, kept.sparse_dim(), kept.dense_dim())
            value.copy_(kept)


class Cell:
    """A variable of a closure, and which object it holds."""

    def __init__(self, cell: types.CellType, name: str) -> None:
        self.cell, self.name, self.kept = cell, name, cell.cell_contents

    def changed(self) -> bool:
        return not same_objects((self.cell.cell_contents,), (self.kept,))

    def restore(self) -> None:
        self.cell.cell_contents = self.kept


class Slots:
    """Attributes of an object that has no dict for them."""

    def __init__(self, owner: object, names: list[str], name: str) -> None:
        self.owner, self.name, self.kept = owner, name, {n: getattr(owner, n) for n in names if hasattr(owner, n)}

    def changed(self) -> bool:
        return any(not same_objects((getattr(self.owner, n, None),), (v,)) for n, v in self.kept.items())

    def restore(self) -> None:
        for n, v in self.kept.items():
            object.__setattr__(self.owner, n, v)


class Generator:
    """A source of random numbers, and its state."""

    def __init__(self, generator: Any, name: str) -> None:
        self.generator, self.name, self.state = generator, name, _state_of(generator)

    def changed(self) -> bool:
        return _comparable(_state_of(self.generator)) != _comparable(self.state)

    def restore(self) -> None:
        if isinstance(self.generator, torch.Generator):
            self.generator.set_state(torch.tensor(self.state, dtype=torch.uint8, device="cpu"))
        elif isinstance(self.generator, random.Random):
            self.generator.setstate(self.state)
        elif hasattr(self.generator, "set_state"):  # numpy's RandomState
            self.generator.set_state(self.state)
        else:
            self.generator.bit_generator.state = self.state


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state().tolist()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.get_state(legacy=False) if hasattr(generator, "get_state") else generator.bit_generator.state


def _comparable(state: Any) -> Any:
    """With arrays as bytes."""
    if isinstance(state, dict):
        return [(k, _comparable(v)) for k, v in state.items()]
    return state.tobytes() if hasattr(state, "tobytes") else state


def items_of(container: Any) -> list[tuple[Any, ...]]:
    if isinstance(container, dict):
        return list(dict.items(container))
    kind: Any = next(kind for kind in CONTAINERS if isinstance(container, kind))
    return [(item,) for item in kind.__iter__(container)]


def same_objects(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether each is the same object, or an equal number or string."""
    return all(x is y or (type(x) is type(y) and isinstance(x, _PLAIN) and x == y) for x, y in zip(a, b, strict=True))


def equal_arrays(a: Any, b: Any) -> bool:
    """NaN is NaN: what was not written to is not written back, either."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())
