"""Parameters that share memory: two that are trained are then no two coordinates of theta."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UnsupportedError
from .torch_internals import address


def refuse_overlap(names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Raises UnsupportedError where an element of one tensor is also another element, of the same one or of another.

    A step would write it twice; derivatives would be those of independent values.
    """
    spans = sorted([(address(t), t.nbytes if t.is_contiguous() else -1, i) for i, t in enumerate(tensors)])
    end = 0
    for start, size, _ in spans:
        if size < 0 or start < end:
            return _look_closely(names, tensors)
        end = start + size
    return None


def _look_closely(names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """At every element, where it is not plain from the ends of the tensors that each has its own place."""
    held = [(address(t), name, t) for name, t in zip(names, tensors, strict=True) if address(t) and t.numel()]
    held.sort(key=lambda h: h[0])
    for i, (start, name, t) in enumerate(held):
        if not t.is_contiguous() and _repeats([t]):
            raise UnsupportedError(
                f"parameter {name!r}: several of its elements lie at one place in memory (expand, strides); register "
                "what it was expanded from, and expand it in forward"
            )
        for other, u in [(other, u) for begin, other, u in held[i + 1 :] if begin < start + _extent(t)]:
            if _repeats([t, u]):
                raise UnsupportedError(
                    f"parameters {name!r} and {other!r} share memory, but are two Parameter objects: a step would move "
                    "it twice; register one, and use it (or a view of it) in forward where the other was"
                )


def _extent(t: Tensor) -> int:
    """Bytes from the first element of t to behind the last."""
    return t.element_size() * (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)))


def _repeats(tensors: Sequence[Tensor]) -> bool:
    places = torch.cat([_places(t) for t in tensors])
    return len(places.unique()) < len(places)


def _places(t: Tensor) -> Tensor:
    """Where each element lies."""
    places = torch.tensor([address(t)], device="cpu")
    for n, s in zip(t.shape, t.stride(), strict=True):
        places = (places.unsqueeze(1) + s * t.element_size() * torch.arange(n, device="cpu")).flatten()
    return places
