"""Sweeps over tangent columns, the tangent map of an optimizer's step, and a projected step: csrc/dynamics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import checks
from .layout import MAX_SLOTS, UPDATE_CHUNKS
from .library import OPS
from .sweep_checks import Program, check_empty_columns, check_given, check_slots

_tangent_product = OPS.tangent_product.default
_tangent_update_ = OPS.tangent_update_.default
_projected_sgd_ = OPS.projected_sgd_.default


def tangent_product(
    Y: Tensor, operands: Sequence[Tensor], values: Sequence[int], nodes: Sequence[int], factors: Sequence[float]
) -> Tensor:
    """H Y [P, k] by one sweep of the nodes of a tape, in blocks of columns; Y with contiguous rows.

    ``values``: rows of each value's tangent. ``nodes``: a NodeRecord each, the loss last; ``factors``: a FactorRecord
    each. ``operands`` in their order: LINEAR a [R, I], W [O, I], delta [R, O]; SCALE phi' and phi'' delta (or empty);
    SUM none (alpha first + beta second); NORM xh [B, G, M], r [G], gamma [C] (or empty), delta like xh; SOFTMAX p
    [R, C], s [R]; DIAGONAL the curvature (or empty: alpha).
    """
    return _tangent_product(Y, operands, values, nodes, factors)


@torch.library.register_fake("chaos_ext::tangent_product")
def _tangent_product_fake(
    Y: Tensor, operands: Sequence[Tensor], values: Sequence[int], nodes: Sequence[int], factors: Sequence[float]
) -> Tensor:
    op = "tangent_product"
    checks.arguments(op, {"Y": Y, "operands": operands})
    checks.floating(op, "Y", Y)
    checks.columns(op, "Y", Y)
    check_empty_columns(op, Y)
    Program(op, Y, operands, values, nodes, factors).check_product()
    return Y.new_empty(Y.shape)


def tangent_update_(
    Y: Tensor,
    HY: Tensor | None,
    operands: Sequence[Tensor],
    values: Sequence[int],
    nodes: Sequence[int],
    factors: Sequence[float],
    vectors: Sequence[Tensor],
    slots: Sequence[int],
    coefficients: Sequence[float],
) -> Tensor:
    """Y [S, k] <- J Y in place; returns partial sums of squares [c, k] of the new columns.

    Rows that no slot names stay as they are, and are not in the sums.

    c = 1, but UPDATE_CHUNKS for every MAX_SLOTS slots on the GPU with HY. HY [P, k], or None and the nodes as in
    ``tangent_product``. ``slots``: a SlotRecord each parameter, ``coefficients``: a CoefficientRecord each. With
    K = H y + decay d: PLAIN d - e1 K; MOMENTUM v' = mu v + c1 K, d - e1 K - e2 v'; ADAM also u' = b2 u + q K,
    keep d - A v' + B u', with q, A, B [rows] in ``vectors``.
    """
    return _tangent_update_(Y, HY, operands, values, nodes, factors, vectors, slots, coefficients)


@torch.library.register_fake("chaos_ext::tangent_update_")
def _tangent_update_fake(
    Y: Tensor,
    HY: Tensor | None,
    operands: Sequence[Tensor],
    values: Sequence[int],
    nodes: Sequence[int],
    factors: Sequence[float],
    vectors: Sequence[Tensor],
    slots: Sequence[int],
    coefficients: Sequence[float],
) -> Tensor:
    op = "tangent_update_"
    checks.arguments(op, {"Y": Y, "operands": operands, "vectors": vectors}, {"HY": HY}, written=("Y",))
    checks.floating(op, "Y", Y)
    checks.columns(op, "Y", Y)
    check_empty_columns(op, Y)
    own = check_slots(op, Y, vectors, slots, coefficients)
    program = Program(op, Y, operands, values, nodes, factors)
    if HY is None:
        program.check_update(own)
    else:
        check_given(op, HY, Y, own, len(program.nodes))
    return Y.new_empty(_partial_sums(Y, HY is not None, len(own)), Y.shape[1])


def _partial_sums(Y: Tensor, given: bool, slots: int) -> int:
    """Rows of an update's sums of squares: on the GPU each of the launches that H y given takes leaves several."""
    launches = (slots + MAX_SLOTS - 1) // MAX_SLOTS
    return launches * UPDATE_CHUNKS if given and Y.device.type == "cuda" and Y.shape[1] > 0 else 1


def projected_sgd_(
    param: Tensor,
    grad: Tensor,
    L: Tensor,
    R: Tensor,
    buf: Tensor | None,
    first: bool,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """One step of torch's SGD recurrence along grad - L R, in place; param is viewed as [O, I], L [O, q], R [q, I].

    ``first``: buf is uninitialised memory and is set to the step's direction. Momentum needs buf.
    """
    _projected_sgd_(param, grad, L, R, buf, first, lr, momentum, dampening, weight_decay, nesterov, maximize)


@torch.library.register_fake("chaos_ext::projected_sgd_")
def _projected_sgd_fake(
    param: Tensor,
    grad: Tensor,
    L: Tensor,
    R: Tensor,
    buf: Tensor | None,
    first: bool,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    op = "projected_sgd_"
    checks.arguments(op, {"param": param, "grad": grad, "L": L, "R": R}, {"buf": buf}, written=("param", "buf"))
    checks.floating(op, "param", param)
    checks.contiguous(op, "param", param)
    checks.elementwise(op, "grad", grad, "param", param)
    checks.dim(op, "L", L, 2)
    checks.dim(op, "R", R, 2)
    checks.operand(op, "L", L, "param", param, L.shape)
    checks.operand(op, "R", R, "param", param, (L.shape[1], R.shape[1]))
    checks.expect(
        L.shape[0] * R.shape[1] == param.numel(),
        f"{op}: expected L [O, q] and R [q, I] with O I = {param.numel()}, got {list(L.shape)} and {list(R.shape)}",
    )
    checks.expect(
        buf is not None or (momentum == 0 and not nesterov),
        f"{op}: expected buf with momentum or nesterov, got none with momentum {momentum}",
    )
    if buf is not None:
        checks.elementwise(op, "buf", buf, "param", param)
