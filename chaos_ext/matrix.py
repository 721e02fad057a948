"""Symmetry of dense matrices, block by block."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def _blocks(p: int, size: int = 2048) -> Iterator[tuple[slice, slice]]:
    for i in range(0, p, size):
        for j in range(i, p, size):
            yield slice(i, i + size), slice(j, j + size)


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
