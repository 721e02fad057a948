"""The rule of circular, reflecting and replicating padding: z = G a with a 0-1 matrix G of one 1 a row (or none).

dz = G da,   d(delta_a) = G^T d(delta).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .rule import Tangent


class Pad:
    """Circular, reflecting or replicating padding: every entry of the output is one of the input.

    The rows of one plane (the last ``axes`` axes) are gathered; what several places read is summed place by place.
    """

    path, rowwise = "layer rule", True
    slots: tuple[int | None, ...] = ()

    def __init__(self, function: Callable[[Tensor], Tensor], axes: int) -> None:
        self.function, self.axes = function, axes

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        a = inputs[0]
        plane = a.shape[-self.axes :]
        numbers = torch.arange(1, plane.numel() + 1, dtype=torch.float64, device=a.device).view(1, 1, *plane)
        read = self.function(numbers).reshape(-1).long() - 1  # -1: a zero
        return self.function(a), (a.shape, read)

    def _scattered(self, saved: Any, t: Tensor, columns: int) -> Tensor:
        """Sums t [N, C, places..., (k)] over the places that read the same entry."""
        shape, read = saved
        lead, plane = shape[: -self.axes], shape[-self.axes :]
        hot = torch.zeros(plane.numel() + 1, len(read), dtype=t.dtype, device=t.device)
        hot[read, torch.arange(len(read), device=t.device)] = 1  # row -1, the last, takes the zeros
        flat = t.reshape(lead.numel(), len(read), -1)
        return torch.matmul(hot[:-1], flat).reshape(*shape, *t.shape[t.dim() - columns :])

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [self._scattered(saved, delta, 0)], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        d = dinputs[0]
        if d is None:
            return None
        return torch.movedim(self.function(torch.movedim(d, -1, 0).flatten(0, 1)).unflatten(0, (-1, d.shape[0])), 0, -1)

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        return [None if ddelta is None else self._scattered(saved, ddelta, 1)], []
