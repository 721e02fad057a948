"""The rule of Embedding: z_r = W[x_r] for indices x.

With parameter tangent V and the one-hot matrix E, E_ri = 1 where x_r = i:

    dz = E V,   (H v)_W = E^T d(delta).

z is linear in W and x has no tangent, so nothing else remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .rule import Leaf, Tangent


class Embedding:
    """z = W[x] for indices x; the row ``padding_idx`` is a constant, as its gradient in torch is zero."""

    path, rowwise = "layer rule", True

    def __init__(self, weight: Leaf, padding_idx: int | None) -> None:
        self.weight, self.padding_idx = weight, padding_idx
        self.slots: tuple[int | None, ...] = (weight.slot,)

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        x, W = inputs[0], self.weight(theta)
        assert W is not None
        return F.embedding(x, W), (x, W.shape)

    def meets_padding(self, saved: Any) -> bool:
        """Whether this batch looks up the row that is a constant."""
        return self.padding_idx is not None and bool((saved[0] == self.padding_idx).any())

    def _scatter(self, saved: Any, rows: Tensor) -> Tensor:
        """Sums rows [*x.shape, D, ...] over equal indices, without atomics: one-hot times rows."""
        x, shape = saved
        rows = rows.reshape(x.numel(), -1)
        used, where = torch.unique(x.reshape(-1), return_inverse=True)
        hot = F.one_hot(where, len(used)).to(rows)
        if self.padding_idx is not None:
            hot[:, used == self.padding_idx] = 0
        out = rows.new_zeros(shape[0], rows.shape[1])
        out[used] = hot.T @ rows
        return out

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [None], [None if self.slots[0] is None else self._scatter(saved, delta).view(saved[1])]

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        if dtheta[0] is None:
            return None
        x, V = saved[0], dtheta[0]
        dz = V[x]
        if self.padding_idx is not None:
            dz[x == self.padding_idx] = 0
        return dz

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        if ddelta is None or self.slots[0] is None:
            return [None], [None]
        return [None], [self._scatter(saved, ddelta).view(*saved[1], -1)]
