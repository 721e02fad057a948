"""hessian_block_kernel on the CPU emulator: every variant, tiles cut off by odd sizes, rows with gaps."""

import pytest
import torch
from emulator.ops import EmulatedOps
from test_ops_hessian_block import TERMS, Sizes, canvas, check, layout, operands

# Inputs around the tile of 32 (with the bias: 31, 32 and 33 inputs are 1, 2 and 2 tiles), batches around the chunk of
# 16, no batch, no inputs.
SIZES = [
    Sizes(1, 1, 1, 1, 1),
    Sizes(3, 2, 5, 4, 3),
    Sizes(16, 2, 31, 3, 32),
    Sizes(17, 3, 33, 2, 40),
    Sizes(40, 2, 64, 1, 7),
    Sizes(0, 2, 3, 2, 4),
    Sizes(5, 2, 0, 3, 0),
]
CPU = torch.device("cpu")


@pytest.mark.parametrize("d", SIZES, ids=str)
@pytest.mark.parametrize("terms", TERMS)
def test_two_layers(d: Sizes, terms: str, emulated: EmulatedOps, dtype: torch.dtype) -> None:
    at = layout(d)
    check(canvas(at.P, dtype, CPU), operands(d, terms, dtype), at, False, CPU, emulated.hessian_block_)


@pytest.mark.parametrize("offsets", ["no_row_bias", "no_col_bias", "no_row_weight", "no_col_weight"])
@pytest.mark.parametrize("grid", [1, 7])
def test_absent_parameters(offsets: str, grid: int, emulated: EmulatedOps) -> None:
    d, ops = Sizes(17, 2, 33, 3, 20), emulated._replace(grid=grid)
    at = layout(d, offsets)
    H = canvas(at.P, torch.float64, CPU)
    check(H, operands(d, "KJ", torch.float64), at, False, CPU, ops.hessian_block_)


@pytest.mark.parametrize("offsets", ["both", "no_row_bias", "no_row_weight"])
@pytest.mark.parametrize("d", SIZES, ids=str)
def test_a_layer_with_itself(d: Sizes, offsets: str, emulated: EmulatedOps, dtype: torch.dtype) -> None:
    d = d._replace(O_t=d.O_s, I_t=d.I_s)
    at, args = layout(d, offsets, same=True), operands(d, "K", dtype)
    H = canvas(at.P, dtype, CPU)
    check(H, [args[0], args[1], args[0], None, None], at, True, CPU, emulated.hessian_block_)


@pytest.mark.parametrize("same", [False, True])
def test_row_stride(same: bool, emulated: EmulatedOps, dtype: torch.dtype) -> None:
    """Columns behind P belong to somebody else."""
    d = Sizes(20, 3, 34, 3, 34) if same else Sizes(20, 3, 34, 2, 5)
    at, args = layout(d, same=same), operands(d, "K" if same else "KJ", dtype)
    H = canvas(at.P, dtype, CPU, ld=at.P + 11)
    assert H.stride() == (at.P + 11, 1)
    around = torch.as_strided(H, (at.P, at.P + 11), H.stride())
    around[:, at.P :] = torch.pi
    check(H, args, at, same, CPU, emulated.hessian_block_)
    assert (around[:, at.P :] == around.new_tensor(torch.pi)).all()
