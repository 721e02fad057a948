"""Parameters that share memory with each other, or with constants: these are then no two coordinates of theta."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UnsupportedError
from .torch_internals import address

Named = Sequence[tuple[str, Tensor]]


def refuse_overlap(trained: Named, constants: Named = ()) -> None:
    """Raises UnsupportedError where a step that writes to one element of a trained parameter moves another one, too.

    Derivatives would be those of independent values, and of constants.
    """
    named = [*trained, *constants]
    spans = [(address(t), t.nbytes if t.is_contiguous() else _bytes(t)) for _, t in named]
    spans.sort()
    end = 0
    for start, size in spans:
        if size < 0 or start < end:
            return _look_closely(named, len(trained))
        end = start + size
    return None


def sharing(buffers: Named, others: Sequence[Tensor]) -> Named:
    """The buffers whose memory another one has, too, or one of the other tensors: who writes to one writes to both.

    One buffer by several names is one: its copy takes its place everywhere.
    """
    named = [(n, b) for n, b in buffers if b.layout == torch.strided and not b.is_meta and b.numel()]
    tensors = [*{id(b): b for _, b in named}.values(), *others]
    places = Counter(t.untyped_storage().data_ptr() for t in tensors)
    return [(n, b) for n, b in named if places[b.untyped_storage().data_ptr()] > 1]


def _bytes(t: Tensor) -> int:
    """From the first element of t to behind the last; -1 where it is not plain that each has its own place."""
    behind = 1
    for stride, n in sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n > 1):
        if stride < behind:
            return -1
        behind += stride * (n - 1)
    return behind * t.element_size()


def _look_closely(named: Named, trained: int) -> None:
    """At every element."""
    held = sorted((address(t), i) for i, (_, t) in enumerate(named) if address(t) and t.numel())
    for place, (start, i) in enumerate(held):
        name, t = named[i]
        if i < trained and _bytes(t) < 0 and _repeats([t]):
            raise UnsupportedError(
                f"parameter {name!r}: several of its elements lie at one place in memory (expand, strides); register "
                "what it was expanded from, and expand it in forward"
            )
        for begin, j in held[place + 1 :]:
            if begin < start + _extent(t) and min(i, j) < trained and _repeats([t, named[j][1]]):
                raise UnsupportedError(
                    f"parameters {name!r} and {named[j][0]!r} share memory, but are two tensors of the model: a step "
                    "would move both; register one parameter, and use it (or a view of it) in forward for the other"
                )


def _extent(t: Tensor) -> int:
    return t.element_size() * (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)))


def _repeats(tensors: Sequence[Tensor]) -> bool:
    """Whether two elements lie at one place: of one tensor, or of two (which repeat their own as they like)."""
    places = [_places(t).unique() if len(tensors) > 1 else _places(t) for t in tensors]
    return len(torch.cat(places).unique()) < sum(map(len, places))


def _places(t: Tensor) -> Tensor:
    """Where each element lies."""
    places = torch.tensor([address(t)], device="cpu")
    for n, s in zip(t.shape, t.stride(), strict=True):
        places = (places.unsqueeze(1) + s * t.element_size() * torch.arange(n, device="cpu")).flatten()
    return places
