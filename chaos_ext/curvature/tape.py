"""One forward and one backward pass, recorded: what every tangent sweep runs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, wraps
from typing import TypeVar

from torch import Tensor

from ..graph.program import Program
from ..rules.losses import Evaluated, LossRule
from ..rules.rule import Tangent

T = TypeVar("T")
_FORMS = 64  # results that are remembered for a program: batches come in few sizes


class Tape:
    """The program at one theta and one batch.

    Attributes:
        values: input x and the output of each node.
        saved: what each node's rules keep.
        loss: the loss at the output, with its derivatives in logit space.
        deltas: cotangent at the output of each node (None where the loss does not depend on it).
        gradient: dloss/dtheta, one tensor per slot.
    """

    def __init__(self, program: Program, theta: Sequence[Tensor], x: Tensor, y: Tensor, rule: LossRule) -> None:
        self.program, self.theta = program, theta
        self.values: list[Tensor] = [x]
        self.saved: list[object] = []
        for node in program.nodes:
            value, saved = node.rule.forward([self.values[i] for i in node.inputs], theta)
            self.values.append(value)
            self.saved.append(saved)
        self.loss: Evaluated = rule(self.output, y)
        self.deltas, self.gradient = self._backward()

    @property
    def output(self) -> Tensor:
        return self.values[self.program.output]

    @property
    def unused(self) -> frozenset[int]:
        """The slots that the loss does not depend on."""
        return frozenset([i for i, g in enumerate(self.gradient) if g is None])

    @cached_property
    def form(self) -> tuple[object, ...]:
        """Shapes, and what the loss depends on."""
        unread = tuple([d is None for d in self.deltas])
        return tuple([v.shape for v in self.values]), tuple([t.shape for t in self.theta]), unread

    def _backward(self) -> tuple[list[Tangent], list[Tangent]]:
        cotangent: list[Tangent] = [None] * len(self.values)
        cotangent[self.program.output] = self.loss.delta
        gradient: list[Tangent] = [None] * len(self.theta)
        for i in reversed(range(len(self.program.nodes))):
            node, delta = self.program.nodes[i], cotangent[i + 1]
            if delta is None or not self.program.depends[i + 1]:
                continue
            d_inputs, d_slots = node.rule.backward(self.saved[i], delta)
            accumulate(cotangent, node.inputs, d_inputs)
            accumulate(gradient, node.rule.slots, d_slots)
        return cotangent[1:], gradient


def by_form(find: Callable[[Tape], T]) -> Callable[[Tape], T]:
    """Of a function of a tape that looks at its program and form alone: found once for all tapes that share them."""

    @wraps(find)
    def known(tape: Tape) -> T:
        results, key = tape.program.shaped, (find, tape.form)
        if key not in results:
            if len(results) >= _FORMS:
                results.clear()
            results[key] = find(tape)
        return results[key]

    return known


def accumulate(total: list[Tangent], where: Sequence[int | None], parts: Sequence[Tangent]) -> None:
    """total[w] += part, None being zero."""
    for w, part in zip(where, parts, strict=True):
        if w is not None and part is not None:
            known = total[w]
            total[w] = part if known is None else known + part
