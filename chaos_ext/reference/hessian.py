"""Twin of the Hessian's blocks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def use_huge_pages_(t: Tensor) -> None:
    """Nothing: values do not change."""


def hessian_block_(
    H: Tensor,
    a_s: Tensor,
    K: Tensor | None,
    a_t: Tensor | None,
    delta_t: Tensor | None,
    J: Tensor | None,
    row_w: int,
    row_b: int,
    col_w: int,
    col_b: int,
    same: bool,
) -> None:
    if same:
        assert K is not None
        a_t, K = a_s, _mirror_units(K)
    block = _block(a_s, K, a_t, delta_t, J)
    rows = _parameter_rows(row_w, row_b, block.shape[0], block.shape[1])
    columns = _parameter_rows(col_w, col_b, block.shape[2], block.shape[3])
    keep_rows, keep_columns = rows >= 0, columns >= 0
    flat = block.reshape(len(rows), len(columns))[keep_rows][:, keep_columns]
    H[rows[keep_rows][:, None], columns[keep_columns]] = flat
    H[columns[keep_columns][:, None], rows[keep_rows]] = flat.T


def _mirror_units(K: Tensor) -> Tensor:
    """K [O, N, O] with its entries below the diagonal replaced by those above: only i <= k is read."""
    upper = K.permute(1, 0, 2).triu()
    return (upper + upper.triu(1).mT).permute(1, 0, 2)


def _block(a_s: Tensor, K: Tensor | None, a_t: Tensor | None, delta_t: Tensor | None, J: Tensor | None) -> Tensor:
    """The block [O_s, I_s + 1, O_t, I_t + 1], with the constant input 1 (of J: 0) appended for the bias."""
    x_s = F.pad(a_s, (0, 1), value=1.0)
    terms = []
    if K is not None and a_t is not None:
        terms.append(torch.einsum("nj,ink,nl->ijkl", x_s, K, F.pad(a_t, (0, 1), value=1.0)))
    if J is not None and delta_t is not None:
        terms.append(torch.einsum("nj,nk,inl->ijkl", x_s, delta_t, F.pad(J, (0, 1))))
    return torch.stack(terms).sum(0)


def _parameter_rows(weight: int, bias: int, units: int, inputs_and_bias: int) -> Tensor:
    """Rows of H of all (unit, input), the bias last; -1 where the parameter does not exist."""
    rows = torch.full((units, inputs_and_bias), -1)
    if weight >= 0:
        rows[:, :-1] = weight + torch.arange(units * (inputs_and_bias - 1)).reshape(units, inputs_and_bias - 1)
    if bias >= 0:
        rows[:, -1] = bias + torch.arange(units)
    return rows.reshape(-1)
