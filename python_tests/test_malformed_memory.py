"""Operands whose memory is not what their sizes say, is shared with what is written, or would be too much."""

from __future__ import annotations

import resource

import pytest
import torch
from malformed import changed, refused, refused_by_the_fake, tensor_places
from sweeps import parameters, program, slots
from test_ops import _packet, _samples
from torch import Tensor

from chaos_ext import _ops

CPU = torch.device("cpu")
LARGEST = 2**63 - 1


@pytest.mark.parametrize("rows", [2**30, 2**33, 2**48, LARGEST])
def test_a_huge_unused_value_allocates_nothing(rows: int) -> None:
    P, (operands, values, nodes, factors) = program("MLP")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bad = (torch.rand(P, 3, dtype=torch.float64), operands, [*values, rows], nodes, factors)
    match = rf"values (that a node makes, got value 3 of|of less than 2\^49 rows in all, got one of) {rows}"
    refused("tangent_product", bad, match)
    refused_by_the_fake("tangent_product", bad, match)
    S, last = slots("plain", P, parameters(nodes, operands), torch.float64)
    refused("tangent_update_", (torch.rand(S, 3, dtype=torch.float64), None, *bad[1:], *last), match)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_convolution_whose_table_would_fill_the_memory() -> None:
    """10^12 pairs of a position and a tap of operands of 8 MB."""
    out, W, X = torch.ones(1, 1, 1000, 1000, 1), torch.ones(1, 1, 1000, 1000), torch.ones(1, 1, 2, 2, 1)
    args = (out, W, X, 0, [1, 1], [0, 0], [1, 1], 1, False)
    refused("conv_lanes_", args, r"at most 2\^28 pairs of an output position and a tap")
    refused_by_the_fake("conv_lanes_", args, r"at most 2\^28 pairs of an output position and a tap")


WRITTEN = {
    "norm_tangent_": (0,),
    "norm_tangent_backward_": (0, 1, 2),
    "hessian_block_": (0,),
    "projected_sgd_": (0, 4),
    "tangent_update_": (0,),
    "tangent_update_ (given)": (0,),
}


def _on(memory: Tensor, like: Tensor) -> Tensor:
    """A tensor with these numbers, at the end of that memory."""
    flat = memory.untyped_storage()
    last = flat.nbytes() // like.element_size() - like.numel()
    return like.new_empty(0).set_(flat, max(last, 0), like.shape)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_shares_no_memory(name: str) -> None:
    """With any other operand, in part: the result would depend on the order of writing and reading."""
    args = _samples(CPU, torch.float64)[name]
    tried = 0
    for index in WRITTEN[name]:
        for i, j in tensor_places(args):
            other = args[i] if j is None else args[i][j]
            if (i, j) == (index, None) or other.numel() == 0 or other.numel() > args[index].numel():
                continue
            shared = _on(args[index], other)
            new = shared if j is None else [shared if n == j else t for n, t in enumerate(args[i])]
            refused(name.split(" ")[0], changed(args, i, new), r"\w+, which is written, in memory of its own, got")
            tried += 1
    assert tried > 0


def test_a_convolution_onto_itself() -> None:
    X = torch.rand(2, 4, 5, 5, 3)
    args = (X, torch.rand(4, 4, 1, 1), X, 0, [1, 1], [0, 0], [1, 1], 1, False)
    refused("conv_lanes_", args, "out, which is written, in memory of its own, got some that lanes shares")


def test_columns_side_by_side_share_no_memory() -> None:
    """Y and HY of one matrix, row by row in turn."""
    args = _samples(CPU, torch.float64)["tangent_update_ (given)"]
    S, P = len(args[0]), len(args[1])
    whole = torch.rand(S, 6, dtype=torch.float64)
    Y, HY = whole[:, :3], whole[:P, 3:]
    apart = (Y.clone(), HY.clone())
    squares = _packet("tangent_update_")(Y, HY, *args[2:])
    assert torch.equal(squares, _packet("tangent_update_")(*apart, *args[2:]))
    assert torch.equal(Y, apart[0])
    refused("tangent_update_", (whole[:, :3], whole[:P, 2:5], *args[2:]), "Y, which is written, in memory of its own")


def test_one_number_for_all_rows_is_not_written() -> None:
    args = _samples(CPU, torch.float64)["tangent_update_ (given)"]
    Y, HY = torch.rand(1, 1, dtype=torch.float64).expand(len(args[0]), 1), args[1][:, :1].contiguous()
    refused("tangent_update_", (Y, HY, *args[2:]), "Y, which is written, without repeated elements")


@pytest.mark.parametrize("name", _samples(CPU, torch.float32))
def test_memory_that_was_given_back(name: str) -> None:
    """As sharding does it: the tensor still has its sizes, but nothing behind them."""
    args = _samples(CPU, torch.float32)[name]
    for i, j in tensor_places(args):
        t = args[i] if j is None else args[i][j]
        if t.numel() == 0:
            continue
        empty = t.clone()
        empty.untyped_storage().resize_(4)
        new = empty if j is None else [empty if n == j else x for n, x in enumerate(args[i])]
        with pytest.raises(RuntimeError, match=rf"{name.split(' ')[0]}: expected \w+ with memory behind all"):
            _packet(name)(*changed(args, i, new))


def test_numbers_between_addresses() -> None:
    z = torch.frombuffer(bytearray(41), dtype=torch.float64, count=5, offset=1)
    with pytest.raises(RuntimeError, match=r"activation: expected z aligned to its 8-byte elements"):
        _ops.activation(z, _ops.TANH)


def test_sparse_operands() -> None:
    for layout in (torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr()):
        with pytest.raises((RuntimeError, NotImplementedError), match=r"chaos_ext::mse|mse: expected"):
            _ops.mse(layout, torch.eye(3), 1.0)
        with pytest.raises((RuntimeError, NotImplementedError), match="use_huge_pages_"):
            _ops.use_huge_pages_(layout)
