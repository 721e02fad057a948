"""The batch that an operator was made on: its tensors wherever they are, and whether they still hold what they held."""

from __future__ import annotations

import sys
import types
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError, UnsupportedError
from .tensors import all_finite, checksum, unexpanded
from .torch_internals import stored_parts, stored_values

_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, type, types.FunctionType, nn.Module)
_MOST = 10_000_000  # values that are looked at


class Batch:
    """x and y as they are now: copies of their tensors, which edits through ``.data`` and numpy do not reach.

    Tensors and numpy arrays are found in lists, tuples, dicts and other mappings, sets, and in the attributes of any
    object (a dataclass, a ``UserDict``, a graph).

    Args:
        x, y: what the model and the loss are given.

    Raises:
        ValueError: no sample. NonFiniteError: NaN or infinity. UnsupportedError: an object that hides what it holds.
    """

    def __init__(self, x: object, y: object) -> None:
        self._parts = x, y
        leaves = (*_leaves("x", x), *_leaves("y", y))
        plain = isinstance(x, Tensor) and isinstance(y, Tensor) and x.layout == y.layout == torch.strided
        self._tensors = leaves if plain else None
        self._copies = [_copy(t) for t in leaves]

    def is_fresh(self) -> bool:
        """Whether it holds what it held: values alone matter, not who wrote them."""
        if self._tensors is None:  # a container may hold other objects by now
            now = (*_leaves("x", self._parts[0]), *_leaves("y", self._parts[1]))
            return len(now) == len(self._copies) and all(map(_same, now, self._copies))
        try:
            return all(map(torch.equal, self._tensors, self._copies))
        except RuntimeError:  # another dtype or device, by way of .data
            return False


def _leaves(name: str, value: object) -> list[Any]:
    """Tensors (of arrays: tensors that share their memory) and plain values, in a fixed order."""
    if isinstance(value, Tensor):
        _check(name, value)
        return [value]
    leaves: list[Any] = []
    hidden: list[Any] = []
    todo: list[Any] = [value]
    seen: set[int] = set()
    while todo:
        part = todo.pop()
        if isinstance(part, Tensor):
            _check(name, part)
            leaves.append(part)
        elif isinstance(part, _PLAIN):
            leaves.append(part)
        elif _is_array(part):
            leaves.append(_shared(name, part))
        elif id(part) not in seen:
            seen.add(id(part))
            held = _held(part)
            todo.extend(held or ())
            hidden.extend([part] if held is None else [])
        if len(seen) + len(leaves) > _MOST:
            raise UnsupportedError(f"{name}: it holds more than {_MOST} values; pass tensors")
    if hidden and not any(isinstance(t, Tensor) or _is_array(t) for t in leaves):
        raise UnsupportedError(
            f"{name}: a {type(hidden[0]).__name__} hides its tensors, so a change of them would go unnoticed; pass "
            "tensors, or lists, tuples, dicts or objects that hold them"
        )
    return leaves + hidden


def _shared(name: str, array: Any) -> Any:
    """A tensor on an array's memory, where torch can have one."""
    if array.dtype.kind not in "fiucb" or not array.flags.writeable:
        return array
    t = torch.from_numpy(array)
    _check(name, t)
    return t


def _held(part: Any) -> list[object] | None:
    """What a container or an object holds; None where that cannot be seen."""
    slots = [s for cls in type(part).__mro__ for s in _slots(cls) if hasattr(part, s)]
    attributes = [*getattr(part, "__dict__", {}).values(), *[getattr(part, s) for s in slots]]
    if isinstance(part, Mapping):
        return [*part.keys(), *part.values(), *attributes]
    if isinstance(part, (list, tuple, set, frozenset, deque)):
        return [*part, *attributes]
    return attributes if attributes or hasattr(part, "__dict__") or slots else None


def _slots(cls: type) -> tuple[str, ...]:
    own = vars(cls).get("__slots__", ())
    names = (own,) if isinstance(own, str) else tuple(own)
    return tuple([n for n in names if n not in ("__dict__", "__weakref__")])


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")  # without it there are no arrays
    return numpy is not None and isinstance(value, numpy.ndarray)


def _check(name: str, t: Tensor) -> None:
    if t.dim() > 0 and t.shape[0] == 0:
        raise ValueError(f"{name}: expected a batch of at least one sample, got shape {tuple(t.shape)}")
    if t.is_floating_point() and not all_finite(stored_values(t)):
        raise NonFiniteError(f"{name}: expected finite values, got NaN or inf")


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone() if value.requires_grad else value.clone()
    return value.copy() if _is_array(value) else value


def _same(now: Any, copy: Any) -> bool:
    if isinstance(now, Tensor):
        if not isinstance(copy, Tensor) or now.shape != copy.shape or now.dtype != copy.dtype:
            return False
        return torch.equal(now, copy) if now.layout == torch.strided else _same_sparse(now, copy)
    if _is_array(now):
        return _is_array(copy) and now.dtype == copy.dtype and bool((now == copy).all())
    return now is copy or (type(now) is type(copy) and bool(now == copy))


def _same_sparse(now: Tensor, copy: Tensor) -> bool:
    """Entry by entry: as a dense one a graph of many nodes takes gigabytes."""
    if now.layout != copy.layout:
        return False
    if now.layout == torch.sparse_coo and not (now.is_coalesced() and copy.is_coalesced()):
        now, copy = now.detach().coalesce(), copy.detach().coalesce()
    pairs = list(zip(stored_parts(now), stored_parts(copy), strict=True))
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


class Mark(NamedTuple):
    """What tells a tensor from others."""

    dtype: torch.dtype
    device: torch.device
    shape: tuple[int, ...]
    sums: tuple[int, ...]


def fingerprint(x: object, y: object) -> tuple[object, ...]:
    """What tells a batch from others: a ``Mark`` of each of its tensors, wherever it is, and its plain values.

    Raises:
        As ``Batch``.
    """
    return tuple([_mark(value) for value in (*_leaves("x", x), *_leaves("y", y))])


def _mark(value: Any) -> object:
    if isinstance(value, Tensor):
        parts = [value] if value.layout == torch.strided else stored_parts(value)
        return Mark(value.dtype, value.device, tuple(value.shape), tuple(int(checksum(unexpanded(t))) for t in parts))
    if _is_array(value):
        return value.dtype.str, value.shape, value.tobytes()
    return (type(value), value) if isinstance(value, _PLAIN) else type(value)
