"""Blocks of the dense Hessian: csrc/hessian; and advice on the memory behind it: csrc/common."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .library import OPS

_use_huge_pages_ = OPS.use_huge_pages_.default
_hessian_block_ = OPS.hessian_block_.default

_BLOCK = "hessian_block_"


def use_huge_pages_(t: Tensor) -> None:
    """Asks for huge pages behind a fresh, untouched CPU tensor; its values are not defined by this."""
    _use_huge_pages_(t)


@torch.library.register_fake("chaos_ext::use_huge_pages_")
def _use_huge_pages_fake(t: Tensor) -> None:
    checks.arguments("use_huge_pages_", {"t": t}, written=("t",))
    checks.floating("use_huge_pages_", "t", t)
    checks.contiguous("use_huge_pages_", "t", t)


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
def _hessian_block_fake(
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
    optional = {"K": K, "a_t": a_t, "delta_t": delta_t, "J": J}
    checks.arguments(_BLOCK, {"H": H, "a_s": a_s}, optional, written=("H",))
    _check_matrix(H)
    sizes = _block_sizes(a_s, K, a_t, delta_t, J, same)
    N, O_s, I_s, O_t, I_t = sizes
    shapes = (("a_s", a_s, (N, I_s)), ("K", K, (O_s, N, O_t)), ("a_t", a_t, (N, I_t)))
    for arg, t, shape in (*shapes, ("delta_t", delta_t, (N, O_t)), ("J", J, (O_s, N, I_t))):
        if t is not None:
            checks.operand(_BLOCK, arg, t, "H", H, shape)
    checks.expect(
        O_s * (I_s + 1) * O_t * (I_t + 1) * (N + 8) < checks.TOO_MANY,
        f"{_BLOCK}: expected fewer than 2^63 products, got O_s {O_s}, I_s {I_s}, O_t {O_t}, I_t {I_t}, N {N}",
    )
    _check_span("row", row_w, row_b, O_s, I_s, H.shape[0])
    _check_span("col", col_w, col_b, O_t, I_t, H.shape[0])
    offsets = f"got row_w {row_w}, row_b {row_b}, col_w {col_w}, col_b {col_b}"
    if same:
        got = "J" if K is not None else "no K"
        checks.expect(K is not None and J is None, f"{_BLOCK}: expected K and no J, delta_t for same, got {got}")
        got = f"O_s {O_s}, O_t {O_t}, I_s {I_s}, I_t {I_t}"
        checks.expect(O_s == O_t and I_s == I_t, f"{_BLOCK}: expected equal layer sizes for same, got {got}")
        equal = row_w == col_w and row_b == col_b
        checks.expect(equal, f"{_BLOCK}: expected equal row and column offsets for same, {offsets}")
        return
    rows, columns = ((row_w, O_s * I_s), (row_b, O_s)), ((col_w, O_t * I_t), (col_b, O_t))
    apart = not any(_overlap(*a, *b) for a in rows for b in columns)
    checks.expect(apart, f"{_BLOCK}: expected disjoint row and column ranges unless same, {offsets}")


def _check_matrix(H: Tensor) -> None:
    checks.floating(_BLOCK, "H", H)
    checks.dim(_BLOCK, "H", H, 2)
    P = H.shape[0]
    checks.expect(H.shape[1] == P, f"{_BLOCK}: expected H square, got {list(H.shape)}")
    checks.expect(
        P <= 1 or (H.stride(1) == 1 and H.stride(0) >= P),
        f"{_BLOCK}: expected H with contiguous rows (strides [>= P, 1]), got strides {list(H.stride())}",
    )


def _block_sizes(
    a_s: Tensor, K: Tensor | None, a_t: Tensor | None, delta_t: Tensor | None, J: Tensor | None, same: bool
) -> tuple[int, int, int, int, int]:
    """N, O_s, I_s, O_t, I_t."""
    given = (("a_s", a_s, 2), ("K", K, 3), ("J", J, 3), ("a_t", a_t, 2), ("delta_t", delta_t, 2))
    checks.expect(
        K is not None or J is not None, f"{_BLOCK}: expected K with a_t, J with delta_t, or both, got neither"
    )
    checks.expect(
        (K is None) == (a_t is None) or (same and K is not None),
        f"{_BLOCK}: expected K and a_t together, got only {'a_t' if K is None else 'K'}",
    )
    checks.expect(
        (J is None) == (delta_t is None),
        f"{_BLOCK}: expected J and delta_t together, got only {'delta_t' if J is None else 'J'}",
    )
    for arg, t, axes in given:
        if t is not None:
            checks.dim(_BLOCK, arg, t, axes)
    N, I_s = a_s.shape
    if K is not None:
        O_s, O_t = K.shape[0], K.shape[2]
    else:
        assert J is not None
        assert delta_t is not None
        O_s, O_t = J.shape[0], delta_t.shape[1]
    return N, O_s, I_s, O_t, a_t.shape[1] if a_t is not None else J.shape[2] if J is not None else I_s


def _overlap(a: int, a_size: int, b: int, b_size: int) -> bool:
    return a >= 0 and b >= 0 and a < b + b_size and b < a + a_size


def _check_span(side: str, weight: int, bias: int, O: int, I: int, P: int) -> None:
    checks.expect(
        weight < 0 or weight + O * I <= P, f"{_BLOCK}: expected {side}_w + O I <= P = {P}, got {weight} + {O} * {I}"
    )
    checks.expect(bias < 0 or bias + O <= P, f"{_BLOCK}: expected {side}_b + O <= P = {P}, got {bias} + {O}")
    checks.expect(
        not _overlap(weight, O * I, bias, O),
        f"{_BLOCK}: expected disjoint {side}_w and {side}_b ranges, got {weight} and {bias}",
    )
