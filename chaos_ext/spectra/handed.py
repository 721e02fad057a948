"""Tensors that are handed out as they are, without a copy, and whose edits are found out.

Values are compared with what they were when first handed out: torch's version counters do not see edits through
``.data`` or numpy. A vector is kept as a copy; a matrix as exact sums of the bits of its rows and columns, which cost a
thousandth of the decomposition that it comes from. What nobody has asked for costs nothing.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor

from ..curvature.basis import Basis
from ..errors import StaleOperatorError

_T = TypeVar("_T")
_NOTES = "_handed_out"  # of an object: name -> fingerprint of the value when it was first handed out
_REPLACED = "replaced"
_BITS = {4: torch.int32, 8: torch.int64}


class HandedOut(Generic[_T]):
    """An attribute whose value may be read by everybody and given once.

    Reading raises StaleOperatorError after it was replaced or written to.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, obj: None, owner: type) -> HandedOut[_T]: ...
    @overload
    def __get__(self, obj: object, owner: type) -> _T: ...
    def __get__(self, obj: object | None, owner: type) -> HandedOut[_T] | _T:
        if obj is None:
            return self
        value: _T = own(obj, self._name)
        _notes(obj).setdefault(self._name, _fingerprint(value))
        return value

    def __set__(self, obj: object, value: _T) -> None:
        if vars(obj).get(self._name) is not None:
            _notes(obj)[self._name] = _REPLACED
        vars(obj)[self._name] = value


def own(obj: object, name: str) -> Any:
    """The value of such an attribute for whoever only reads it, without handing it out.

    Raises:
        StaleOperatorError: it was replaced or written to.
    """
    value, notes = vars(obj)[name], _notes(obj)
    if name in notes and not _same(notes[name], _fingerprint(value)):
        raise StaleOperatorError(
            f"{type(obj).__name__.lower()}: its eigenvalues, eigenvectors or gradient were edited after it was made "
            f"({name}); make a new one, of a new HessianOperator, and edit clones"
        )
    return value


def require_unedited(obj: object) -> None:
    """Raises StaleOperatorError if anything that the object handed out was replaced or written to."""
    for name in _notes(obj):
        own(obj, name)


def unnoted(obj: object) -> dict[str, Any]:
    """The fields of an object as if it had handed out nothing."""
    return {k: v for k, v in vars(obj).items() if k != _NOTES}


def _notes(obj: object) -> dict[str, Any]:
    notes: dict[str, Any] = vars(obj).setdefault(_NOTES, {})
    return notes


def _fingerprint(value: Any) -> Any:
    """Tensors and plain values, in tuples, that stand for a value; what can only be multiplied with has none."""
    if isinstance(value, Basis):
        return tuple(_fingerprint(part) for layer in value.layers for part in vars(layer).values())
    if not isinstance(value, Tensor):
        return value if isinstance(value, (int, float)) else None
    value = value.detach()
    if value.dim() < 2 or value.element_size() not in _BITS:
        return value.clone()
    bits = value.view(_BITS[value.element_size()])
    sums = bits.sum(0, dtype=torch.int64), bits.sum(1, dtype=torch.int64)
    return str(value.dtype), *sums, value[:1].clone()  # a row: sums modulo 2^64 miss an even number of changed signs


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)
