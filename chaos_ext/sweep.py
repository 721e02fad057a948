"""The tangent sweep: a block of k tangents pushed forward through a tape and back.

Every second-order quantity is one sweep; they differ in where the tangents enter (parameters, or the pre-activation
units of one layer) and in what is read off (Hessian-vector products, or the tangents of inputs and cotangents).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layers import Tangent
from .tape import Tape, accumulate


def hessian_vector_products(tape: Tape, dtheta: Sequence[Tensor]) -> list[Tangent]:
    """H v for a block of v: ``dtheta`` holds one [k, *shape] tensor per slot, and so does the result (None: zero)."""
    program = tape.program
    dvalues: list[Tangent] = [None] * len(tape.values)
    for i, node in enumerate(program.nodes):
        slots = [None if s is None else dtheta[s] for s in node.rule.slots]
        dvalues[i + 1] = node.rule.tangent_forward(tape.saved[i], [dvalues[j] for j in node.inputs], slots)
    products: list[Tangent] = [None] * len(tape.theta)
    _backward(tape, dvalues, 0, dtheta, products)
    return products


@dataclass(frozen=True)
class UnitSweep:
    """Tangents under the O unit tangents at the pre-activation z^s of one layer, the same for every sample.

    Attributes:
        dvalues: [O, N, ...] tangent of each value downstream of the layer (None elsewhere).
        ddeltas: [O, N, O_t] tangent of the cotangent at the output of each node from the layer on.
    """

    dvalues: list[Tangent]
    ddeltas: list[Tangent]


def unit_sweep(tape: Tape, s: int) -> UnitSweep:
    """Enters at the units of node s. Samples must not interact between there and the loss."""
    program = tape.program
    n, units = tape.values[s + 1].shape
    dvalues: list[Tangent] = [None] * len(tape.values)
    eye = torch.eye(units, dtype=tape.values[0].dtype, device=tape.values[0].device)
    dvalues[s + 1] = eye.unsqueeze(1).expand(units, n, units)
    for i in range(s + 1, len(program.nodes)):
        node = program.nodes[i]
        if any(dvalues[j] is not None for j in node.inputs):
            none = [None] * len(node.rule.slots)
            dvalues[i + 1] = node.rule.tangent_forward(tape.saved[i], [dvalues[j] for j in node.inputs], none)
    return UnitSweep(dvalues, _backward(tape, dvalues, s, None, None))


def _backward(
    tape: Tape, dvalues: list[Tangent], first: int, dtheta: Sequence[Tensor] | None, products: list[Tangent] | None
) -> list[Tangent]:
    """Tangent of the backward pass down to node ``first``: returns d(delta) at the output of each node."""
    program = tape.program
    ddelta: list[Tangent] = [None] * len(tape.values)
    dz = dvalues[program.output]
    if dz is not None:
        ddelta[program.output] = tape.loss.tangent(dz)
    for i in reversed(range(first, len(program.nodes))):
        node, delta = program.nodes[i], tape.deltas[i]
        if delta is None or not program.depends[i + 1] or (i == first and products is None):
            continue
        slots = [None if s is None or dtheta is None else dtheta[s] for s in node.rule.slots]
        dins = [dvalues[j] for j in node.inputs]
        d_inputs, d_slots = node.rule.tangent_backward(tape.saved[i], delta, dins, slots, ddelta[i + 1])
        accumulate(ddelta, node.inputs, d_inputs)
        if products is not None:
            accumulate(products, node.rule.slots, d_slots)
    return ddelta[1:]
