"""Blocks of the dense Hessian: csrc/hessian; and advice on the memory behind it: csrc/common."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import OPS

_use_huge_pages_ = OPS.use_huge_pages_.default
_hessian_block_ = OPS.hessian_block_.default


def use_huge_pages_(t: Tensor) -> None:
    """Asks for huge pages behind a fresh, untouched CPU tensor; its values are not defined by this."""
    _use_huge_pages_(t)


@torch.library.register_fake("chaos_ext::use_huge_pages_")
def _use_huge_pages_fake(t: Tensor) -> None:
    return None


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
    """Writes the block of layers s (rows) and t (columns) into H [P, P], and its transpose.

    With a_s [N, I_s], K [O_s, N, O_t], a_t [N, I_t], delta_t [N, O_t], J [O_s, N, I_t], and a constant input 1 (of J:
    0) appended for the bias, ``H[(i, j), (k, l)] = sum_n a_s[n, j] (K[i, n, k] a_t[n, l] + delta_t[n, k] J[i, n, l])``.
    Rows are row_w + i I_s + j for the weight, row_b + i for the bias; columns alike; negative offsets are left out.
    ``same``: s is t (a_s serves both, no delta_t, J). Without K, a_t or without delta_t, J their term is absent.
    """
    _hessian_block_(H, a_s, K, a_t, delta_t, J, row_w, row_b, col_w, col_b, same)


@torch.library.register_fake("chaos_ext::hessian_block_")
def _hessian_block_fake(*args: object) -> None:
    return None
