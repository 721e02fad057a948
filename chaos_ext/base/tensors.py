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


_LARGE_BYTES = 1 << 22  # from here on huge pages pay
_MANY_LINES = 8  # so that what is left empty is little
_PIECE = 1 << 17  # numbers that stay in the cache in two dtypes


def fresh(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, a large one on huge pages: touching it for the first time is much of its cost."""
    out = torch.empty(shape, dtype=dtype, device=device)
    if out.nbytes >= _LARGE_BYTES:
        _ops.use_huge_pages_(out)
    return out


def fresh_like(t: Tensor) -> Tensor:
    """An uninitialised matrix of the shape, dtype and device of t [P, k]: by columns if t is, else by rows."""
    if t.stride(0) == 1 and t.shape[1] > 1 and not t.is_contiguous():
        return fresh((t.shape[1], t.shape[0]), t.dtype, t.device).T
    return fresh(tuple(t.shape), t.dtype, t.device)


def room(size: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised matrix [size, count] for sweeps; of many columns the rows begin with cache lines, with which
    sweeps are a sixth faster than without.

    (Rows of whole pages would all compete for the same lines of a cache.)
    """
    line = 64 // dtype.itemsize
    if count < _MANY_LINES * line:
        return fresh((size, count), dtype, device)
    width = -(-count // line) * line
    return fresh((size, width + (line if width % (64 * line) == 0 else 0)), dtype, device)[:, :count]


class WideSum:
    """A sum of tensors with weights, in float64: of one alone with weight 1, that itself.

    torch's own addition to another dtype goes number by number; here pieces are converted in the cache.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._shape, self._device = tuple(shape), device
        self._only: Tensor | None = None
        self._total: Tensor | None = None

    def add(self, t: Tensor, weight: float) -> None:
        """Adds ``weight`` t; t must not be written to later."""
        if self._only is None and self._total is None and weight == 1:
            self._only = t
            return
        if self._total is None:
            self._total = self._zeros(torch.float64)
        if self._only is not None:
            add_wide_(self._total, self._only, 1.0)
            self._only = None
        add_wide_(self._total, t, weight)

    def to(self, dtype: torch.dtype) -> Tensor:
        """The sum, in this dtype."""
        found = self._total if self._only is None else self._only
        if found is None:
            return self._zeros(dtype)
        return found if found.dtype == dtype else fresh(self._shape, dtype, self._device).copy_(found)

    def _zeros(self, dtype: torch.dtype) -> Tensor:
        return fresh(self._shape, dtype, self._device).zero_()


def add_wide_(total: Tensor, t: Tensor, weight: float) -> None:
    """total += weight t, for a contiguous float64 tensor and t of any dtype."""
    if t.dtype == total.dtype or t.device.type != "cpu":
        total.add_(t, alpha=weight)
        return
    into, numbers = total.view(-1), t.contiguous().view(-1)
    for i in range(0, len(into), _PIECE):
        into[i : i + _PIECE].add_(numbers[i : i + _PIECE].double(), alpha=weight)


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


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors on one device hold the same; NaN is NaN."""
    if a.shape != b.shape or a.dtype != b.dtype or a.is_meta or b.is_meta:
        return a.shape == b.shape and a.dtype == b.dtype
    if a.dtype.is_complex:
        a, b = (torch.view_as_real(t.detach().resolve_conj()) for t in (a, b))
    if torch.equal(a, b):
        return True
    return a.is_floating_point() and torch.equal(_bits(a), _bits(b))


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(t: Tensor) -> Tensor:
    """The same memory as integers; a copy where it has gaps."""
    return t.detach().resolve_neg().contiguous().view(_INTEGERS[t.element_size()])


def unexpanded(t: Tensor) -> Tensor:
    """A view of every element once: of an expanded tensor one of the copies that it pretends to have."""
    repeated = [d for d, (n, step) in enumerate(zip(t.shape, t.stride(), strict=True)) if n > 1 and step == 0]
    for d in repeated:
        t = t.narrow(d, 0, 1)
    return t


def copy_of(t: Tensor) -> Tensor:
    """Detached, with memory of its own; of an expanded tensor as little as it has."""
    if t.layout != torch.strided or 0 not in t.stride():
        return t.detach().clone()
    return unexpanded(t.detach()).clone().expand_as(t)


def checksum(t: Tensor) -> Tensor:
    """Of the bits of a large tensor and of their places, int64; products wrap around."""
    t = torch.view_as_real(t.detach().resolve_conj()) if t.dtype.is_complex else t.detach()
    flat, total = _bits(t).view(-1), torch.zeros((), dtype=torch.int64, device=t.device)
    for i, part in enumerate(flat.split(1 << 20)):
        places = torch.arange(len(part), dtype=torch.int64, device=t.device) + (i << 20)
        bits = part.to(torch.int64)
        if part.element_size() == 8:
            # Round numbers in float64 differ in their upper bits alone, of which products would keep a few.
            bits = (bits >> 32).bitwise_and_(0xFFFFFFFF).bitwise_xor_(bits)
        total += ((places * 0x1E3779B97F4A7C15) | 1).mul_(bits + 0x5851F42D4C957F2D).sum()
    return total


def all_finite(t: Tensor) -> bool:
    """Whether a floating point tensor holds neither NaN nor infinity.

    A finite sum has finite terms, and costs one pass; only a sum that is not finite, which may have overflowed, needs a
    look at each number.
    """
    t = t.detach() if t.requires_grad else t
    return math.isfinite(t.sum()) or bool(torch.isfinite(t).all())


def unit_probe(n: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A fixed pseudo-random vector [n] of length one, for checks that cost a product: multiples of the golden ratio."""
    w = torch.frac(torch.arange(1, n + 1, dtype=dtype, device=device) * 0.6180339887498949) - 0.5
    return w / w.norm()
