"""How a spread run starts: the deviations of one process, of which every rank keeps its own."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ...base.tensors import room
from .frame import Spread

# Numbers that are drawn at once. torch's generator goes by 16 of them: whole multiples are the same numbers as all at
# once.
_DRAWN = 1 << 20
_UNIT = 16


def start_columns(frame: Spread, own: Tensor, size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Own columns [size, c] of what ``start_block`` gives for all of them.

    Args:
        frame: of all columns.
        own: which are ours.
        size: S.
        dtype, device: of the result.
        seed: of the draws.
    """
    if frame.k == size:
        Y = room(size, len(own), dtype, device).zero_()
        Y[own.to(device), torch.arange(len(own), device=device)] = 1
        return Y
    return frame.placed(frame.factored(drawn(size, frame.k, own, seed)).Q.to(device, dtype))


def drawn(size: int, k: int, own: Tensor, seed: int) -> Tensor:
    """Some columns of a normal matrix [size, k], float64 on the CPU; never more than a few rows of all of them."""
    generator = torch.Generator().manual_seed(seed)
    step = max(_DRAWN // (k * _UNIT), 1) * _UNIT
    ends = [*range(0, size, step), size]
    if len(ends) > 2 and (ends[-1] - ends[-2]) * k < _UNIT:  # fewer numbers would be drawn in another way
        del ends[-2]
    parts = []
    for a, b in itertools.pairwise(ends):
        G = torch.randn(b - a, k, generator=generator, dtype=torch.float64, device="cpu")
        parts.append(G[:, own])
    return torch.cat(parts)
