"""A tape as the arguments of the native sweep: what becomes of layers that csrc/dynamics/tangent_sweep knows.

Programs of Linear layers (any leading axes), normalisations, elementwise activations, sums, scalings and reshapes, with
every parameter read once, are swept as a whole in native code. All others are swept layer by layer (``sweep``).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import _ops
from ..graph.program import Program
from ..rules.elementwise import Elementwise
from ..rules.joints import Add, Affine, Reshape
from ..rules.linear import Linear
from ..rules.losses import ElementwiseLoss, SoftmaxLoss
from ..rules.norm import FixedNorm, GroupStatistics, RowStatistics
from ..rules.rule import as_rows
from .tape import Tape

_NORMS = (FixedNorm, GroupStatistics, RowStatistics)


@dataclass(frozen=True)
class Native:
    """Arguments of ``_ops.tangent_product`` after Y, and those of ``_ops.tangent_update_`` after HY."""

    operands: list[Tensor]
    values: list[int]
    nodes: list[int]
    factors: list[float]

    @property
    def args(self) -> tuple[list[Tensor], list[int], list[int], list[float]]:
        return self.operands, self.values, self.nodes, self.factors


class _Outline:
    """What does not change while shapes do not: values, nodes and factors, and whose operands come in which order.

    It must not refer to its program, which is the key that it is kept under, weakly.
    """

    def __init__(self, tape: Tape, offsets: Sequence[int]) -> None:
        self.values: list[int] = []
        self.nodes: list[int] = []
        self.factors: list[float] = []
        self.readers: list[int] = []  # nodes of the program with operands
        self.place: list[int] = [-1]  # of each value of the program among self.values
        for i in range(len(tape.program.nodes)):
            self._node(tape, i, offsets)
        self._loss(tape)

    def _append(self, node: _ops.NodeRecord, alpha: float = 1.0, beta: float = 1.0) -> None:
        self.nodes += node
        self.factors += _ops.FactorRecord(alpha, beta)

    def _value(self, size: int) -> int:
        self.values.append(size)
        return len(self.values) - 1

    def _node(self, tape: Tape, i: int, offsets: Sequence[int]) -> None:
        node, size = tape.program.nodes[i], tape.values[i + 1].numel()
        first, second = (*(self.place[j] for j in node.inputs), -1)[:2]
        if not tape.program.depends[i + 1]:
            self.place.append(-1)
            return
        if isinstance(node.rule, Reshape):
            self.place.append(first)
            return
        out = self._value(size)
        self.place.append(out)
        if isinstance(node.rule, Linear):
            w, b = (-1 if s is None else offsets[s] for s in node.rule.slots)
            self._append(_ops.NodeRecord(_ops.LINEAR, first, out=out, row_w=w, row_b=b))
            self.readers.append(i)
        elif isinstance(node.rule, Elementwise):
            self._append(_ops.NodeRecord(_ops.SCALE, first, out=out))
            self.readers.append(i)
        elif isinstance(node.rule, _NORMS):
            w, b = (-1 if s is None else offsets[s] for s in node.rule.slots)
            record = _ops.NodeRecord(_ops.NORM, first, out=out, row_w=w, row_b=b)
            self._append(record, float(not isinstance(node.rule, FixedNorm)), _sharing(tape.saved[i]))
            self.readers.append(i)
        else:
            factors = node.rule.factors if isinstance(node.rule, Add) else (_factor(node.rule), 0.0)
            self._append(_ops.NodeRecord(_ops.SUM, first, second, out), *factors)

    def _loss(self, tape: Tape) -> None:
        kind = _ops.SOFTMAX if isinstance(tape.loss, SoftmaxLoss) else _ops.DIAGONAL
        curvature = _constant(tape.loss)
        logits = self.place[tape.program.output]
        self._append(_ops.NodeRecord(kind, logits), 1.0 if curvature is None else curvature)


def _sharing(saved: Any) -> int:
    """How many numbers in a row have one entry of gamma: those of the axes behind its last one."""
    if saved.gamma is None:
        return 1
    shape = saved.gamma.shape
    behind = next((n for n in range(len(shape)) if shape[-1 - n] != 1), len(shape))
    return saved.xh.shape[saved.xh.dim() - behind :].numel()


def _factor(rule: object) -> float:
    assert isinstance(rule, Affine)
    return rule.factor


def _fits(tape: Tape) -> bool:
    """Whether every node is known to the native sweep, and every parameter is read by exactly one."""
    program = tape.program
    if len(program.nodes) + 1 > _ops.MAX_NODES or len(tape.theta) > _ops.MAX_SLOTS:
        return False
    if any(len(program.uses.get(s, ())) != 1 for s in range(len(tape.theta))):
        return False
    if not program.depends[program.output] or not isinstance(tape.loss, (SoftmaxLoss, ElementwiseLoss)):
        return False
    if isinstance(tape.loss, SoftmaxLoss) and tape.output.dim() != 2:
        return False
    return all(_knows(tape, i) for i in range(len(program.nodes)) if program.depends[i + 1])


def _knows(tape: Tape, i: int) -> bool:
    node = tape.program.nodes[i]
    if tape.deltas[i] is None:
        return False
    if isinstance(node.rule, Add):
        return all(tape.values[j].shape == tape.values[i + 1].shape for j in node.inputs)
    return type(node.rule) in (Linear, Elementwise, Affine, Reshape, *_NORMS)


_outlines: weakref.WeakKeyDictionary[Program, tuple[Any, _Outline | None]] = weakref.WeakKeyDictionary()


def native(tape: Tape, offsets: Sequence[int]) -> Native | None:
    """The tape for the native sweep, or None where a layer or the loss is unknown to it."""
    # The program and the shape of its input determine all other shapes.
    key = (tape.values[0].shape, tuple(offsets), type(tape.loss), _constant(tape.loss))
    known = _outlines.get(tape.program)
    if known is None or known[0] != key:
        known = key, _Outline(tape, offsets) if _fits(tape) else None
        _outlines[tape.program] = known
    outline = known[1]
    if outline is None:
        return None
    operands: list[Tensor] = []
    for i in outline.readers:
        operands += _operands(tape, i)
    return Native(operands + _loss_operands(tape), outline.values, outline.nodes, outline.factors)


def _constant(loss: object) -> float | None:
    curvature = getattr(loss, "curvature", None)
    return curvature if isinstance(curvature, float) else None


def _operands(tape: Tape, i: int) -> list[Tensor]:
    saved: Any = tape.saved[i]
    delta = tape.deltas[i]
    assert delta is not None
    if isinstance(tape.program.nodes[i].rule, Linear):
        a, W = saved
        return [as_rows(a).contiguous(), W.contiguous(), as_rows(delta).contiguous()]
    rule = tape.program.nodes[i].rule
    if isinstance(rule, _NORMS):
        layout = rule.layout(saved.xh.shape)
        gamma = saved.r.new_empty(0) if saved.gamma is None else saved.gamma.reshape(-1)
        return [saved.xh.view(layout), saved.r.reshape(-1), gamma.contiguous(), delta.reshape(layout).contiguous()]
    d1, d2 = saved
    return [d1, d1.new_empty(0) if d2 is None else (d2 * delta).contiguous()]


def _loss_operands(tape: Tape) -> list[Tensor]:
    loss: Any = tape.loss
    if isinstance(loss, SoftmaxLoss):
        return [loss.p, loss.s]
    return [tape.output.new_empty(0) if isinstance(loss.curvature, float) else loss.curvature.contiguous()]
