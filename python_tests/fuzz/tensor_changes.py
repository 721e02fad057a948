"""What can be wrong with a tensor."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

EXTREMES = [0.0, -0.0, 1.0, -1.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")]
WRONG: list[Any] = [None, True, 1.5, "text", [], {}, (1, 2), 7, [None], object()]
OTHER_DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.uint8,
    torch.complex64,
    torch.complex128,
]
HUGE = [2**24, 2**31, 2**40, 2**48, 2**61]

Change = Callable[[Tensor, Random], Any]


def is_readable(t: Tensor) -> bool:
    """Whether there is memory behind all elements."""
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride())) if t.numel() else -1
    memory = t.untyped_storage()
    return (t.storage_offset() + last + 1) * t.element_size() <= memory.nbytes() and memory.data_ptr() != 0


def other_dtype(t: Tensor, rng: Random) -> Tensor:
    return t.to(rng.choice(OTHER_DTYPES))


def on_meta(t: Tensor, rng: Random) -> Tensor:
    return t.to("meta")


def sliced(t: Tensor, rng: Random) -> Tensor:
    if t.dim() == 0:
        return t[None]
    axis = rng.randrange(t.dim())
    return t.narrow(axis, 0, rng.randint(0, t.shape[axis])).contiguous()


def longer(t: Tensor, rng: Random) -> Tensor:
    if t.dim() == 0:
        return t.repeat(2)
    axis = rng.randrange(t.dim())
    return torch.cat([t, t.narrow(axis, 0, min(t.shape[axis], rng.randint(1, 3)))], axis)


def more_axes(t: Tensor, rng: Random) -> Tensor:
    return t.unsqueeze(rng.randint(0, t.dim()))


def fewer_axes(t: Tensor, rng: Random) -> Tensor:
    flat = t.reshape(-1)
    return rng.choice([flat, t.squeeze(), flat[0] if len(flat) else flat])


def reshaped(t: Tensor, rng: Random) -> Tensor:
    shape = list(t.shape)
    rng.shuffle(shape)
    return t.reshape(shape)


def empty(t: Tensor, rng: Random) -> Tensor:
    """With an axis of no numbers, beside it perhaps one of very many."""
    shape = list(t.shape) or [1]
    shape[rng.randrange(len(shape))] = 0
    if len(shape) > 1 and rng.random() < 0.6:
        at = rng.choice([i for i, n in enumerate(shape) if n != 0] or [0])
        shape[at] = rng.choice(HUGE) if shape[at] else 0
    return t.new_empty(shape)


def strided(t: Tensor, rng: Random) -> Tensor:
    """The same numbers in another order of memory."""
    if t.dim() == 0:
        return t
    if rng.random() < 0.5:
        return t.mT.contiguous().mT if t.dim() > 1 else t.repeat_interleave(2)[::2]
    wide = t.new_empty([n * 2 for n in t.shape])
    wide[tuple(slice(None, None, 2) for _ in t.shape)] = t
    return wide[tuple(slice(None, None, 2) for _ in t.shape)]


def behind_an_offset(t: Tensor, rng: Random) -> Tensor:
    """Contiguous, in the middle of other numbers."""
    memory = t.new_ones(t.numel() + 11)
    inner = memory[5 : 5 + t.numel()].view(t.shape)
    return inner.copy_(t)


def expanded(t: Tensor, rng: Random) -> Tensor:
    if t.dim() == 0 or t.numel() == 0:
        return t
    axis = rng.randrange(t.dim())
    return t.narrow(axis, 0, 1).expand_as(t)


def sliding(t: Tensor, rng: Random) -> Tensor:
    """Rows that overlap."""
    return torch.as_strided(t, t.shape, [1] * t.dim(), t.storage_offset()) if t.is_contiguous() else t


def misaligned(t: Tensor, rng: Random) -> Tensor:
    if t.numel() == 0 or t.dtype == torch.bool or t.is_complex():  # these crash torch itself
        return t
    memory = bytearray(t.numel() * t.element_size() + 8)
    shifted = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=rng.randint(1, 3)).view(t.shape)
    return shifted.copy_(t)


def without_memory(t: Tensor, rng: Random) -> Tensor:
    if rng.random() < 0.2:  # a storage that says otherwise
        nothing = torch._efficientzerotensor((t.numel(),), dtype=t.dtype)
        return t.new_empty(0).set_(nothing.untyped_storage(), 0, t.shape)
    own = t.clone()
    own.untyped_storage().resize_(rng.choice([0, 1, max(own.untyped_storage().nbytes() - 1, 0)]))
    return own


def negated(t: Tensor, rng: Random) -> Tensor:
    """A lazy -x, which is to be resolved before the kernel."""
    return torch._neg_view(t) if t.dtype.is_floating_point else t


def all_zero(t: Tensor, rng: Random) -> Tensor:
    return torch._efficientzerotensor(t.shape, dtype=t.dtype)


def of_other_layout(t: Tensor, rng: Random) -> Any:
    makers = [lambda: t.to_sparse(), lambda: t.to_sparse_csr(), lambda: t.float().to_mkldnn()]
    return rng.choice(makers)()


def with_gradient(t: Tensor, rng: Random) -> Tensor:
    return t.detach().requires_grad_() if t.dtype.is_floating_point else t


def with_values(t: Tensor, rng: Random) -> Tensor:
    """Some entries at the ends of what they can be."""
    own = t.clone()
    if own.numel() == 0 or own.dtype == torch.bool or own.is_complex():
        return own
    edges = EXTREMES if own.dtype.is_floating_point else [0, 1, 2, 5, -1, 2**31, 2**62, 2**63 - 1, -(2**63)]
    flat = own.view(-1) if own.is_contiguous() else own.reshape(-1)
    for _ in range(rng.randint(1, 3)):
        value = rng.choice(edges)
        if not own.dtype.is_floating_point:
            value = max(min(value, torch.iinfo(own.dtype).max), torch.iinfo(own.dtype).min)
        flat[rng.randrange(flat.numel())] = value
    return flat.view(own.shape)


TENSOR_CHANGES: list[Change] = [
    other_dtype,
    on_meta,
    sliced,
    longer,
    more_axes,
    fewer_axes,
    reshaped,
    empty,
    empty,
    strided,
    behind_an_offset,
    expanded,
    sliding,
    misaligned,
    negated,
    all_zero,
    of_other_layout,
    with_gradient,
    with_values,
    with_values,
]


def changed_tensor(t: Tensor, rng: Random) -> Any:
    if rng.random() < 0.05:
        return rng.choice(WRONG)
    change = rng.choice(TENSOR_CHANGES)
    try:
        return change(t, rng) if t.layout != torch.strided or t.is_meta or is_readable(t) else t
    except Exception:  # no such tensor, say of one that an earlier change has made
        return t
