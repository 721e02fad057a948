"""Memory for the tangents of a sweep, kept from one sweep to the next.

A sweep makes tens of tangents of megabytes each. From the system's allocator they come as fresh pages, and the page
faults cost as much as all normalisations and activations together. On the CPU only: torch keeps the memory of a GPU
itself. Each thread has its own, of the size that its last sweep took, up to ``KEPT_BYTES``.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

KEPT_BYTES = 1 << 27  # after a sweep
_SMALL_BYTES = 1 << 15  # which the allocator hands out without page faults


class Workspace:
    """Buffers by dtype and size: in use, free in this sweep, and left by earlier ones."""

    def __init__(self) -> None:
        self.depth = 0
        self._used: dict[int, Tensor] = {}  # by address
        self._free: defaultdict[tuple[torch.dtype, int], list[Tensor]] = defaultdict(list)
        self._kept: defaultdict[tuple[torch.dtype, int], list[Tensor]] = defaultdict(list)

    def take(self, size: int, like: Tensor) -> Tensor:
        key = like.dtype, size
        source = self._free if self._free[key] else self._kept
        if source[key]:
            buffer = source[key].pop()
        else:
            self._kept.clear()  # another model, or another number of columns: what is left would only add up
            buffer = torch.empty(size, dtype=like.dtype, device=like.device)
        self._used[buffer.data_ptr()] = buffer
        return buffer

    def release(self, t: Tensor) -> None:
        """Frees the buffer of t, of which there must be no other use."""
        buffer = self._used.pop(t.data_ptr(), None)
        if buffer is not None:
            self._free[buffer.dtype, buffer.numel()].append(buffer)

    def finish(self) -> None:
        """Frees all buffers, and keeps those of this sweep unless they are too large."""
        for b in self._used.values():
            self._free[b.dtype, b.numel()].append(b)
        self._used.clear()
        self._kept, self._free = self._free, defaultdict(list)
        if self.kept_bytes() > KEPT_BYTES:
            self._kept.clear()

    def kept_bytes(self) -> int:
        return sum(b.nbytes for buffers in self._kept.values() for b in buffers)


_own = threading.local()


def _workspace() -> Workspace:
    if not hasattr(_own, "workspace"):
        _own.workspace = Workspace()
    return _own.workspace


@contextmanager
def sweep() -> Iterator[None]:
    """Inside, ``empty`` hands out kept memory; nothing made by it may be used after the block."""
    own = _workspace()
    own.depth += 1
    try:
        yield
    finally:
        own.depth -= 1
        if own.depth == 0:
            own.finish()


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor of the dtype and device of ``like``; inside a sweep, of its memory."""
    own, size = _workspace(), torch.Size(shape).numel()
    if own.depth == 0 or like.device.type != "cpu" or size * like.element_size() < _SMALL_BYTES:
        return like.new_empty(shape)
    return own.take(size, like).view(shape)


def release(t: Tensor) -> None:
    """Frees the memory of a tensor made by ``empty`` before the sweep is over; of any other tensor, does nothing."""
    _workspace().release(t)
