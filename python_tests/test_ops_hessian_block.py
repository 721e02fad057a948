"""hessian_block_: the contraction by brute force, in every variant, symmetric to the last bit."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from chaos_ext import _ops, reference


class Sizes(NamedTuple):
    N: int
    O_s: int
    I_s: int
    O_t: int
    I_t: int


# Both sides of the switch at N = 16, of the panel widths 8 to 64, of the tile of 6 rows and 48 x 128; empty things.
SIZES = [
    Sizes(1, 1, 1, 1, 1),
    Sizes(3, 2, 5, 4, 3),
    Sizes(8, 7, 33, 5, 17),
    Sizes(16, 3, 65, 2, 129),
    Sizes(17, 2, 65, 2, 129),
    Sizes(40, 7, 50, 9, 21),
    Sizes(0, 2, 3, 2, 4),
    Sizes(5, 0, 3, 2, 4),
    Sizes(5, 2, 0, 3, 0),
    Sizes(33, 40, 3, 2, 0),
]
TERMS = ["K", "J", "KJ"]
OFFSETS = ["both", "no_row_bias", "no_col_bias", "no_row_weight", "no_col_weight"]


class Layout(NamedTuple):
    """Offsets in a vector with a gap before, between and behind the parameters."""

    row_w: int
    row_b: int
    col_w: int
    col_b: int
    P: int


def layout(d: Sizes, offsets: str = "both", same: bool = False) -> Layout:
    row_b = 3
    row_w = row_b + d.O_s
    col_w, col_b = row_w + d.O_s * d.I_s + 1, row_w + d.O_s * d.I_s + 1 + d.O_t * d.I_t + 2
    P = col_b + d.O_t + 1
    row_w, row_b = (-1 if offsets == "no_row_weight" else row_w), (-1 if offsets == "no_row_bias" else row_b)
    if same:
        return Layout(row_w, row_b, row_w, row_b, P)
    return Layout(
        row_w, row_b, -1 if offsets == "no_col_weight" else col_w, -1 if offsets == "no_col_bias" else col_b, P
    )


def operands(d: Sizes, terms: str, dtype: torch.dtype) -> list[Tensor | None]:
    a_s, K, a_t = torch.randn(d.N, d.I_s), torch.randn(d.O_s, d.N, d.O_t), torch.randn(d.N, d.I_t)
    delta, J = torch.randn(d.N, d.O_t), torch.randn(d.O_s, d.N, d.I_t)
    chosen = [a_s, K, a_t] if "K" in terms else [a_s, None, None]
    chosen += [delta, J] if "J" in terms else [None, None]
    return [x if x is None else x.to(dtype) for x in chosen]


def check(
    H: Tensor,
    args: list[Tensor | None],
    at: Layout,
    same: bool,
    device: torch.device,
    hessian_block_: Callable[..., None] = _ops.hessian_block_,
) -> None:
    """Against the twin in float64: the block to rounding, everything else untouched, exactly symmetric."""
    before = H.clone()
    hessian_block_(H, *(x if x is None else x.to(device) for x in args), *at[:4], same)
    wanted = torch.full(H.shape, torch.nan, dtype=torch.float64)
    reference.hessian_block_(wanted, *(x if x is None else x.double() for x in args), *at[:4], same)
    touched = ~wanted.isnan()
    assert torch.equal(H.cpu()[~touched], before.cpu()[~touched])
    size = float(wanted[touched].abs().max()) if touched.any() else 1.0
    atol = 4 * (1 + args[0].shape[0] ** 0.5) * torch.finfo(H.dtype).eps * size
    torch.testing.assert_close(H.cpu().double()[touched], wanted[touched], rtol=0, atol=atol)
    assert torch.equal(H, H.T)


def canvas(P: int, dtype: torch.dtype, device: torch.device, ld: int | None = None) -> Tensor:
    """A symmetric random matrix, its rows `ld` apart."""
    storage = torch.randn(P, ld or P).to(device, dtype)
    H = storage[:, :P]
    return H.copy_((H + H.T).clone())


@pytest.mark.parametrize("d", SIZES, ids=str)
@pytest.mark.parametrize("terms", TERMS)
def test_two_layers(d: Sizes, terms: str, device: torch.device, dtype: torch.dtype) -> None:
    at = layout(d)
    check(canvas(at.P, dtype, device), operands(d, terms, dtype), at, False, device)


@pytest.mark.parametrize("offsets", OFFSETS[1:])
@pytest.mark.parametrize("d", [Sizes(3, 2, 5, 4, 3), Sizes(17, 2, 65, 3, 20)], ids=str)
def test_absent_parameters(d: Sizes, offsets: str, device: torch.device) -> None:
    at = layout(d, offsets)
    check(canvas(at.P, torch.float64, device), operands(d, "KJ", torch.float64), at, False, device)


@pytest.mark.parametrize("offsets", ["both", "no_row_bias", "no_row_weight"])
@pytest.mark.parametrize("d", SIZES, ids=str)
def test_a_layer_with_itself(d: Sizes, offsets: str, device: torch.device, dtype: torch.dtype) -> None:
    d = d._replace(O_t=d.O_s, I_t=d.I_s)
    at = layout(d, offsets, same=True)
    args = operands(d, "K", dtype)
    check(canvas(at.P, dtype, device), [args[0], args[1], args[0], None, None], at, True, device)


@pytest.mark.parametrize("N", [2, 20])
def test_row_stride(N: int, device: torch.device, dtype: torch.dtype) -> None:
    d = Sizes(N, 3, 4, 2, 5)
    at = layout(d)
    H = canvas(at.P, dtype, device, ld=at.P + 11)
    assert not H.is_contiguous()
    check(H, operands(d, "KJ", dtype), at, False, device)


@pytest.mark.parametrize("N", [8, 24])
def test_written_around_the_caches(N: int, dtype: torch.dtype) -> None:
    """H beyond 16 MiB takes the streaming path; rows start at every alignment."""
    P = 2051 if dtype == torch.float32 else 1451
    d, cpu = Sizes(N, 5, 37, 4, 100), torch.device("cpu")
    at, H = layout(d)._replace(P=P), canvas(P, dtype, cpu)
    check(H, operands(d, "KJ", dtype), at, False, cpu)
    args = operands(d._replace(O_t=5, I_t=37), "K", dtype)
    check(H, args, Layout(at.row_w, at.row_b, at.row_w, at.row_b, P), True, cpu)


@pytest.mark.parametrize("N", [8, 24])
def test_bits_do_not_depend_on_the_thread_count(N: int, dtype: torch.dtype) -> None:
    d = Sizes(N, 9, 40, 7, 30)
    at, args, threads = layout(d), operands(d, "KJ", dtype), torch.get_num_threads()
    own = operands(d._replace(O_t=d.O_s, I_t=d.I_s), "K", dtype)
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            H = torch.zeros(at.P, at.P, dtype=dtype)
            _ops.hessian_block_(H, *args, *at[:4], False)
            _ops.hessian_block_(H, *own, at.row_w, at.row_b, at.row_w, at.row_b, True)
            results.append(H)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)
