"""The tangent sweep: a block of k tangents pushed forward through a tape and back.

Every second-order quantity is one sweep; they differ in where the tangents enter (parameters, or the pre-activation
units of one layer) and in what is read off (Hessian-vector products, or the tangents of inputs and cotangents).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..rules.conv import Convolution
from ..rules.linear import Linear
from ..rules.norm import FixedNorm
from ..rules.rule import Rule, Tangent
from .owned import Owned
from .tape import Tape, accumulate

NO_SLOTS: Mapping[int, Tensor] = {}


class Pushed(NamedTuple):
    """A node on the way forward that tangents reach: the arguments of its rule's ``tangent_forward``."""

    node: int
    rule: Rule
    saved: object
    dinputs: list[Tangent]
    dslots: list[Tangent]


class Pulled(NamedTuple):
    """A node on the way back that tangents reach: the arguments of its rule's ``tangent_backward``."""

    node: int
    rule: Rule
    inputs: tuple[int, ...]
    saved: object
    delta: Tensor
    dinputs: list[Tangent]
    dslots: list[Tangent]
    ddelta: Tangent


def pushing(tape: Tape, dvalues: list[Tangent], dtheta: Mapping[int, Tensor], first: int) -> Iterator[Pushed]:
    """Nodes from ``first`` on that depend on a tangent; whoever iterates writes dvalues[node + 1] before the next."""
    for i in range(first, len(tape.program.nodes)):
        node = tape.program.nodes[i]
        dinputs, dslots = [dvalues[j] for j in node.inputs], _slots(node.rule.slots, dtheta)
        if _any(dinputs) or _any(dslots):
            yield Pushed(i, node.rule, tape.saved[i], dinputs, dslots)


def _backward(
    tape: Tape, dvalues: list[Tangent], ddeltas: list[Tangent], dtheta: Mapping[int, Tensor], last: int
) -> Iterator[Pulled]:
    """Nodes from the loss down to ``last`` whose cotangents have a tangent.

    Whoever iterates adds the tangents of a node's inputs to ``ddeltas`` (by value) before the next.
    """
    program = tape.program
    for i in reversed(range(last, len(program.nodes))):
        node, delta = program.nodes[i], tape.deltas[i]
        if delta is None or not program.depends[i + 1]:
            continue
        dinputs, dslots = [dvalues[j] for j in node.inputs], _slots(node.rule.slots, dtheta)
        if ddeltas[i + 1] is not None or _any(dinputs) or _any(dslots):
            yield Pulled(i, node.rule, node.inputs, tape.saved[i], delta, dinputs, dslots, ddeltas[i + 1])


def _at_loss(tape: Tape, dvalues: list[Tangent]) -> list[Tangent]:
    """d(delta) of each value: that of the output is (d2 loss / dz2) dz, the others come by the way back."""
    ddeltas: list[Tangent] = [None] * len(tape.values)
    dz = dvalues[tape.program.output]
    if dz is not None:
        ddeltas[tape.program.output] = tape.loss.tangent(dz)
    return ddeltas


def _slots(slots: Sequence[int | None], dtheta: Mapping[int, Tensor]) -> list[Tangent]:
    return [None if s is None else dtheta.get(s) for s in slots]


def _any(tangents: Sequence[Tangent]) -> bool:
    return any(d is not None for d in tangents)


def _pushed(tape: Tape, dtheta: Mapping[int, Tensor], owned: Owned) -> list[Tangent]:
    """The tangent of each value, in memory that is ``owned`` where nobody else reads it."""
    program = tape.program
    dvalues: list[Tangent] = [None] * len(tape.values)
    for push in pushing(tape, dvalues, dtheta, _first_use(tape, dtheta)):
        inputs = program.nodes[push.node].inputs
        last_reader = len(inputs) > 0 and program.readers[inputs[0]] == 1
        dvalues[push.node + 1] = owned.push(push.rule, push.saved, push.dinputs, push.dslots, last_reader)
    return dvalues


def hessian_vector_products(
    tape: Tape, dtheta: Mapping[int, Tensor], wanted: Sequence[int] | None = None
) -> list[Tangent]:
    """H v for a block of v.

    Only the products are kept: tangents are overwritten where nobody else reads them, and dropped after their last use.

    Args:
        tape: the point at which H is taken.
        dtheta: for each slot where v is not zero, its part [*shape, k].
        wanted: the slots of the result (default: all).

    Returns:
        For each slot its part [*shape, k] of the products (None: zero, or not wanted).
    """
    owned = Owned()
    dvalues = _pushed(tape, dtheta, owned)
    products: list[Tangent] = [None] * len(tape.theta)
    ddeltas = _at_loss(tape, dvalues)
    down_to = _first_use(tape, range(len(tape.theta)) if wanted is None else wanted)
    for pull in _backward(tape, dvalues, ddeltas, dtheta, down_to):
        d_inputs, d_slots = owned.pull(pull.rule, pull.saved, pull.delta, pull.dinputs, pull.dslots, pull.ddelta)
        accumulate(products, pull.rule.slots, d_slots)
        owned.accumulate(ddeltas, pull.inputs, d_inputs)
        if all(d is not pull.ddelta for d in d_inputs):
            owned.release(pull.ddelta)
        owned.release(dvalues[pull.node + 1])
        ddeltas[pull.node + 1] = dvalues[pull.node + 1] = None
    return products


def output_tangent(tape: Tape, dtheta: Mapping[int, Tensor]) -> Tangent:
    """J v: the tangent [*z, k] of the model's output z; v as of ``hessian_vector_products``."""
    dvalues = _pushed(tape, dtheta, Owned())
    return dvalues[tape.program.output]


def pulled_back(tape: Tape, cotangents: Tensor) -> list[Tangent]:
    """J^T u for cotangents u [*z, k] of the output: for each slot its part [*shape, k] (None: zero)."""
    products: list[Tangent] = [None] * len(tape.theta)
    ddeltas, owned = _at_output(tape, cotangents), Owned()
    for pull in _way_back(tape, ddeltas):
        accumulate(products, pull.rule.slots, _step_back(owned, pull, ddeltas, pull.rule))
    return products


def cotangents_at(tape: Tape, cotangents: Tensor) -> Iterator[Pulled]:
    """The way back of cotangents u [*z, k] of the output, node by node: each with its own as ``ddelta``, to be read
    before the next is asked for."""
    ddeltas, owned = _at_output(tape, cotangents), Owned()
    for pull in _way_back(tape, ddeltas):
        yield pull
        _step_back(owned, pull, ddeltas, _muted(pull.rule))


def _muted(rule: Rule) -> Rule:
    """The rule without the cotangents of its parameters, which are much of its work."""
    if type(rule) not in (Linear, Convolution, FixedNorm):
        return rule
    quiet = copy.copy(rule)
    quiet.slots = (None, None)
    return quiet


def _at_output(tape: Tape, cotangents: Tensor) -> list[Tangent]:
    ddeltas: list[Tangent] = [None] * len(tape.values)
    ddeltas[tape.program.output] = cotangents
    return ddeltas


def _way_back(tape: Tape, ddeltas: list[Tangent]) -> Iterator[Pulled]:
    nothing: list[Tangent] = [None] * len(tape.values)
    return _backward(tape, nothing, ddeltas, NO_SLOTS, _first_use(tape, range(len(tape.theta))))


def _step_back(owned: Owned, pull: Pulled, ddeltas: list[Tangent], rule: Rule) -> list[Tangent]:
    """Hands the cotangents of a node to its inputs; returns those of its slots."""
    d_inputs, d_slots = owned.pull(rule, pull.saved, pull.delta, pull.dinputs, pull.dslots, pull.ddelta)
    owned.accumulate(ddeltas, pull.inputs, d_inputs)
    if all(d is not pull.ddelta for d in d_inputs):
        owned.release(pull.ddelta)
    ddeltas[pull.node + 1] = None
    return d_slots


def _first_use(tape: Tape, slots: Sequence[int] | Mapping[int, Tensor]) -> int:
    """The first node that reads one of the slots; the number of nodes if none does."""
    program = tape.program
    return min((i for s in slots for i in program.uses.get(s, ())), default=len(program.nodes))


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
    """Enters at the units of node s, and keeps every tangent.

    Samples must not interact between there and the loss.
    """
    z = tape.values[s + 1]
    dvalues: list[Tangent] = [None] * len(tape.values)
    dvalues[s + 1] = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).expand(*z.shape, z.shape[1])
    for push in pushing(tape, dvalues, NO_SLOTS, s + 1):
        dvalues[push.node + 1] = push.rule.tangent_forward(push.saved, push.dinputs, push.dslots)
    ddeltas = _at_loss(tape, dvalues)
    for pull in _backward(tape, dvalues, ddeltas, NO_SLOTS, s + 1):
        d_inputs, _ = pull.rule.tangent_backward(pull.saved, pull.delta, pull.dinputs, pull.dslots, pull.ddelta)
        accumulate(ddeltas, pull.inputs, d_inputs)
    return UnitSweep(dvalues, ddeltas[1:])


def unit_curvature(tape: Tape, s: int, unit: Tensor) -> Tensor:
    """M e [N, ..., k] at the output of node s, for directions e of single samples [..., k] that serve all at once.

    M is the second derivative of the loss with respect to that output; samples must not interact from there on.
    """
    owned = Owned()
    dvalues: list[Tangent] = [None] * len(tape.values)
    dvalues[s + 1] = unit.expand(len(tape.values[s + 1]), *unit.shape)
    for push in pushing(tape, dvalues, NO_SLOTS, s + 1):
        dvalues[push.node + 1] = owned.push(push.rule, push.saved, push.dinputs, push.dslots, False)
    ddeltas = _at_loss(tape, dvalues)
    for pull in _backward(tape, dvalues, ddeltas, NO_SLOTS, s + 1):
        _step_back(owned, pull, ddeltas, _muted(pull.rule))
    found = ddeltas[s + 1]
    return torch.zeros_like(dvalues[s + 1]) if found is None else found  # type: ignore[arg-type]


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
