"""What the fake kernels of a tangent sweep check, as csrc/dynamics/tangent_builder.h and tangent_lists.h do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

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
    NORM,
    OPERANDS,
    SOFTMAX,
    SUM,
    UPDATE_KINDS,
    CoefficientRecord,
    FactorRecord,
    NodeRecord,
    SlotRecord,
    records,
)

Run = tuple[int, int]  # first row, and how many


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
        self.parameters: list[Run] = []
        self.operands, self.next = list(operands), 0
        self.made: set[int] = set()  # values that the nodes so far make
        size, numbers = len(NodeRecord._fields), len(FactorRecord._fields)
        whole = len(nodes) % size == 0 and len(factors) * size == len(nodes) * numbers
        self._expect(
            whole and len(nodes) <= MAX_NODES * size,
            f"nodes of {size} numbers and {numbers} factors each, at most {MAX_NODES}, "
            f"got {len(nodes)} and {len(factors)}",
        )
        self._check_sizes()
        for t in operands:
            checks.like(op, "operands", t, "Y", Y)
            checks.contiguous(op, "operands", t)
        self.nodes, self.factors = records(NodeRecord, nodes), records(FactorRecord, factors)
        for n, node in enumerate(self.nodes):
            self._read(n, node)
        self._expect(self.next == len(operands), f"{self.next} operands, got {len(operands)}")
        for value, rows in enumerate(values):
            made = value in self.made or rows == 0
            self._expect(made, f"values that a node makes, got value {value} of {rows} rows")
        self._check_order()

    def _expect(self, condition: bool, message: str) -> None:
        checks.expect(condition, f"{self.op}: expected {message}")

    def _check_sizes(self) -> None:
        in_all = 0
        for rows in self.values:
            self._expect(rows >= 0, f"values of at least 0 rows, got {rows}")
            in_all += 2 * rows
            self._expect(in_all <= checks.MOST_NUMBERS, f"values of less than 2^49 rows in all, got one of {rows}")

    def _read(self, n: int, node: NodeRecord) -> None:
        self._expect(node.kind in OPERANDS, f"node kinds in [0, {NODE_KINDS}), got {node.kind}")
        loss = node.kind in (SOFTMAX, DIAGONAL)
        self._expect(
            loss == (n + 1 == len(self.nodes)),
            f"a loss as the last node, where every value is to reach the loss, and before it none, "
            f"got kind {node.kind} as node {n}",
        )
        alone = node.kind == SUM or node.second < 0
        self._expect(alone, f"a second input of sums only, got value {node.second}")
        self._expect(not loss or node.out < 0, f"a loss without an output, got value {node.out}")
        kinds = {LINEAR: self._linear, SOFTMAX: self._softmax, NORM: lambda node: self._norm(node, self.factors[n])}
        moves = kinds.get(node.kind, self._elementwise)(node)
        self._expect(moves, f"nodes with a tangent, of an input or of a parameter, got none for node {n}")

    def _softmax(self, node: NodeRecord) -> bool:
        R, C = self._sizes()
        self._operand(R, C)
        self._operand(R)
        return self._input(node.first, R * C, "the logits")

    def _linear(self, node: NodeRecord) -> bool:
        R, I = self._sizes()
        self._operand(R, I)
        O = self._sizes()[0]
        self._operand(O, I)
        self._operand(R, O)
        moves = self._input(node.first, R * I, "the input")
        self._output(node.out, R * O)
        return self._owned((node.row_w, O * I), (node.row_b, O)) or moves

    def _owned(self, *parameters: Run) -> bool:
        """Whether any of these has a row."""
        filled = []
        for first, rows in parameters:
            if first < 0:
                continue
            wanted = f"Y with at least the rows of every parameter, got {first} + {rows} of {self.rows}"
            self._expect(first + rows <= self.rows, wanted)
            filled += [(first, rows)] if rows else []
        self.parameters += filled
        return bool(filled)

    def _norm(self, node: NodeRecord, factors: FactorRecord) -> bool:
        xh = self._following()
        self._expect(xh.dim() == 3, f"operand {self.next} with 3 dimensions, got {list(xh.shape)}")
        self._operand(*xh.shape)
        self._operand(xh.shape[1])
        gamma = self._following()
        self._expect(gamma.dim() == 1, f"operand {self.next} with 1 dimension, got {list(gamma.shape)}")
        self._operand(*gamma.shape)
        self._operand(*xh.shape)
        C, rows, share = len(gamma), xh.numel(), factors.beta
        self._expect(factors.alpha in (0, 1), f"a norm's first factor to be 0 or 1, got {factors.alpha}")
        self._expect(C > 0 or (node.row_w < 0 and node.row_b < 0), "no parameters of a norm without gamma")
        fits = C == 0 or (1 <= share <= rows and share == int(share) and rows % (C * int(share)) == 0)
        wanted = f"a norm's second factor to be numbers that share one of {C} parameters, out of {rows}, got {share:g}"
        self._expect(fits, wanted)
        moves = self._input(node.first, rows, "the input")
        self._output(node.out, rows)
        return self._owned((node.row_w, C), (node.row_b, C)) or moves

    def _elementwise(self, node: NodeRecord) -> bool:
        value = node.first if node.kind == DIAGONAL else node.out
        inside = 0 <= value < len(self.values)
        self._expect(inside, f"a node's value in [0, {len(self.values)}), got {value}")
        rows = self.values[value]
        moves = [self._input(at, rows, "an input") for at in (node.first, node.second)]
        if node.kind != DIAGONAL:
            self._output(node.out, rows)
        for at in range(OPERANDS[node.kind]):
            self._numbers(rows, optional=node.kind == DIAGONAL or at == 1)
        return any(moves)

    def _following(self) -> Tensor:
        self._expect(self.next < len(self.operands), f"more than {self.next} operands")
        return self.operands[self.next]

    def _sizes(self) -> tuple[int, int]:
        t = self._following()
        checks.dim(self.op, "operands", t, 2)
        return t.shape[0], t.shape[1]

    def _numbers(self, numbers: int, optional: bool = False) -> None:
        """The next operand has this many numbers (or none where optional)."""
        t = self._following()
        good = t.numel() == numbers or (optional and t.numel() == 0)
        self._expect(good, f"operand {self.next} of {numbers} numbers, got {list(t.shape)}")
        self.next += 1

    def _operand(self, *shape: int) -> None:
        """The next operand has this shape."""
        t = self._following()
        self._expect(tuple(t.shape) == shape, f"operand {self.next} of shape {list(shape)}, got {list(t.shape)}")
        self.next += 1

    def _place(self, value: int, rows: int, what: str) -> None:
        good = value < 0 or (value < len(self.values) and self.values[value] == rows)
        self._expect(good, f"{what} of a node to be a value of {rows} rows, got value {value}")

    def _has(self, value: int) -> bool:
        """Whether a value has a tangent."""
        return value >= 0 and self.values[value] > 0

    def _input(self, value: int, rows: int, what: str) -> bool:
        """Whether this value, which a node reads, has a tangent."""
        self._place(value, rows, what)
        made = not self._has(value) or value in self.made
        self._expect(made, f"{what} of a node to be made by an earlier one, got value {value}")
        return self._has(value)

    def _output(self, value: int, rows: int) -> None:
        self._place(value, rows, "the output")
        self._expect(self._has(value), f"a node with an output, got value {value}")
        self._expect(value not in self.made, f"values that one node makes, got a second one for value {value}")
        self.made.add(value)

    def _check_order(self) -> None:
        written: set[int] = set()
        for n, node in reversed(list(enumerate(self.nodes))):
            reached = not self._has(node.out) or node.out in written
            self._expect(reached, f"every value to reach the loss; node {n}'s output does not")
            written |= {value for value in (node.first, node.second) if self._has(value)}

    def check_product(self) -> None:
        """The nodes' parameters make up all rows of Y."""
        self._check_count()
        rows = sum(size for _, size in self.parameters)
        self._expect(rows == self.rows, f"nodes that own all {self.rows} rows of Y, got {rows}")

    def check_update(self, slots: Sequence[SlotRecord]) -> None:
        """Every parameter has exactly one slot, of its size."""
        self._check_count()
        wanted, filled = len(self.parameters), [slot for slot in slots if slot.rows > 0]
        good = len(filled) == wanted
        self._expect(good, f"{wanted} slots, one for each parameter of the nodes, got {len(filled)}")
        for slot in filled:
            known = (slot.first, slot.rows) in self.parameters
            self._expect(known, f"slots of the nodes' parameters, got rows {slot.first} + {slot.rows}")

    def _check_count(self) -> None:
        self._expect(len(self.parameters) <= MAX_SLOTS, f"at most {MAX_SLOTS} parameters")
        self._expect(_disjoint(self.parameters), "nodes whose parameters share no row, got two that do")


def check_empty_columns(op: str, Y: Tensor) -> None:
    """A sum for each column is returned also where there is nothing to sum."""
    rows, k = Y.shape
    good = rows > 0 or k <= 2**24
    checks.expect(good, f"{op}: expected at most 2^24 columns where Y has no rows, got {k}")


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
    runs: list[Run] = []
    for slot in own:
        kinds = f"{op}: expected slot kinds in [1, {UPDATE_KINDS}), got {slot.kind}"
        checks.expect(slot.kind in BUFFERS, kinds)
        runs += _runs(op, slot, Y.shape[0])
        for _ in range(3 if slot.kind == ADAM else 0):
            checks.expect(bool(rest), f"{op}: expected three vectors for each Adam slot, got {len(vectors)} in all")
            checks.shape(op, "vectors", rest.pop(0), (slot.rows,))
    checks.expect(not rest, f"{op}: expected three vectors for each Adam slot, got {len(vectors)} in all")
    checks.expect(_disjoint(runs), f"{op}: expected slots whose rows and buffers share no row of Y, got two that do")
    return own


def _runs(op: str, slot: SlotRecord, S: int) -> list[Run]:
    """The rows that a slot writes."""
    starts = (slot.first, slot.buffer, slot.buffer2)[: 1 + BUFFERS[slot.kind]]
    for first in starts:
        inside = first >= 0 and slot.rows >= 0 and first + slot.rows <= S
        checks.expect(inside, f"{op}: expected slots within Y's {S} rows, got {first} + {slot.rows}")
    return [(first, slot.rows) for first in starts]


def _disjoint(runs: Sequence[Run]) -> bool:
    filled = sorted(run for run in runs if run[1] > 0)
    return all(a + rows <= b for (a, rows), (b, _) in pairwise(filled))


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
