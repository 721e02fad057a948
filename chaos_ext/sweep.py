"""The tangent sweep: a block of k tangents pushed forward through a tape and back.

Every second-order quantity is one sweep; they differ in where the tangents enter (parameters, or the pre-activation
units of one layer) and in what is read off (Hessian-vector products, or the tangents of inputs and cotangents).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .rule import Tangent
from .tape import Tape, accumulate


def hessian_vector_products(
    tape: Tape, dtheta: Mapping[int, Tensor], wanted: Sequence[int] | None = None
) -> list[Tangent]:
    """H v for a block of v.

    Args:
        tape: the point at which H is taken.
        dtheta: for each slot where v is not zero, its part [*shape, k].
        wanted: the slots of the result (default: all).

    Returns:
        For each slot its part [*shape, k] of the products (None: zero, or not wanted).
    """
    program = tape.program
    entered = {i for s in dtheta for i in program.uses.get(s, ())}
    wanted = range(len(tape.theta)) if wanted is None else wanted
    last = min((i for s in wanted for i in program.uses.get(s, ())), default=len(program.nodes))
    dvalues: list[Tangent] = [None] * len(tape.values)
    for i in range(min(entered, default=len(program.nodes)), len(program.nodes)):
        node = program.nodes[i]
        dinputs = [dvalues[j] for j in node.inputs]
        if i in entered or any(d is not None for d in dinputs):
            dvalues[i + 1] = node.rule.tangent_forward(tape.saved[i], dinputs, _slots(node.rule.slots, dtheta))
    products: list[Tangent] = [None] * len(tape.theta)
    _backward(tape, dvalues, last, dtheta, products)
    return products


def _slots(slots: Sequence[int | None], dtheta: Mapping[int, Tensor]) -> list[Tangent]:
    return [None if s is None else dtheta.get(s) for s in slots]


@dataclass(frozen=True)
class UnitSweep:
    """Tangents under the O unit tangents at the pre-activation z^s of one layer, the same for every sample.

    Attributes:
        dvalues: [N, ..., O] tangent of each value downstream of the layer (None elsewhere).
        ddeltas: [N, O_t, O] tangent of the cotangent at the output of each node from the layer on.
    """

    dvalues: list[Tangent]
    ddeltas: list[Tangent]


def unit_sweep(tape: Tape, s: int) -> UnitSweep:
    """Enters at the units of node s. Samples must not interact between there and the loss."""
    program = tape.program
    n, units = tape.values[s + 1].shape
    dvalues: list[Tangent] = [None] * len(tape.values)
    eye = torch.eye(units, dtype=tape.values[s + 1].dtype, device=tape.values[s + 1].device)
    dvalues[s + 1] = eye.expand(n, units, units)
    for i in range(s + 1, len(program.nodes)):
        node = program.nodes[i]
        if any(dvalues[j] is not None for j in node.inputs):
            none = [None] * len(node.rule.slots)
            dvalues[i + 1] = node.rule.tangent_forward(tape.saved[i], [dvalues[j] for j in node.inputs], none)
    return UnitSweep(dvalues, _backward(tape, dvalues, s, {}, None))


def keeps_samples_apart(tape: Tape, s: int) -> bool:
    """Whether from node s to the loss, sample n of every value depends on sample n of the unit values only."""
    program, n = tape.program, len(tape.values[s + 1])
    reached = {s + 1}
    for i in range(s + 1, len(program.nodes)):
        node = program.nodes[i]
        if reached.isdisjoint(node.inputs):
            continue
        shapes = [tape.values[j].shape for j in (*node.inputs, i + 1)]
        same_axes = len({len(shape) for shape in shapes[:-1]}) == 1
        if not (node.rule.rowwise and same_axes and all(len(shape) and shape[0] == n for shape in shapes)):
            return False
        reached.add(i + 1)
    return len(tape.output) == n


def _backward(
    tape: Tape, dvalues: list[Tangent], first: int, dtheta: Mapping[int, Tensor], products: list[Tangent] | None
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
        slots, dins = _slots(node.rule.slots, dtheta), [dvalues[j] for j in node.inputs]
        if ddelta[i + 1] is None and all(d is None for d in (*slots, *dins)):
            continue
        d_inputs, d_slots = node.rule.tangent_backward(tape.saved[i], delta, dins, slots, ddelta[i + 1])
        accumulate(ddelta, node.inputs, d_inputs)
        if products is not None:
            accumulate(products, node.rule.slots, d_slots)
    return ddelta[1:]
