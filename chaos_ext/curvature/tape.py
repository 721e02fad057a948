"""One forward and one backward pass, recorded: what every tangent sweep runs on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..graph.program import Program
from ..rules.losses import Evaluated, LossRule
from ..rules.rule import Tangent


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


def accumulate(total: list[Tangent], where: Sequence[int | None], parts: Sequence[Tangent]) -> None:
    """total[w] += part, None being zero."""
    for w, part in zip(where, parts, strict=True):
        if w is not None and part is not None:
            known = total[w]
            total[w] = part if known is None else known + part
