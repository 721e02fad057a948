"""Numbers and records that Python and the compiled code must agree on: csrc/layout.h has the same names.

``library`` compares the two when it loads the compiled code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

# Values of ``kind`` of an activation; the parameters that a kind does not name are ignored.
RELU, LEAKY_RELU, ELU, SELU, CELU, SIGMOID, TANH, SOFTPLUS, SILU, GELU_ERF, GELU_TANH, HARDTANH = range(12)
ACTIVATIONS = 12
PIECEWISE_LINEAR = frozenset((RELU, LEAKY_RELU, HARDTANH))

# Rows and columns of the reflectors of ``tridiagonalise`` are padded to whole blocks.
REFLECTOR_BLOCK = 16

# Node kinds of a tangent sweep, and how many operands each has: csrc/dynamics/tangent_program.h.
LINEAR, SCALE, SUM, NORM, SOFTMAX, DIAGONAL = range(6)
NODE_KINDS = 6
OPERANDS = {LINEAR: 3, SCALE: 2, SUM: 0, NORM: 4, SOFTMAX: 2, DIAGONAL: 1}

# What becomes of H y in an update (0, to store it, is not for Python), and how many buffers each has.
PLAIN, MOMENTUM, ADAM = 1, 2, 3
UPDATE_KINDS = 4
BUFFERS = {PLAIN: 0, MOMENTUM: 1, ADAM: 2}

MAX_NODES = MAX_SLOTS = 64
# Partial sums of squares on the GPU, of every MAX_SLOTS slots, where H y is given.
UPDATE_CHUNKS = 32


class NodeRecord(NamedTuple):
    """One node of a tangent sweep; -1: constant, or none.

    Attributes:
        kind: LINEAR, SCALE, SUM, NORM, SOFTMAX or DIAGONAL.
        first, second: the values that it reads.
        out: the value that it makes.
        row_w, row_b: first rows of the weight and of the bias in theta.
    """

    kind: int
    first: int
    second: int = -1
    out: int = -1
    row_w: int = -1
    row_b: int = -1


class FactorRecord(NamedTuple):
    """alpha and beta of a node.

    SUM is alpha first + beta second, DIAGONAL without an operand is alpha. NORM: alpha is 1, or 0 where mean and
    variance are constants; beta numbers in a row share an entry of gamma.
    """

    alpha: float = 1.0
    beta: float = 1.0


class SlotRecord(NamedTuple):
    """The rows of one parameter in Y, and the first rows of those buffers that its kind has."""

    kind: int
    first: int
    rows: int
    buffer: int = 0
    buffer2: int = 0


class CoefficientRecord(NamedTuple):
    """The numbers of one slot's update; see ``tangent_update_``."""

    decay: float = 0.0
    mu: float = 0.0
    c1: float = 0.0
    e1: float = 0.0
    e2: float = 0.0
    b2: float = 0.0
    keep: float = 1.0


Record = TypeVar("Record", NodeRecord, FactorRecord, SlotRecord, CoefficientRecord)
RECORDS: tuple[Any, ...] = (NodeRecord, FactorRecord, SlotRecord, CoefficientRecord)


def records(kind: type[Record], numbers: Sequence[Any]) -> list[Record]:
    """A flat list as the records that it is made of."""
    size = len(kind._fields)
    return [kind(*numbers[i : i + size]) for i in range(0, len(numbers), size)]


def described() -> dict[str, int]:
    """All of it under the names of csrc/layout.h."""
    own = {name: value for name, value in globals().items() if name.isupper() and isinstance(value, int)}
    own |= {f"BUFFERS.{name}": BUFFERS[own[name]] for name in ("PLAIN", "MOMENTUM", "ADAM")}
    for kind in RECORDS:
        own |= {f"{kind.__name__}.{field}": at for at, field in enumerate(kind._fields)}
        own[kind.__name__] = len(kind._fields)
    return own
