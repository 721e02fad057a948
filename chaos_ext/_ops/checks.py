"""What the fake kernels check, as checks.h and arguments.h of csrc/common do for the real ones, with the same messages.

<op>: expected <arg> <constraint>, got <value>

What only memory tells (what shares it, how it is aligned) is left to the real kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

_NAMES = {
    torch.float16: "Half",
    torch.float32: "Float",
    torch.float64: "Double",
    torch.int32: "Int",
    torch.int64: "Long",
}
MOST_NUMBERS = 2**50  # more than any memory holds
TOO_MANY = 2**63 - 1
_SPOKEN = {torch.float64: "float64", torch.int64: "int64"}


def expect(condition: bool | torch.SymBool, message: str) -> None:
    """RuntimeError, as the compiled checks raise, or a condition on sizes that are not known yet."""
    torch._check(condition, lambda: message)


def _name(t: Tensor) -> str:
    return _NAMES.get(t.dtype, str(t.dtype))


def _text(sizes: Sequence[int]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def floating(op: str, arg: str, t: Tensor) -> None:
    expect(
        t.dtype in (torch.float32, torch.float64), f"{op}: expected {arg} of dtype float32 or float64, got {_name(t)}"
    )


def dtype(op: str, arg: str, t: Tensor, wanted: torch.dtype) -> None:
    expect(t.dtype == wanted, f"{op}: expected {arg} of dtype {_SPOKEN[wanted]}, got {_name(t)}")


Given = Mapping[str, Tensor | Sequence[Tensor] | None]


def arguments(op: str, given: Given, optional: Given | None = None, written: Sequence[str] = ()) -> None:
    """What every operator asks of all its tensors together, those that may be None apart."""
    for arg, tensors in given.items():
        for t in _tensors(tensors):
            expect(t is not None, f"{op}: expected {arg} as a tensor, got None")
    lead_arg, lead = next(iter(given.items()))
    for arg, tensors in {**given, **(optional or {})}.items():
        for t in _tensors(tensors):
            if t is None:
                continue
            wanted = f"{arg} on the device of {lead_arg} ({cast(Tensor, lead).device})"
            expect(t.device == cast(Tensor, lead).device, f"{op}: expected {wanted}, got {t.device}")
            _possible(op, arg, t)
            if arg in written:
                _unrepeated(op, arg, t)


def _tensors(tensors: Tensor | Sequence[Tensor] | None) -> Sequence[Tensor | None]:
    return [tensors] if tensors is None or isinstance(tensors, Tensor) else tensors


def _possible(op: str, arg: str, t: Tensor) -> None:
    """Of sizes that are known."""
    known = [max(n, 1) for n in t.shape if isinstance(n, int)]
    wanted = f"{arg} of at most 2^50 numbers, empty axes counted as 1"
    expect(math.prod(known) <= MOST_NUMBERS, f"{op}: expected {wanted}, got {_text(t.shape)}")


def _unrepeated(op: str, arg: str, t: Tensor) -> None:
    known = all(isinstance(n, int) for n in (*t.shape, *t.stride()))
    repeats = known and 0 not in t.shape and any(n > 1 and s == 0 for n, s in zip(t.shape, t.stride(), strict=True))
    wanted = f"{arg}, which is written, without repeated elements (call .clone() first)"
    expect(not repeats, f"{op}: expected {wanted}, got strides {_text(t.stride())}")


def like(op: str, arg: str, t: Tensor, lead_arg: str, lead: Tensor) -> None:
    """The dtype of the leading argument of the operator."""
    expect(
        t.dtype == lead.dtype,
        f"{op}: expected {arg} of the dtype of {lead_arg} ({_name(lead)}), got {_name(t)}",
    )


def contiguous(op: str, arg: str, t: Tensor) -> None:
    expect(
        t.is_contiguous(),
        f"{op}: expected {arg} contiguous (call .contiguous() first), got sizes {_text(t.shape)} "
        f"with strides {_text(t.stride())}",
    )


def dim(op: str, arg: str, t: Tensor, wanted: int) -> None:
    expect(t.dim() == wanted, f"{op}: expected {arg} with {wanted} dimensions, got {_text(t.shape)}")


def _equal(a: Sequence[int], b: Sequence[int]) -> bool:
    return len(a) == len(b) and all(x == y for x, y in zip(a, b, strict=True))


def shape(op: str, arg: str, t: Tensor, wanted: Sequence[int]) -> None:
    expect(_equal(t.shape, wanted), f"{op}: expected {arg} of shape {_text(wanted)}, got {_text(t.shape)}")


def same_shape(op: str, arg: str, t: Tensor, lead_arg: str, lead: Tensor) -> None:
    expect(
        _equal(t.shape, lead.shape),
        f"{op}: expected {arg} of the shape of {lead_arg} {_text(lead.shape)}, got {_text(t.shape)}",
    )


def elementwise(op: str, arg: str, t: Tensor, lead_arg: str, lead: Tensor) -> None:
    """Like the leading argument in everything."""
    like(op, arg, t, lead_arg, lead)
    same_shape(op, arg, t, lead_arg, lead)
    contiguous(op, arg, t)


def operand(op: str, arg: str, t: Tensor, lead_arg: str, lead: Tensor, wanted: Sequence[int]) -> None:
    """The usual case: dtype, shape and contiguity in one line."""
    like(op, arg, t, lead_arg, lead)
    shape(op, arg, t, wanted)
    contiguous(op, arg, t)


def columns(op: str, arg: str, t: Tensor) -> None:
    """Rows of any stride, neighbouring columns."""
    dim(op, arg, t, 2)
    rows, k = t.shape
    good = k <= 1 or (t.stride(1) == 1 and (rows <= 1 or t.stride(0) >= k))
    expect(
        good,
        f"{op}: expected {arg} with contiguous rows (strides [>= k, 1]), got strides {_text(t.stride())}",
    )
