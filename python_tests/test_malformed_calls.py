"""Malformed calls of the native operators: refused by name, before anything is allocated or written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from malformed import changed, entry, refused, refused_by_the_fake, tensor_places
from sweeps import program
from test_ops import _samples

from chaos_ext import _ops

CPU = torch.device("cpu")
LARGEST = 2**63 - 1
node = _ops.NodeRecord


# ---- offsets and sizes whose sums and products do not fit into 64 bits ----------------------------------------------


@pytest.mark.parametrize("value", [LARGEST, LARGEST - 5, 2**62])
@pytest.mark.parametrize(
    ("name", "index", "at", "match"),
    [
        ("hessian_block_", 6, None, r"row_w \+ O I <= P = 43"),
        ("hessian_block_", 7, None, r"row_b \+ O <= P = 43"),
        ("hessian_block_", 8, None, r"col_w \+ O I <= P = 43"),
        ("hessian_block_", 9, None, r"col_b \+ O <= P = 43"),
        ("tangent_product", 3, 4, r"Y with at least the rows of every parameter"),
        ("tangent_product", 3, 5, r"Y with at least the rows of every parameter"),
        ("tangent_update_", 4, 4, r"Y with at least the rows of every parameter"),
        ("tangent_update_", 7, 1, r"slots within Y's"),
        ("tangent_update_", 7, 2, r"slots within Y's"),
        ("tangent_update_", 7, 3, r"slots within Y's"),
        ("tangent_update_ (given)", 7, 1, r"slots within Y's"),
    ],
)
def test_offsets_near_the_end_of_int64(name: str, index: int, at: int | None, match: str, value: int) -> None:
    args = _samples(CPU, torch.float64)[name]
    bad = changed(args, index, value) if at is None else entry(args, index, at, value)
    refused(name.split(" ")[0], bad, match)
    refused_by_the_fake(name.split(" ")[0], bad, match)


@pytest.mark.parametrize("value", [2**30, 2**31, 2**62, LARGEST])
@pytest.mark.parametrize(("index", "what"), [(4, "stride"), (5, "padding"), (6, "dilation")])
def test_movements_of_a_convolution(index: int, what: str, value: int) -> None:
    out, W, X = torch.ones(2, 6, 3, 5, 3), torch.ones(6, 4, 3, 2), torch.ones(2, 4, 5, 6, 3)
    args: tuple[Any, ...] = (out, W, X, 0, [1, 1], [0, 0], [1, 1], 1, False)
    for pair in ([1, value], [value, 1]):
        bad = changed(args, index, pair)
        refused("conv_lanes_", bad, rf"{what} of two numbers >= \d and < 2\^30")
        refused_by_the_fake("conv_lanes_", bad, rf"{what} of two numbers >= \d and < 2\^30")


def test_groups_whose_product_overflows() -> None:
    """4 channels = 2 (2^63 + 2) modulo 2^64."""
    out, W, X = torch.ones(2, 6, 3, 5, 3), torch.ones(6, 4, 3, 2), torch.ones(2, 4, 5, 6, 3)
    for groups in (2**62 + 1, LARGEST):
        refused("conv_lanes_", (out, W, X, 0, [1, 1], [0, 0], [1, 1], groups, False), "groups that divide")


def test_sizes_whose_product_is_right_modulo_2_to_the_64() -> None:
    """O I = (2^62 + 1) 4 is 4, the parameter's size, and O rows would be written."""
    param, L, R = torch.rand(4), torch.empty(2**62 + 1, 0), torch.empty(0, 4)
    args = (param, torch.rand(4), L, R, None, False, 0.1, 0.0, 0.0, 0.0, False, False)
    refused("projected_sgd_", args, r"L of at most 2\^50 numbers")
    refused_by_the_fake("projected_sgd_", args, r"L of at most 2\^50 numbers")
    small = changed(changed(args, 2, torch.empty(2**40, 0)), 3, torch.empty(0, 2**24))
    refused("projected_sgd_", small, r"L \[O, q\] and R \[q, I\] with O I = 4")


def test_an_empty_batch_of_impossible_layers() -> None:
    """O I = 4 2^62 is 0: an empty weight, whose rows would be written."""
    a, W, delta = torch.empty(0, 2**62), torch.empty(4, 0), torch.empty(0, 4)
    nodes = [*node(_ops.LINEAR, -1, out=0, row_w=0), *node(_ops.DIAGONAL, 0)]
    args = (torch.rand(3, 2), [a, W, delta, torch.empty(0)], [0], nodes, [1.0] * 4)
    refused("tangent_product", args, r"operands of at most 2\^50 numbers")
    H, K, a_t = torch.rand(9, 9), torch.empty(4, 0, 4), torch.empty(0, 2**62)
    refused("hessian_block_", (H, a_t, K, a_t, None, None, 0, -1, 0, -1, True), r"a_s of at most 2\^50 numbers")
    wide = torch.empty(0, 2**49)
    refused("hessian_block_", (H, wide, K, wide, None, None, 0, -1, 0, -1, True), r"fewer than 2\^63 products")
    wide = torch.empty(0, 2**24)
    refused("hessian_block_", (H, wide, K, wide, None, None, 0, -1, 0, -1, True), r"row_w \+ O I <= P = 9")


def test_a_step_without_rows() -> None:
    """Nothing to divide the work by."""
    Y = torch.empty(0, 3, dtype=torch.float64)
    assert torch.equal(_ops.tangent_update_(Y, None, [], [], [], [], [], [], []), torch.zeros(1, 3).double())


# ---- devices --------------------------------------------------------------------------------------------------------


SEVERAL = [name for name, args in _samples(CPU, torch.float32).items() if len(tensor_places(args)) > 1]


@pytest.mark.parametrize("name", SEVERAL)
def test_one_operand_on_another_device(name: str) -> None:
    """Each of them in turn: nothing happens silently."""
    args = _samples(CPU, torch.float32)[name]
    places = tensor_places(args)
    for i, j in places:
        if j is None:
            moved = changed(args, i, args[i].to("meta"))
        else:
            moved = changed(args, i, [t.to("meta") if n == j else t for n, t in enumerate(args[i])])
        refused(name.split(" ")[0], moved, r"\w+ on the device of \w+ \((cpu|meta)\), got (cpu|meta)")


# ---- rows that nobody covers, or two do -----------------------------------------------------------------------------


def _two_layers(second_row: int, second: int = 9) -> tuple[Any, ...]:
    """A program of two layers of 9 weights each, the second at this row."""
    R = 2
    operands = [torch.rand(R, 3), torch.rand(3, 3), torch.rand(R, 3)] * 2 + [torch.empty(0)]
    nodes = [*node(_ops.LINEAR, -1, out=0, row_w=0), *node(_ops.LINEAR, 0, out=1, row_w=second_row)]
    return operands, [3 * R] * 2, [*nodes, *node(_ops.DIAGONAL, 1)], [1.0] * 6


@pytest.mark.parametrize("second_row", [0, 5, 8])
def test_parameters_that_share_rows(second_row: int) -> None:
    """Their sizes add up to P, but some rows of the result belong to nobody."""
    good = (torch.rand(18, 3), *_two_layers(9))
    assert torch.isfinite(_ops.tangent_product(*good)).all()
    bad = (torch.rand(18, 3), *_two_layers(second_row))
    refused("tangent_product", bad, "nodes whose parameters share no row")
    refused_by_the_fake("tangent_product", bad, "nodes whose parameters share no row")


def test_slots_that_share_rows() -> None:
    """Theta with theta, with a buffer, and two buffers of one slot: what is written depends on the order."""
    Y, HY = torch.rand(12, 3), torch.rand(12, 3)
    record, numbers = _ops.SlotRecord, [0.5] * len(_ops.CoefficientRecord._fields)
    for last in (
        ([], [*record(_ops.PLAIN, 0, 4), *record(_ops.PLAIN, 3, 4)], numbers * 2),
        ([], [*record(_ops.MOMENTUM, 0, 4, 3)], numbers),
        ([torch.rand(4)] * 3, [*record(_ops.ADAM, 0, 4, 4, 5)], numbers),
    ):
        bad = (Y, HY, [], [], [], [], *last)
        refused("tangent_update_", bad, "slots whose rows and buffers share no row of Y")
        refused_by_the_fake("tangent_update_", bad, "slots whose rows and buffers share no row of Y")


def test_rows_without_a_slot_stay() -> None:
    Y, HY = torch.rand(12, 3), torch.rand(12, 3)
    kept = Y.clone()
    lists: tuple[list[Any], ...] = ([], [*_ops.SlotRecord(_ops.PLAIN, 4, 5)], [*_ops.CoefficientRecord(e1=1.0)])
    squares = _ops.tangent_update_(Y, HY, [], [], [], [], *lists)
    assert torch.equal(Y[:4], kept[:4])
    assert torch.equal(Y[9:], kept[9:])
    torch.testing.assert_close(Y[4:9], kept[4:9] - HY[4:9])
    torch.testing.assert_close(squares[0], Y[4:9].square().sum(0))


def test_parameters_without_rows() -> None:
    """A weight [3, 0] starts where the bias does; each has its own update."""
    R = 2
    operands = [torch.rand(R, 0), torch.rand(3, 0), torch.rand(R, 3), torch.empty(0)]
    nodes = [*node(_ops.LINEAR, -1, out=0, row_w=0, row_b=0), *node(_ops.DIAGONAL, 0)]
    lists = (operands, [3 * R], nodes, [1.0] * 4)
    theta = torch.rand(3, 4)
    torch.testing.assert_close(_ops.tangent_product(theta, *lists), R * theta)
    Y, none, mine = torch.rand(3, 4), _ops.CoefficientRecord(), _ops.CoefficientRecord(e1=0.25)
    expected = Y - 0.25 * R * Y
    slots_ = [*_ops.SlotRecord(_ops.PLAIN, 0, 0), *_ops.SlotRecord(_ops.PLAIN, 0, 3)]
    _ops.tangent_update_(Y, None, *lists, [], slots_, [*none, *mine])
    torch.testing.assert_close(Y, expected)


# ---- programs that would read what nobody has written ---------------------------------------------------------------


def _mlp(change: Callable[[list[int]], list[int]], values: list[int] | None = None) -> tuple[Any, ...]:
    P, (operands, own, nodes, factors) = program("MLP")
    return torch.rand(P, 3, dtype=torch.float64), operands, own if values is None else values, change(nodes), factors


def _set(at: int, value: int) -> Callable[[list[int]], list[int]]:
    return lambda nodes: [value if i == at else x for i, x in enumerate(nodes)]


# Nodes of the program: LINEAR 0, SCALE 0 -> 1, LINEAR 1 -> 2, SOFTMAX 2; six numbers each.
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_set(1, 1), "the input of a node to be a value of 72 rows, got value 1"),
        (_set(7, -1), "nodes with a tangent, of an input or of a parameter, got none for node 1"),
        (_set(7, 1), "an input of a node to be made by an earlier one, got value 1"),
        (_set(9, 0), "values that one node makes, got a second one for value 0"),
        (_set(8, 0), "a second input of sums only, got value 0"),
        (_set(19, -1), "nodes with a tangent, of an input or of a parameter, got none for node 3"),
        (_set(21, 2), "a loss without an output, got value 2"),
        (_set(18, _ops.SUM), "a loss as the last node"),
        (lambda nodes: nodes[18:] + nodes[:18], "a loss as the last node"),
        (_set(16, -1), "nodes that own all 103 rows of Y"),
    ],
)
def test_broken_programs(change: Callable[[list[int]], list[int]], match: str) -> None:
    args = _mlp(change)
    refused("tangent_product", args, match)
    refused_by_the_fake("tangent_product", args, match)


def test_a_layer_that_depends_on_nothing() -> None:
    operands = [torch.rand(2, 3), torch.rand(4, 3), torch.rand(2, 4), torch.empty(0)]
    nodes = [*node(_ops.LINEAR, -1, out=0), *node(_ops.DIAGONAL, 0)]
    bad = (torch.rand(0, 3), operands, [8], nodes, [1.0] * 4)
    refused("tangent_product", bad, "nodes with a tangent, of an input or of a parameter, got none for node 0")
    refused_by_the_fake(
        "tangent_product", bad, "nodes with a tangent, of an input or of a parameter, got none for node 0"
    )


def test_superfluous_vectors() -> None:
    args = _samples(CPU, torch.float64)["tangent_update_"]
    bad = changed(args, 6, [*args[6], args[6][0]])
    refused("tangent_update_", bad, "three vectors for each Adam slot")
    refused_by_the_fake("tangent_update_", bad, "three vectors for each Adam slot")


def test_an_order_that_is_no_permutation() -> None:
    args = _samples(CPU, torch.float64)["tridiagonal_apply"]
    refused("tridiagonal_apply", changed(args, 1, torch.tensor([0, 1, 2, 3, 3])), "order with each index once, got 3")
