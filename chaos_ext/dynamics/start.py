"""How a run of deviations starts: how many columns, which, and how often they are re-orthonormalised."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.tensors import room
from .orthonormal import orthonormalise


def start_block(
    size: int, k: int, dtype: torch.dtype, device: torch.device, seed: int, generic: bool = False
) -> Tensor:
    """Orthonormal columns [size, k]: the identity if k = size, else random ones from the seed.

    ``generic``: random ones in any case, for what depends on where each column points: coordinate axes are often
    special, such as those of two angles with their actions.
    """
    if k == size and not generic:
        return room(size, size, dtype, device).zero_().fill_diagonal_(1)
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(size, k, generator=generator, dtype=torch.float64, device="cpu")
    return room(size, k, dtype, device).copy_(orthonormalise(G)[0])


def check_count(k: int | None, size: int, name: str) -> int:
    """The number of columns: k, or all of them.

    Raises:
        ValueError: k outside 1..size.
    """
    if k is None:
        return size
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= size:
        raise ValueError(f"k: expected an int in 1..{name} = {size} or None, got {k!r}")
    return k


def check_every(qr_every: int | str) -> None:
    """Raises ValueError for what is neither "auto" nor a number of steps."""
    if qr_every != "auto" and (isinstance(qr_every, bool) or not isinstance(qr_every, int) or qr_every < 1):
        raise ValueError(f"qr_every: expected 'auto' or an int >= 1, got {qr_every!r}")
