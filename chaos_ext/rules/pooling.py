"""The rule of max-pooling: each output is one entry of its input, the first of the largest.

With w(j) the entry that output j takes,

    z_j = a_w(j),   dz_j = da_w(j),   d(delta_a)_i = sum over j with w(j) = i of d(delta)_j.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base.workspace import empty
from .rule import Tangent


class Select:
    """z = a[where]: rows gathered by the indices that torch's own pooling returns.

    Args:
        function: a [N, C, ...] -> (z, indices into the flattened plane of each channel).
        overlapping: whether two outputs may take the same entry.
    """

    path, rowwise, fresh = "layer rule", True, True
    slots: tuple[int | None, ...] = ()

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, Tensor]], overlapping: bool) -> None:
        self.function, self.overlapping = function, overlapping

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        a = inputs[0]
        z, where = self.function(a)
        planes, size = a.shape[:2].numel(), a.shape[2:].numel()
        start = torch.arange(planes, device=a.device).mul_(size).unsqueeze(1)
        rows = (where.reshape(planes, -1) + start).reshape(-1)
        return z, (a.shape, z.shape, rows, self._ranks(rows))

    def _ranks(self, rows: Tensor) -> list[Tensor] | None:
        """Positions in ``rows`` by how often their entry has come before: within a group no entry comes twice."""
        if not self.overlapping or not rows.numel():
            return None
        order = torch.argsort(rows, stable=True)
        ordered = rows[order]
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        places = torch.arange(len(ordered), device=rows.device)
        rank = places - torch.cummax(torch.where(first, places, 0), 0).values
        return [order[rank == r] for r in range(int(rank.max()) + 1)]

    def _scattered(self, saved: Any, t: Tensor) -> Tensor:
        """The adjoint of the gather, for t [outputs, k]; sums in a fixed order."""
        shape, _, rows, ranks = saved
        out = empty((shape.numel(), t.shape[1]), t).zero_()
        for group in ranks or [None]:
            if group is None:
                out[rows] = t
            else:
                out[rows[group]] += t[group]
        return out

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [self._scattered(saved, delta.reshape(-1, 1)).view(saved[0])], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        d = dinputs[0]
        if d is None:
            return None
        rows = d.reshape(saved[0].numel(), -1)
        out = empty((len(saved[2]), rows.shape[1]), d)
        return torch.index_select(rows, 0, saved[2], out=out).view(*saved[1], -1)

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        if ddelta is None:
            return [None], []
        flat = ddelta.reshape(saved[1].numel(), -1)
        return [self._scattered(saved, flat).view(*saved[0], -1)], []
