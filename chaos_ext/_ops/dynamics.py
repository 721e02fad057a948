"""Sweeps over tangent columns, the tangent map of an optimizer's step, and a projected step: csrc/dynamics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .library import OPS

_tangent_product = OPS.tangent_product.default
_tangent_update_ = OPS.tangent_update_.default
_projected_sgd_ = OPS.projected_sgd_.default

# Node kinds of a tangent sweep, and what becomes of H y in an update: csrc/dynamics/tangent_program.h.
LINEAR, SCALE, SUM, SOFTMAX, DIAGONAL = range(5)
PLAIN, MOMENTUM, ADAM = 1, 2, 3
MAX_NODES = MAX_SLOTS = 64


def tangent_product(
    Y: Tensor, operands: Sequence[Tensor], values: Sequence[int], nodes: Sequence[int], factors: Sequence[float]
) -> Tensor:
    """H Y [P, k] by one sweep of the nodes of a tape, in blocks of columns; Y with contiguous rows.

    ``values``: rows of each value's tangent. ``nodes``: kind, in, in2, out, row_w, row_b of each node, the loss last
    (-1: constant); ``factors``: alpha, beta of each. ``operands`` in their order: LINEAR a [R, I], W [O, I], delta
    [R, O]; SCALE phi' and phi'' delta (or empty); SUM none (alpha in + beta in2); SOFTMAX p [R, C], s [R]; DIAGONAL
    the curvature (or empty: alpha).
    """
    return _tangent_product(Y, operands, values, nodes, factors)


@torch.library.register_fake("chaos_ext::tangent_product")
def _tangent_product_fake(Y: Tensor, *args: object) -> Tensor:
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

    HY [P, k], or None and the nodes as in ``tangent_product``. ``slots``: kind, first, rows, buffer, buffer of each
    parameter. ``coefficients``: decay, mu, c1, e1, e2, b2, keep. With K = H y + decay d: PLAIN d - e1 K; MOMENTUM
    v' = mu v + c1 K, d - e1 K - e2 v'; ADAM also u' = b2 u + q K, keep d - A v' + B u', with q, A, B [rows] in
    ``vectors``.
    """
    return _tangent_update_(Y, HY, operands, values, nodes, factors, vectors, slots, coefficients)


@torch.library.register_fake("chaos_ext::tangent_update_")
def _tangent_update_fake(Y: Tensor, *args: object) -> Tensor:
    return Y.new_empty(1, Y.shape[1])


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
def _projected_sgd_fake(*args: object) -> None:
    return None
