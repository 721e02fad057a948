"""The rules of softmax and log_softmax along one axis, with sums over that axis and p = softmax(z).

softmax      dp = p (dz - sum p dz)            delta_z = p (delta - q),  q = sum p delta
             d(delta_z) = dp (delta - q) + p (d(delta) - dq),   dq = sum dp delta + p d(delta)
log_softmax  da = dz - sum p dz                delta_z = delta - p s,  s = sum delta
             d(delta_z) = d(delta) - dp s - p sum d(delta)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .rule import Tangent, add, column


class Softmax:
    """p = softmax(z).

    Args:
        dim: the axis, counted from the first.
        rows_of_zeros: whether the softmax of nothing but -inf is 0, as in attention where all is masked, and not NaN.
    """

    path, fresh = "layer rule", True
    slots: tuple[int | None, ...] = ()

    def __init__(self, dim: int, rows_of_zeros: bool = False) -> None:
        self.dim, self.rowwise, self.rows_of_zeros = dim, dim > 0, rows_of_zeros

    def _centred(self, p: Tensor, t: Tensor) -> Tensor:
        """p (t - sum p t)."""
        return p * (t - (p * t).sum(self.dim, keepdim=True))

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        p = torch.softmax(inputs[0], self.dim)
        if self.rows_of_zeros:
            p = p.masked_fill((inputs[0] == -torch.inf).all(self.dim, keepdim=True), 0.0)
        return p, p

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [self._centred(saved, delta)], []

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        return None if dinputs[0] is None else self._centred(column(saved), dinputs[0])

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        dd_in = None if ddelta is None else self._centred(column(saved), ddelta)
        if dinputs[0] is not None:
            dp, centred = self._centred(column(saved), dinputs[0]), delta - (saved * delta).sum(self.dim, keepdim=True)
            moved = (dp * column(delta)).sum(self.dim, keepdim=True)
            dd_in = add(dd_in, dp * column(centred) - column(saved) * moved)
        return [dd_in], []


class LogSoftmax:
    """a = log softmax(z) along an axis, counted from the first."""

    path, fresh = "layer rule", True
    slots: tuple[int | None, ...] = ()

    def __init__(self, dim: int) -> None:
        self.dim, self.rowwise = dim, dim > 0

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, Any]:
        a = torch.log_softmax(inputs[0], self.dim)
        return a, a.exp()

    def backward(self, saved: Any, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        return [delta - saved * delta.sum(self.dim, keepdim=True)], []

    def _tangent(self, p: Tensor, dz: Tensor) -> Tensor:
        return dz - (column(p) * dz).sum(self.dim, keepdim=True)

    def tangent_forward(self, saved: Any, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        return None if dinputs[0] is None else self._tangent(saved, dinputs[0])

    def tangent_backward(
        self, saved: Any, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        p, dd_in = column(saved), None
        if ddelta is not None:
            dd_in = ddelta - p * ddelta.sum(self.dim, keepdim=True)
        if dinputs[0] is not None:
            total = column(delta.sum(self.dim, keepdim=True))
            dd_in = add(dd_in, self._tangent(saved, dinputs[0]).mul_(p).mul_(-total))
        return [dd_in], []
