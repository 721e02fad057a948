"""Of whole matrices: fresh memory, layout of rows, symmetry block by block, finiteness."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _ops


def _blocks(p: int, size: int = 2048) -> Iterator[tuple[slice, slice]]:
    for i in range(0, p, size):
        for j in range(i, p, size):
            yield slice(i, i + size), slice(j, j + size)


def fresh(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised matrix, a large one on huge pages: touching it for the first time is much of its cost."""
    out = torch.empty(shape, dtype=dtype, device=device)
    _ops.use_huge_pages_(out)
    return out


def rows_contiguous(Y: Tensor) -> Tensor:
    """Y [S, k] itself if the columns of a row are neighbours, else a copy."""
    rows, k = Y.shape
    if k <= 1 or (Y.stride(1) == 1 and (rows <= 1 or Y.stride(0) >= k)):
        return Y
    return Y.contiguous()


def asymmetry(h: Tensor) -> float:
    """max |H - H^T| / max |H|."""
    scale = float(h.abs().max()) if h.numel() else 0.0
    worst = max((float((h[a, b] - h[b, a].T).abs().max()) for a, b in _blocks(len(h))), default=0.0)
    return worst / scale if scale else 0.0


def symmetrize_(h: Tensor) -> None:
    """H <- (H + H^T) / 2, bit for bit symmetric. Blocks are small against H: they are extra memory."""
    for a, b in _blocks(len(h), max(256, len(h) // 16)):
        mean = (h[a, b] + h[b, a].T).div_(2)
        h[a, b] = mean
        h[b, a] = mean.T


def all_finite(t: Tensor) -> bool:
    """Whether a floating point tensor holds neither NaN nor infinity.

    A finite sum has finite terms, and costs one pass; only a sum that is not finite, which may have overflowed, needs a
    look at each number.
    """
    t = t.detach()
    return math.isfinite(t.sum()) or bool(torch.isfinite(t).all())
