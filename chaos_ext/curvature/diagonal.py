"""The exact diagonal of H, layer by layer, without P x P numbers.

A layer whose parameters are used once, and which is linear in them, has the block A^T M A of H, with M the curvature of
the loss at its output. Three ways to its diagonal:

    squared gradients   where all from the layer to the output is piecewise linear, M is the Gauss-Newton matrix's: one
                        way back for each output of a sample serves all samples and all such layers (``squares``)
    at the units        a Linear on rows, samples apart: the diagonal of M from its O unit tangents (``quadratic``)
    at the parameters   any other: one tangent a parameter, forward only (``quadratic``)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import workspace
from ..base.parameters import ParameterSpace
from ..errors import NonFiniteError
from ..rules.linear import Linear
from ..rules.rule import Tangent
from .dense import not_finite
from .plan import sweep_columns
from .quadratic import is_linear_in_inputs, is_linear_in_parameters, second_derivatives
from .roots import Root, root_of
from .squares import squares
from .sweep import cotangents_at, keeps_samples_apart
from .tape import Tape

SQUARES, UNITS, PARAMETERS = "squared gradients", "enter at units", "enter at parameters"
_BYTES = 1 << 28  # of the cotangents of one way back


@dataclass(frozen=True)
class Part:
    """How the diagonal of one layer is computed: its node, the slots, and one of the three paths."""

    node: int
    slots: tuple[int, ...]
    path: str


def plan_diagonal(tape: Tape) -> list[Part]:
    """One part a layer; slots that the loss does not depend on are left out."""
    program, seen, parts = tape.program, set[int](), list[Part]()
    for t in program.parametrised:
        slots = tuple(s for s in program.nodes[t].rule.slots if s is not None and s not in seen)
        seen.update(slots)
        if slots and any(tape.deltas[i] is not None for s in slots for i in program.uses[s]):
            parts.append(Part(t, slots, _path(tape, t, slots)))
    return parts


def columns_of(tape: Tape) -> int:
    """How many columns ``diagonal`` pushes through the model or pulls back through it."""
    parts, z = plan_diagonal(tape), tape.output
    squared = z[0].numel() if any(p.path == SQUARES for p in parts) else 0
    units = sum(tape.values[p.node + 1].shape[1] for p in parts if p.path == UNITS)
    return squared + units + sum(tape.theta[s].numel() for p in parts if p.path == PARAMETERS for s in p.slots)


def used_once(tape: Tape, t: int) -> bool:
    """Whether the parameters of node t are read by nothing else, and once by it, linearly."""
    slots = [s for s in tape.program.nodes[t].rule.slots if s is not None]
    once = len(set(slots)) == len(slots) and all(len(tape.program.uses[s]) == 1 for s in slots)
    return once and is_linear_in_parameters(tape.program.nodes[t].rule)


def _path(tape: Tape, t: int, slots: tuple[int, ...]) -> str:
    if not used_once(tape, t) or not tape.program.nodes[t].rule.rowwise or not _apart(tape, t):
        return PARAMETERS
    if _is_linear_from(tape, t) and root_of(tape.loss, tape.output) is not None:
        return SQUARES
    rows = isinstance(tape.program.nodes[t].rule, Linear) and tape.values[t + 1].dim() == 2
    return UNITS if rows else PARAMETERS


def _apart(tape: Tape, t: int) -> bool:
    inputs = [tape.values[j] for j in tape.program.nodes[t].inputs]
    n = len(tape.output) if tape.output.dim() else 0
    same = all(a.dim() > 0 and len(a) == n for a in (*inputs, tape.values[t + 1]))
    return same and keeps_samples_apart(tape, t)


def has_samples(tape: Tape) -> bool:
    """Whether the samples of the batch do not interact, from any parameter on."""
    return all(tape.program.nodes[t].rule.rowwise and _apart(tape, t) for t in tape.program.parametrised)


def has_sample_gradients(tape: Tape) -> bool:
    """Whether every layer's gradient is a sum over samples that do not interact from there on."""
    return has_samples(tape) and all(used_once(tape, t) for t in tape.program.parametrised)


def _is_linear_from(tape: Tape, t: int) -> bool:
    """Whether all that a change of node t's output reaches is linear in it."""
    program, reached = tape.program, {t + 1}
    for i in range(t + 1, len(program.nodes)):
        if not reached.isdisjoint(program.nodes[i].inputs):
            if not is_linear_in_inputs(program.nodes[i].rule, tape.saved[i]):
                return False
            reached.add(i + 1)
    return True


def diagonal(tape: Tape, space: ParameterSpace) -> Tensor:
    """The diagonal of H [P].

    Raises:
        NonFiniteError: NaN or infinity in a second derivative.
    """
    out, parts = torch.zeros_like(space.flatten(list(tape.theta))), plan_diagonal(tape)
    squared = {p.node for p in parts if p.path == SQUARES}
    if squared:
        add_squares(out, tape, space, squared)
    for part in parts:
        if part.path == UNITS:
            _at_units(out, tape, space, part.node)
        elif part.path == PARAMETERS:
            for s in part.slots:
                out[space.slice(s)] = torch.cat(list(_at_parameters(tape, space, s)))
    if not bool(torch.isfinite(out).all()):
        raise NonFiniteError(not_finite("the diagonal of H"))
    return out


def add_squares(out: Tensor, tape: Tape, space: ParameterSpace, nodes: set[int]) -> None:
    """Adds the diagonal of the Gauss-Newton blocks of these nodes to out [P]; samples do not interact from there on."""
    root = root_of(tape.loss, tape.output)
    assert root is not None
    for cotangents, signs in _columns(tape, root):
        for pull in cotangents_at(tape, cotangents):
            if pull.node in nodes:
                for s, part in zip(pull.rule.slots, squares(pull, signs), strict=True):
                    if s is not None and part is not None:
                        out[space.slice(s)] += part.reshape(-1)


def _columns(tape: Tape, root: Root) -> Iterator[tuple[Tensor, Tensor]]:
    """Column c of L in all samples at once, a few c at a time: cotangents [*z, k] with signs [N, k]."""
    z = tape.output
    n, own = len(z), z[0].numel()
    signs = root.signs.view(n, own)
    per_column = max(v.numel() for v in tape.values) * z.element_size()
    chunk = max(1, min(own, _BYTES // (4 * per_column)))
    for i in range(0, own, chunk):
        k = min(chunk, own - i)
        unit = z.new_zeros(own, k)
        unit[i : i + k].fill_diagonal_(1)
        yield root.apply(unit.repeat(n, 1)).view(*z.shape, k), signs[:, i : i + k]


def _at_units(out: Tensor, tape: Tape, space: ParameterSpace, t: int) -> None:
    """sum_n M_n[o, o] a_ni^2 of a Linear on rows."""
    z, a = tape.values[t + 1], tape.values[tape.program.nodes[t].inputs[0]]
    units = z.shape[1]
    chunk = sweep_columns(tape, space, 0, t)
    blocks = []
    for i in range(0, units, chunk):
        k = min(chunk, units - i)
        eye = z.new_zeros(units, k)
        eye[i : i + k].fill_diagonal_(1)
        dvalues: list[Tangent] = [None] * len(tape.values)
        dvalues[t + 1] = eye.expand(len(z), units, k)
        blocks.append(second_derivatives(tape, dvalues, {}, t + 1, by_sample=True))
    M = torch.cat(blocks, 1)
    w, b = tape.program.nodes[t].rule.slots
    if w is not None:
        out[space.slice(w)] = (M.T @ a.square()).reshape(-1)
    if b is not None:
        out[space.slice(b)] = M.sum(0)


def _at_parameters(tape: Tape, space: ParameterSpace, s: int) -> Iterator[Tensor]:
    """e^T H e for the unit vectors of one slot, in blocks of columns."""
    shape, size, first = space.shapes[s], space.sizes[s], min(tape.program.uses[s])
    chunk = sweep_columns(tape, space, size, first)
    for i in range(0, size, chunk):
        k = min(chunk, size - i)
        unit = tape.theta[s].new_zeros(size, k)
        unit[i : i + k].fill_diagonal_(1)
        with workspace.sweep():
            nothing: list[Tangent] = [None] * len(tape.values)
            yield second_derivatives(tape, nothing, {s: unit.view(*shape, k)}, first).clone()
