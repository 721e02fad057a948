"""Blocks of k tangent columns [..., k] as operands of matrix products.

With many columns the last axis is a good inner dimension of a batch of products as it is. With few, a product per row
of the block would read all of its matrix for a handful of numbers: columns in front, [k, ...], are a few large ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.workspace import empty

# Columns from which on they are better last: measured on products of 8 to 512 rows with matrices 20 to 784 wide.
_MANY = {torch.float32: 16, torch.float64: 32}
_SMALL = 1 << 14  # multiplications that cost less than what goes around them


def are_few(t: Tensor, work: int) -> bool:
    """Whether a block [..., k] is better taken with its columns in front, for ``work`` multiplications a column."""
    return work >= _SMALL and t.shape[-1] < _MANY.get(t.dtype, 1)


def in_front(t: Tensor) -> Tensor:
    """[..., k] as [k, ...], each column contiguous: a view where they are so already, as one column alone always is."""
    front = t.movedim(-1, 0)
    return front if front[0].is_contiguous() else empty(front.shape, t).copy_(front)


def rows_in_front(t: Tensor) -> Tensor:
    """[..., F, k] as [k, R, F], R rows."""
    return in_front(t).reshape(t.shape[-1], -1, t.shape[-2])


def multiplied(A: Tensor, B: Tensor, onto: Tensor | None = None) -> Tensor:
    """onto (which is overwritten) + A B for matrices [m, n], [n, p] or batches of k of them, one of them a batch."""
    k = len(A) if A.dim() == 3 else len(B)
    A, B = A.expand(k, *A.shape[-2:]), B.expand(k, *B.shape[-2:])
    if onto is None:
        return torch.bmm(A, B, out=empty((k, A.shape[1], B.shape[2]), A))
    return onto.baddbmm_(A, B)
