"""The tangent sweep: a block of k tangents pushed forward through a tape and back.

Every second-order quantity is one sweep; they differ in where the tangents enter (parameters, or the pre-activation
units of one layer) and in what is read off (Hessian-vector products, or the tangents of inputs and cotangents).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base import workspace
from ..rules.rule import Rule, Tangent
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
    owned = Owned()
    for i in range(min(entered, default=len(program.nodes)), len(program.nodes)):
        node = program.nodes[i]
        dinputs = [dvalues[j] for j in node.inputs]
        if i in entered or any(d is not None for d in dinputs):
            free = len(dinputs) > 0 and program.readers[node.inputs[0]] == 1 and dinputs[0] in owned
            push = owned.variant(node.rule, "tangent_forward", free)
            dvalues[i + 1] = push(tape.saved[i], dinputs, _slots(node.rule.slots, dtheta))
            owned.note(node.rule, dinputs, dvalues[i + 1])
    products: list[Tangent] = [None] * len(tape.theta)
    _backward(tape, dvalues, last, dtheta, products, owned)
    return products


class Owned:
    """The tangents whose memory is nobody else's: a rule's in-place variant may write to them.

    A rule whose results are fresh (``Rule``) makes an owned tangent. An owned tangent that some other rule has seen may
    live on in a view, and is not owned any more.
    """

    def __init__(self) -> None:
        self._tangents: dict[int, Tensor] = {}  # by id, and alive, so that the id stays theirs

    def __contains__(self, t: object) -> bool:
        return id(t) in self._tangents

    @staticmethod
    def variant(rule: Rule, name: str, free: bool) -> Callable[..., Any]:
        """The rule's method, in place where there is such a variant and the memory is free."""
        in_place: Callable[..., Any] | None = getattr(rule, f"{name}_", None) if free else None
        return getattr(rule, name) if in_place is None else in_place

    def note(self, rule: Rule | None, arguments: Sequence[Tangent], result: Tangent = None, *more: Tangent) -> None:
        """After a rule (None: of which nothing is known) was given the arguments and returned the results."""
        if not getattr(rule, "fresh", False) or more:
            for a in arguments:
                self.forget(a)
        elif result is not None and all(result is not a for a in arguments):
            self._tangents[id(result)] = result

    def forget(self, t: Tangent) -> None:
        self._tangents.pop(id(t), None)

    def release(self, t: Tangent) -> None:
        """After its last use."""
        if t is not None and t in self:
            self.forget(t)
            workspace.release(t)

    def accumulate(self, total: list[Tangent], where: Sequence[int], parts: Sequence[Tangent]) -> None:
        """total[w] += part, into the one of both that is owned."""
        for w, part in zip(where, parts, strict=True):
            known = total[w]
            if part is None or known is None:
                total[w] = known if part is None else part
            elif part in self:
                total[w] = part.add_(known)
                self.release(known)
            else:
                total[w] = known.add_(part) if known in self else known + part


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
    tape: Tape,
    dvalues: list[Tangent],
    first: int,
    dtheta: Mapping[int, Tensor],
    products: list[Tangent] | None,
    owned: Owned | None = None,
) -> list[Tangent]:
    """Tangent of the backward pass down to node ``first``: returns d(delta) at the output of each node.

    With ``products`` they are all that is kept: other tangents are dropped as soon as they have been used.
    """
    program = tape.program
    ddelta: list[Tangent] = [None] * len(tape.values)
    owned, dz = owned or Owned(), dvalues[program.output]
    if dz is not None:
        ddelta[program.output] = tape.loss.tangent(dz)
    for i in reversed(range(first, len(program.nodes))):
        node, delta = program.nodes[i], tape.deltas[i]
        if delta is None or not program.depends[i + 1] or (i == first and products is None):
            continue
        slots, dins = _slots(node.rule.slots, dtheta), [dvalues[j] for j in node.inputs]
        if ddelta[i + 1] is None and all(d is None for d in (*slots, *dins)):
            continue
        dd = ddelta[i + 1]
        pull = owned.variant(node.rule, "tangent_backward", products is not None and dd in owned)
        d_inputs, d_slots = pull(tape.saved[i], delta, dins, slots, dd)
        if products is None:
            accumulate(ddelta, node.inputs, d_inputs)
            continue
        accumulate(products, node.rule.slots, d_slots)
        # Two inputs may get the same tangent.
        owned.note(node.rule if len(d_inputs) == 1 else None, [dd], *d_inputs)
        owned.accumulate(ddelta, node.inputs, d_inputs)
        if all(d is not dd for d in d_inputs):
            owned.release(dd)
        owned.release(dvalues[i + 1])
        ddelta[i + 1] = dvalues[i + 1] = dd = None
    return ddelta[1:]
