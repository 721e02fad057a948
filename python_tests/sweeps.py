"""Small programs for the native sweep, and slots for the update, with random operands."""

from __future__ import annotations

import torch
from torch import Tensor

from chaos_ext import _ops

Lists = tuple[list[Tensor], list[int], list[int], list[float]]
_node = _ops.NodeRecord


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _linear(R: int, I: int, O: int) -> list[Tensor]:
    return [_normal(R, I), _normal(O, I), _normal(R, O)]


def _softmax(R: int, C: int) -> list[Tensor]:
    return [_normal(R, C).softmax(1), _normal(R).abs() / R]


def program(name: str, dtype: torch.dtype = torch.float64) -> tuple[int, Lists]:
    """P and the lists of a program."""
    P, operands, values, nodes, factors = _PROGRAMS[name]()
    assert len(_ops.records(_ops.FactorRecord, factors)) == len(_ops.records(_node, nodes))
    return P, ([t.to(dtype) for t in operands], values, nodes, factors)


def _one_layer() -> tuple:
    nodes = [*_node(_ops.LINEAR, -1, out=0, row_w=0, row_b=33), *_node(_ops.SOFTMAX, 0)]
    return 36, [*_linear(2, 11, 3), *_softmax(2, 3)], [6], nodes, [1.0] * 4


def _mlp(R: int = 8, bent: bool = True) -> tuple:
    """9-7-5, bias only in the second layer, the activation piecewise linear or not."""
    curved = _normal(7 * R) if bent else torch.empty(0)
    operands = [*_linear(R, 9, 7), _normal(7 * R), curved, *_linear(R, 7, 5), *_softmax(R, 5)]
    nodes = [*_node(_ops.LINEAR, -1, out=0, row_w=0), *_node(_ops.SCALE, 0, out=1)]
    nodes += [*_node(_ops.LINEAR, 1, out=2, row_w=63, row_b=98), *_node(_ops.SOFTMAX, 2)]
    return 103, operands, [7 * R, 7 * R, 5 * R], nodes, [1.0] * 8


def _residual() -> tuple:
    """z = A x + a, then 0.5 z - 2 B z + constant, then C: B has no bias, C's weight is frozen, a loss by elements."""
    R = 5
    operands = [*_linear(R, 3, 4), *_linear(R, 4, 4), *_linear(R, 4, 2), _normal(R * 2)]
    nodes = [*_node(_ops.LINEAR, -1, out=0, row_w=4, row_b=0), *_node(_ops.LINEAR, 0, out=1, row_w=16)]
    nodes += [*_node(_ops.SUM, 0, 1, out=2), *_node(_ops.SUM, 2, out=3), *_node(_ops.LINEAR, 3, out=4, row_b=32)]
    nodes += _node(_ops.DIAGONAL, 4)
    return 34, operands, [4 * R] * 4 + [2 * R], nodes, [1.0, 1.0, 1.0, 1.0, 0.5, -2.0, 3.0, 0.0, 1.0, 1.0, 1.0, 1.0]


def _only_bias() -> tuple:
    nodes = [*_node(_ops.LINEAR, -1, out=0, row_b=0), *_node(_ops.DIAGONAL, 0)]
    return 4, [*_linear(3, 2, 4), torch.empty(0)], [12], nodes, [1.0, 1.0, 0.7, 1.0]


def _norm(B: int, G: int, M: int, C: int) -> list[Tensor]:
    return [_normal(B, G, M), _normal(G).abs(), _normal(C), _normal(B, G, M)]


def _normalised() -> tuple:
    """Per sample; per channel, with positions; two channels in a group; without statistics; without gamma."""
    R = 6
    operands = [*_linear(R, 3, 4), *_norm(1, R, 4, 4), *_norm(3, 4, 2, 4), *_norm(1, 6, 4, 4), *_norm(R, 4, 1, 4)]
    operands += [*_norm(1, R, 4, 0), *_softmax(R, 4)]
    nodes = [*_node(_ops.LINEAR, -1, out=0, row_w=8, row_b=4), *_node(_ops.NORM, 0, out=1, row_w=20, row_b=0)]
    nodes += [*_node(_ops.NORM, 1, out=2, row_w=24, row_b=28), *_node(_ops.NORM, 2, out=3, row_b=32)]
    nodes += [*_node(_ops.NORM, 3, out=4, row_w=36), *_node(_ops.NORM, 4, out=5), *_node(_ops.SOFTMAX, 5)]
    factors = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 2.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    return 40, operands, [4 * R] * 6, nodes, factors


def _normalised_input() -> tuple:
    """gamma and beta of a constant, read twice: a residual connection around a norm."""
    R = 5
    operands = [*_norm(1, R, 3, 3), *_norm(R, 3, 1, 3), torch.empty(0)]
    nodes = [*_node(_ops.NORM, -1, out=0, row_w=0, row_b=3), *_node(_ops.NORM, 0, out=1, row_w=6, row_b=9)]
    nodes += [*_node(_ops.SUM, 0, 1, out=2), *_node(_ops.DIAGONAL, 2)]
    return 12, operands, [3 * R] * 3, nodes, [1.0, 1.0, 1.0, 1.0, 0.5, 2.0, 0.3, 1.0]


def _normalised_channels() -> tuple:
    """More channels than a vector has numbers: with statistics, without, and without gamma."""
    R, C = 5, 37
    operands = [*_linear(R, 2, C), *_norm(R, C, 1, C), *_norm(R, C, 1, C), *_norm(R, C, 1, 0), *_softmax(R, C)]
    nodes = [*_node(_ops.LINEAR, -1, out=0, row_w=0), *_node(_ops.NORM, 0, out=1, row_w=74, row_b=111)]
    nodes += [*_node(_ops.NORM, 1, out=2, row_b=148), *_node(_ops.NORM, 2, out=3), *_node(_ops.SOFTMAX, 3)]
    return 185, operands, [C * R] * 4, nodes, [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]


_PROGRAMS = {
    "one layer": _one_layer,
    "MLP": _mlp,
    "piecewise linear": lambda: _mlp(13, bent=False),
    "one sample": lambda: _mlp(1),
    "residual": _residual,
    "only a bias": _only_bias,
    "normalised": _normalised,
    "normalised input": _normalised_input,
    "normalised channels": _normalised_channels,
}
PROGRAMS = list(_PROGRAMS)


def parameters(nodes: list[int], operands: list[Tensor]) -> list[tuple[int, int]]:
    """(first row, rows) of the parameters that the nodes own."""
    places, start = [], 0
    for node in _ops.records(_node, nodes):
        if node.kind == _ops.LINEAR:
            O, I = operands[start + 1].shape
            places += [(row, size) for row, size in ((node.row_w, O * I), (node.row_b, O)) if row >= 0]
        elif node.kind == _ops.NORM:
            C = len(operands[start + 2])
            places += [(row, C) for row in (node.row_w, node.row_b) if row >= 0]
        start += _ops.OPERANDS[node.kind]
    return places


KINDS = {"plain": _ops.PLAIN, "momentum": _ops.MOMENTUM, "adam": _ops.ADAM, "mixed": -1}


def slots(name: str, P: int, places: list[tuple[int, int]], dtype: torch.dtype) -> tuple[int, tuple]:
    """S and the last lists of an update: buffers lie behind theta, in the order of the slots."""
    vectors, numbers, coefficients, S = [], [], [], P
    for n, (first, size) in enumerate(places):
        kind = KINDS[name] if KINDS[name] > 0 else (_ops.MOMENTUM, _ops.PLAIN, _ops.ADAM)[n % 3]
        buffers = [S + i * size for i in range(_ops.BUFFERS[kind])]
        S += size * len(buffers)
        numbers += _ops.SlotRecord(kind, first, size, *buffers)
        coefficients += torch.randn(len(_ops.CoefficientRecord._fields), dtype=torch.float64).tolist()
        if kind == _ops.ADAM:
            vectors += [torch.randn(size).to(dtype) for _ in range(3)]
    return S, (vectors, numbers, coefficients)
