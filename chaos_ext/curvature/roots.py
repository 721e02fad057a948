"""Square roots of a loss's curvature at the model's output: C = d2 loss / dz2 = L diag(signs) L^T, columns [M] as z.

    cross-entropy   L_r = sqrt(s_r) (diag sqrt(p_r) - p_r sqrt(p_r)^T) in each row r,   C_r = s_r (diag p_r - p_r p_r^T)
    elementwise     L = diag sqrt(c)
    any other       C as a matrix [M, M], C = W diag(mu) W^T, L = W diag sqrt(|mu|)

On a fitted batch p_c is near 1 and 1 - p_c is the sum of the other probabilities: it is summed, not subtracted.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..rules.losses import ElementwiseLoss, Evaluated, SoftmaxLoss


class Root(Protocol):
    """L [M, R], on flat outputs: products only. Of a loss's curvature R is M.

    Attributes:
        signs: [R], +1 or -1 each.
    """

    signs: Tensor

    def apply(self, c: Tensor) -> Tensor:
        """L c [M, k] for c [R, k]."""

    def transposed(self, u: Tensor) -> Tensor:
        """L^T u [R, k] for u [M, k]."""


def _signs(curvature: Tensor) -> Tensor:
    return torch.where(curvature < 0, -torch.ones_like(curvature), torch.ones_like(curvature))


class SoftmaxRoot:
    """Of cross-entropy at z [N, C, ...]."""

    def __init__(self, loss: SoftmaxLoss, shape: torch.Size) -> None:
        self._shape, self._p = shape, loss.p.unsqueeze(-1)
        self._roots = (loss.s.abs().unsqueeze(1) * loss.p).sqrt().unsqueeze(-1)
        self._others = others(self._p)
        self.signs = self._flat(_signs(loss.s).view(-1, 1, 1).expand(*loss.p.shape, 1)).squeeze(1)

    def apply(self, c: Tensor) -> Tensor:
        t = self._roots * self._rows(c)
        return self._flat(t * self._others - self._p * others(t))

    def transposed(self, u: Tensor) -> Tensor:
        v = self._rows(u)
        return self._flat(self._roots * (self._others * v - others(self._p * v)))

    def _rows(self, t: Tensor) -> Tensor:
        """[M, k] as [rows, C, k]."""
        k = t.shape[1]
        return t.reshape(*self._shape, k).movedim(1, -2).reshape(*self._p.shape[:2], k)

    def _flat(self, rows: Tensor) -> Tensor:
        k = rows.shape[-1]
        return (
            rows.reshape(self._shape[0], *self._shape[2:], self._shape[1], k).movedim(-2, 1).reshape(self._p.numel(), k)
        )


def others(t: Tensor) -> Tensor:
    """For t [rows, C, k], the sum over the other classes, without a difference."""
    before, after = torch.zeros_like(t), torch.zeros_like(t)
    if t.shape[1] > 1:
        before[:, 1:] = t[:, :-1].cumsum(1)
        after[:, :-1] = t[:, 1:].flip(1).cumsum(1).flip(1)
    return before + after


class DiagonalRoot:
    """Of a loss that is a sum of one function of each output."""

    def __init__(self, curvature: Tensor) -> None:
        flat = curvature.reshape(-1)
        self.signs, self._roots = _signs(flat), flat.abs().sqrt().unsqueeze(1)

    def apply(self, c: Tensor) -> Tensor:
        return self._roots * c

    transposed = apply


class MatrixRoot:
    """Of any loss whose curvature is known as a matrix C [M, M]."""

    def __init__(self, C: Tensor) -> None:
        values, W = torch.linalg.eigh((C + C.T) / 2)
        self.signs, self._L = _signs(values), W * values.abs().sqrt()

    def apply(self, c: Tensor) -> Tensor:
        return self._L @ c

    def transposed(self, u: Tensor) -> Tensor:
        return self._L.T @ u


def root_of(loss: Evaluated, z: Tensor) -> Root | None:
    """Of a loss with a rule, at the output z; None where its curvature has no known form."""
    if isinstance(loss, SoftmaxLoss):
        return SoftmaxRoot(loss, z.shape)
    if isinstance(loss, ElementwiseLoss):
        curvature = loss.curvature
        return DiagonalRoot(torch.full_like(z, curvature) if isinstance(curvature, float) else curvature.view_as(z))
    return None
