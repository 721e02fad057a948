"""What the fake kernels of a tangent sweep check, as csrc/dynamics/tangent_builder.h and tangent_lists.h do."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import checks
from .layout import (
    ADAM,
    BUFFERS,
    DIAGONAL,
    LINEAR,
    MAX_NODES,
    MAX_SLOTS,
    NODE_KINDS,
    OPERANDS,
    SCALE,
    SOFTMAX,
    UPDATE_KINDS,
    CoefficientRecord,
    FactorRecord,
    NodeRecord,
    SlotRecord,
    records,
)

Parameter = tuple[int, int]  # first row and rows of theta


class Program:
    """The nodes of a sweep over Y. ``parameters`` are those that the nodes own."""

    def __init__(
        self,
        op: str,
        Y: Tensor,
        operands: Sequence[Tensor],
        values: Sequence[int],
        nodes: Sequence[int],
        factors: Sequence[float],
    ) -> None:
        self.op, self.rows, self.values = op, Y.shape[0], values
        self.parameters: list[Parameter] = []
        self.operands, self.next = list(operands), 0
        size, numbers = len(NodeRecord._fields), len(FactorRecord._fields)
        whole = len(nodes) % size == 0 and len(factors) * size == len(nodes) * numbers
        self._expect(
            whole and len(nodes) <= MAX_NODES * size,
            f"nodes of {size} numbers and {numbers} factors each, at most {MAX_NODES}, "
            f"got {len(nodes)} and {len(factors)}",
        )
        for rows in values:
            self._expect(rows >= 0, f"values of at least 0 rows, got {rows}")
        for t in operands:
            checks.like(op, "operands", t, "Y", Y)
            checks.contiguous(op, "operands", t)
        self.nodes = records(NodeRecord, nodes)
        for node in self.nodes:
            self._read(node)
        self._expect(self.next == len(operands), f"{self.next} operands, got {len(operands)}")
        self._check_order()

    def _expect(self, condition: bool, message: str) -> None:
        checks.expect(condition, f"{self.op}: expected {message}")

    def _read(self, node: NodeRecord) -> None:
        kinds = f"node kinds in [0, {NODE_KINDS}), got {node.kind}"
        self._expect(node.kind in OPERANDS, kinds)
        if node.kind == LINEAR:
            return self._linear(node)
        if node.kind == SOFTMAX:
            R, C = self._sizes()
            self._operand(R * C)
            self._operand(R)
            return self._place(node.first, R * C, "the logits")
        return self._elementwise(node)

    def _linear(self, node: NodeRecord) -> None:
        R, I = self._sizes()
        self._operand(R * I)
        O = self._sizes()[0]
        self._operand(O * I)
        self._operand(R * O)
        self._place(node.first, R * I, "the input")
        self._place(node.out, R * O, "the output")
        for first, rows in ((node.row_w, O * I), (node.row_b, O)):
            self._expect(
                first < 0 or first + rows <= self.rows, f"Y with at least {first + rows} rows, got {self.rows}"
            )
            if first >= 0:
                self.parameters.append((first, rows))
        self._expect(self._has(node.out), "a linear node with an output")

    def _elementwise(self, node: NodeRecord) -> None:
        value = node.first if node.kind == DIAGONAL else node.out
        inside = 0 <= value < len(self.values)
        self._expect(inside, f"a node's value in [0, {len(self.values)}), got {value}")
        rows = self.values[value]
        self._place(node.first, rows, "an input")
        self._place(node.second, rows, "an input")
        self._place(node.out, rows, "the output")
        for at in range(OPERANDS[node.kind]):
            self._operand(rows, optional=node.kind == DIAGONAL or (node.kind == SCALE and at == 1))

    def _following(self) -> Tensor:
        self._expect(self.next < len(self.operands), f"more than {self.next} operands")
        return self.operands[self.next]

    def _sizes(self) -> tuple[int, int]:
        t = self._following()
        checks.dim(self.op, "operands", t, 2)
        return t.shape[0], t.shape[1]

    def _operand(self, numbers: int, optional: bool = False) -> None:
        """The next operand has this many numbers (or none where optional)."""
        t = self._following()
        good = t.numel() == numbers or (optional and t.numel() == 0)
        self._expect(good, f"operand {self.next} of {numbers} numbers, got {list(t.shape)}")
        self.next += 1

    def _place(self, value: int, rows: int, what: str) -> None:
        good = value < 0 or (value < len(self.values) and self.values[value] == rows)
        self._expect(good, f"{what} of a node to be a value of {rows} rows, got value {value}")

    def _has(self, value: int) -> bool:
        """Whether a value has a tangent."""
        return value >= 0 and self.values[value] > 0

    def _check_order(self) -> None:
        written: set[int] = set()
        for n, node in reversed(list(enumerate(self.nodes))):
            reached = not self._has(node.out) or node.out in written
            self._expect(reached, f"every value to reach the loss; node {n}'s output does not")
            read = (node.first, node.second if node.kind not in (LINEAR, SOFTMAX) else -1)
            written |= {value for value in read if self._has(value)}

    def check_product(self) -> None:
        """The nodes' parameters make up all rows of Y."""
        self._check_count()
        rows = sum(size for _, size in self.parameters)
        self._expect(rows == self.rows, f"nodes that own all {self.rows} rows of Y, got {rows}")

    def check_update(self, slots: Sequence[SlotRecord]) -> None:
        """Every parameter has exactly one slot, of its size."""
        self._check_count()
        wanted = len(self.parameters)
        good = len(slots) == wanted
        self._expect(good, f"{wanted} slots, one for each parameter of the nodes, got {len(slots)}")
        for slot in slots:
            known = (slot.first, slot.rows) in self.parameters
            self._expect(known, f"slots of the nodes' parameters, got rows {slot.first} + {slot.rows}")

    def _check_count(self) -> None:
        good = len(self.parameters) <= MAX_SLOTS
        checks.expect(good, f"tangent_product: expected at most {MAX_SLOTS} parameters")


def check_slots(
    op: str, Y: Tensor, vectors: Sequence[Tensor], slots: Sequence[int], coefficients: Sequence[float]
) -> list[SlotRecord]:
    """The slots of an update of Y, whose vectors are those of the ADAM slots."""
    size, numbers = len(SlotRecord._fields), len(CoefficientRecord._fields)
    checks.expect(
        len(slots) % size == 0 and len(coefficients) * size == len(slots) * numbers,
        f"{op}: expected slots of {size} and coefficients of {numbers} numbers, "
        f"got {len(slots)} and {len(coefficients)}",
    )
    for t in vectors:
        checks.like(op, "vectors", t, "Y", Y)
        checks.contiguous(op, "vectors", t)
    own, rest = records(SlotRecord, slots), list(vectors)
    for slot in own:
        kinds = f"{op}: expected slot kinds in [1, {UPDATE_KINDS}), got {slot.kind}"
        checks.expect(slot.kind in BUFFERS, kinds)
        _check_spans(op, slot, Y.shape[0])
        for _ in range(3 if slot.kind == ADAM else 0):
            checks.expect(bool(rest), f"{op}: expected three vectors for each Adam slot, got {len(vectors)} in all")
            checks.shape(op, "vectors", rest.pop(0), (slot.rows,))
    return own


def _check_spans(op: str, slot: SlotRecord, S: int) -> None:
    for first in (slot.first, slot.buffer, slot.buffer2)[: 1 + BUFFERS[slot.kind]]:
        inside = first >= 0 and slot.rows >= 0 and first + slot.rows <= S
        checks.expect(inside, f"{op}: expected slots within Y's {S} rows, got {first} + {slot.rows}")


def check_given(op: str, HY: Tensor, Y: Tensor, slots: Sequence[SlotRecord], nodes: int) -> None:
    """HY [P, k] holds the rows of all slots, and then there are no nodes."""
    checks.like(op, "HY", HY, "Y", Y)
    checks.columns(op, "HY", HY)
    k = Y.shape[1]
    checks.expect(
        HY.shape[1] == k and nodes == 0,
        f"{op}: expected HY with {k} columns like Y and then no nodes, got {list(HY.shape)} and {nodes}",
    )
    for slot in slots:
        end = slot.first + slot.rows
        checks.expect(end <= HY.shape[0], f"{op}: expected HY with at least {end} rows, got {HY.shape[0]}")
