"""How each layer's rows of H are computed: entering at its units or at its parameters, by counting operations.

At the units (Linear on rows, samples kept apart): O tangents serve every sample at once, then one contraction with the
inputs of layer s gives the rows, 2 N p_s sum_t p_t operations. At the parameters: p_s tangents, each swept forward
through the layers downstream and back through them, about four products of the size of the layer a tangent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..base.blocks import listed
from ..base.html import table
from ..base.parameters import ParameterSpace
from ..graph.program import Program
from ..rules.automatic import AutoRule
from ..rules.linear import Linear
from .sweep import keeps_samples_apart
from .tape import Tape, by_form

_SWEEP_COST = 4  # weight of an operation in a sweep, which goes through memory, against one of a contraction
UNITS, PARAMETERS = "enter at units", "enter at parameters"

VECTOR = 16  # columns: a vector register of float32
_SWEEP_BYTES = 1 << 25  # tangents of a sweep that stay near the cache,
_FEW_COLUMNS = 64  # unless that is fewer columns than keep the products efficient
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Entry:
    """The rows of one layer.

    Attributes:
        node: the first node that reads the slots.
        slots: of theta.
        path: UNITS or PARAMETERS.
        flops: estimate for its rows and their transposes.
        why: the reason for the path.
    """

    node: int
    slots: tuple[int, ...]
    path: str
    flops: int
    why: str


@by_form
def plan(tape: Tape) -> tuple[Entry, ...]:
    """One entry a layer, in topological order; layers that the loss does not depend on are left out."""
    program = tape.program
    entries: list[Entry] = []
    seen: set[int] = set()
    for t in program.parametrised:
        slots = tuple(s for s in program.nodes[t].rule.slots if s is not None and s not in seen)
        seen.update(slots)
        if slots and any(tape.deltas[i] is not None for s in slots for i in program.uses[s]):
            entries.append(_entry(tape, t, slots))
    return tuple(entries)


def _entry(tape: Tape, t: int, slots: tuple[int, ...]) -> Entry:
    parameters = _parameter_flops(tape, t, slots)
    obstacle = _obstacle(tape, t, slots)
    if obstacle is not None:
        return Entry(t, slots, PARAMETERS, parameters, obstacle)
    units = _unit_flops(tape, t)
    if units > _SWEEP_COST * parameters:
        return Entry(t, slots, PARAMETERS, parameters, f"cheaper than at the units ({units:.1e} operations)")
    return Entry(t, slots, UNITS, units, "samples do not interact")


def _obstacle(tape: Tape, t: int, slots: tuple[int, ...]) -> str | None:
    program = tape.program
    node = program.nodes[t]
    if any(len(program.uses[s]) > 1 for s in slots) or len(slots) < sum(s is not None for s in node.rule.slots):
        return "a parameter is used by more than one layer"
    if not isinstance(node.rule, Linear):
        return f"{node.rule.path}, few parameters act on many positions"
    if tape.values[t + 1].dim() != 2:
        return "its rows are positions within samples"
    if not keeps_samples_apart(tape, t):
        return "samples interact downstream"
    return None


def _work(program: Program, tape: Tape, i: int) -> int:
    """Operations of one forward of node i."""
    rule, out = program.nodes[i].rule, tape.values[i + 1].numel()
    if isinstance(rule, AutoRule):
        # As if each of its parameters met each row of its output once, as in recurrences and attention.
        parameters = sum(tape.theta[s].numel() for s in rule.slots if s is not None)
        return (
            4 * out + 2 * (out // max(1, tape.values[i + 1].shape[-1] if tape.values[i + 1].dim() else 1)) * parameters
        )
    weight = getattr(rule, "weight", None)
    W = None if weight is None else weight(tape.theta)
    if W is None or W.dim() < 2:
        return 4 * out
    source = tape.values[program.nodes[i].inputs[0]].numel() if getattr(rule, "source", "X") == "Z" else out
    return 2 * source * (W.numel() // len(W))


def _passing_flops(tape: Tape, t: int, entries: tuple[Entry, ...]) -> int:
    """Operations that the tangents of these entries cost in node t, forward and back."""
    columns = sum(
        tape.values[e.node + 1].shape[-1] if e.path == UNITS else sum(tape.theta[s].numel() for s in e.slots)
        for e in entries
        if e.node in tape.program.depends[t + 1]
    )
    return 4 * columns * _work(tape.program, tape, t)


def _downstream(tape: Tape, t: int) -> int:
    """Operations of one tangent from node t to the loss and back."""
    program = tape.program
    return sum(_work(program, tape, i) for i in range(t + 1, len(program.nodes)))


def _parameter_flops(tape: Tape, t: int, slots: tuple[int, ...]) -> int:
    columns = sum(tape.theta[s].numel() for s in slots)
    return columns * (4 * _downstream(tape, t) + 2 * _work(tape.program, tape, t))


def _unit_flops(tape: Tape, t: int) -> int:
    program, n = tape.program, len(tape.values[t + 1])
    sizes = {
        i: sum(tape.theta[s].numel() for s in program.nodes[i].rule.slots if s is not None) for i in _after(tape, t)
    }
    own = sum(tape.theta[s].numel() for s in program.nodes[t].rule.slots if s is not None)
    units = tape.values[t + 1].shape[-1]
    return 2 * n * own * (2 * sum(sizes.values()) + own) + 3 * units * _downstream(tape, t)


def _after(tape: Tape, t: int) -> list[int]:
    return [i for i in tape.program.parametrised if i > t]


@dataclass(frozen=True)
class LayerReport:
    """One row of ``HessianOperator.explain``.

    Attributes:
        name: qualified name of the layer ("(model)" for the functional engine, "(block)" for the choice ``params=``).
        path: how its rows of H are computed.
        flops: floating point operations of its blocks of the dense H, or of all tangents in a layer left to torch.
        bytes: bytes that these blocks take.
        why: the reason for the path.
    """

    name: str
    path: str
    flops: int
    bytes: int
    why: str


class Explained(list[LayerReport]):
    """What ``explain()`` returns: a list, which notebooks show as a table."""

    def _repr_html_(self) -> str:
        rows = [(r.name, r.path, f"{r.flops:.3g}", f"{r.bytes:.3g}", r.why) for r in self]
        return table("How H is computed", rows, ("layer", "path", "operations", "bytes", "why"))


def whole_report(space: ParameterSpace, path: str, why: str) -> LayerReport:
    """Of a model that torch differentiates as a whole."""
    return LayerReport("(model)", path, 0, space.size**2 * space.dtype.itemsize, why)


def block_reports(space: ParameterSpace) -> Iterator[LayerReport]:
    """Says that H is a block, if it is one."""
    if space.block is not None:
        names = listed(space.block)
        yield LayerReport("(block)", "params", 0, 0, f"the diagonal block of {names}; everything else is constant")


def reports(tape: Tape, space: ParameterSpace) -> Iterator[LayerReport]:
    """The plan for users, and what layers without a rule cost the sweeps that pass through them."""
    entries, nodes = plan(tape), tape.program.nodes
    sizes = [sum(space.sizes[s] for s in e.slots) for e in entries]
    for i, e in enumerate(entries):
        block = sizes[i] * (2 * sum(sizes[i + 1 :]) + sizes[i])
        yield LayerReport(nodes[e.node].name, e.path, e.flops, block * space.dtype.itemsize, e.why)
    for i, node in enumerate(nodes):
        if isinstance(node.rule, AutoRule):
            why = f"no layer rule: {node.rule.why}"
            yield LayerReport(node.name, node.rule.path, _passing_flops(tape, i, entries), 0, why)


# Work of a column up to which the fused sweep is faster than layers, for any number of columns: measured on 256-20-10
# to 784-512-512-10, 8 to 512 samples, both dtypes, one thread of a CPU.
_FUSED_WORK = 150_000_000
_LINEAR_BYTES = 1 << 23  # of the columns of v and H v that layers are swept with, one after the other
_LINEAR_COLUMNS = 8


@by_form
def linear_work(tape: Tape) -> int:
    """Multiplications of one product of every weight matrix with all rows of its layer."""
    work = 0
    for i, node in enumerate(tape.program.nodes):
        slot = node.rule.slots[0] if isinstance(node.rule, Linear) else None
        if slot is not None:
            z = tape.values[i + 1]
            work += z.numel() // z.shape[-1] * tape.theta[slot].numel()
    return work


def fuses(work: int) -> bool:
    """Whether the native sweep, which does all on a few columns at a time, is faster than layer by layer."""
    return work <= _FUSED_WORK


def product_columns(tape: Tape, space: ParameterSpace) -> int:
    """Columns of a product that are swept at a time: of nets of Linear layers as few as stay in the cache."""
    columns = sweep_columns(tape, space, space.size, 0)
    in_linear = {s for node in tape.program.nodes if isinstance(node.rule, Linear) for s in node.rule.slots}
    if 2 * sum(space.sizes[s] for s in in_linear if s is not None) < space.size:
        return columns
    return min(columns, max(_LINEAR_COLUMNS, _LINEAR_BYTES // (space.size * tape.theta[0].element_size())))


def sweep_columns(tape: Tape, space: ParameterSpace, entered: int, first: int, most_bytes: int = _MOST_BYTES) -> int:
    """Columns of one sweep from node ``first`` on whose tangents fit, a multiple of VECTOR.

    The tangents are those of what enters (``entered`` numbers a column) and leaves, of all values, which are kept for
    the way back, and two of a cotangent.
    """
    sizes = [t.numel() for t in tape.values[first + 1 :]]
    per_column = (entered + space.size + sum(sizes) + 2 * max(sizes)) * tape.theta[0].element_size()
    few, many = min(_FEW_COLUMNS, most_bytes // per_column), min(_SWEEP_BYTES, most_bytes) // per_column
    return max(VECTOR, few // VECTOR * VECTOR, many // VECTOR * VECTOR)
