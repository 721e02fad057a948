"""Memory of a step, kept from one to the next, in which every member's part is aligned alike (see ``layout``)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from .layout import ALIGNED_BYTES, filled


class Scratch:
    """Tensors [b, ...] by name, each on a block [b, stride] of its own that begins zero."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Tensor] = {}
        self._blocks: dict[int, Tensor] = {}  # by address

    def take(self, name: Hashable, shape: Sequence[int], like: Tensor) -> Tensor:
        """The tensor of this name and shape, with whatever it held."""
        key = (name, *shape)
        known = self._kept.get(key)
        return self._made(key, shape, like) if known is None else known

    def _made(self, key: Hashable, shape: Sequence[int], like: Tensor) -> Tensor:
        b, n = shape[0], torch.Size(shape[1:]).numel()
        stride = filled(n, ALIGNED_BYTES // like.element_size())
        with torch.inference_mode(False):
            block = torch.zeros(b, stride, dtype=like.dtype, device=like.device)
        t = block[:, :n].view(shape)
        self._kept[key], self._blocks[block.data_ptr()] = t, block
        return t

    def block(self, t: Tensor, name: Hashable) -> tuple[Tensor, Tensor]:
        """t itself, or a copy, with the whole block [b, stride] that it lies on."""
        block = self._blocks.get(t.data_ptr())
        if block is None or len(block) != len(t):
            t = self.copy(t, name)
            block = self._blocks[t.data_ptr()]
        return t, block

    def copy(self, t: Tensor, name: Hashable) -> Tensor:
        """A copy of t [b, ...] that is aligned."""
        return self.take(name, t.shape, t).copy_(t)

    def aligned(self, t: Tensor, name: Hashable) -> Tensor:
        """t [b, ...] itself if its members are dense and aligned, else a copy."""
        dense = t.is_contiguous() or t[0].is_contiguous()
        step = t.stride(0) * t.element_size() % ALIGNED_BYTES
        return t if dense and step == 0 and t.data_ptr() % ALIGNED_BYTES == 0 else self.copy(t, name)

    def bytes(self) -> int:
        """What it holds by now."""
        return sum(b.nbytes for b in self._blocks.values())
