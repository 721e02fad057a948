"""The exact diagonal of H, layer by layer, without P x P numbers.

A layer whose parameters are used once, and which is linear in them, has the block A^T M A of H, with M the curvature of
the loss at its output. Three ways to its diagonal:

    squared gradients   where all from the layer to the output is piecewise linear, M is the Gauss-Newton matrix's: one
                        way back for each output of a sample serves all samples and all such layers (``squares``)
    at the units        a Linear or a convolution, samples apart: M itself from its O unit tangents (``quadratic``), at
                        several positions from O p of them, forward and back
    at the parameters   any other, and layers of few parameters: one tangent a parameter, forward only (``quadratic``)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import workspace
from ..base.parameters import ParameterSpace
from ..errors import NonFiniteError
from ..rules.conv import Convolution
from ..rules.linear import Linear
from ..rules.rule import Rule, Tangent
from .dense import not_finite
from .plan import sweep_columns
from .quadratic import is_linear_in_inputs, is_linear_in_parameters, second_derivatives
from .roots import Root, root_of
from .squares import by_curvature, inputs_at_positions, squares, units_at_positions
from .sweep import cotangents_at, keeps_samples_apart, unit_curvature
from .tape import Tape

SQUARES, UNITS, PARAMETERS = "squared gradients", "enter at units", "enter at parameters"
_BYTES = 1 << 28  # of the cotangents of one way back
_CURVATURE_BYTES = 1 << 29  # of M, unit by unit
_THERE_AND_BACK = 3  # times the work of the way there


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
    units = sum(tape.values[p.node + 1][0].numel() for p in parts if p.path == UNITS)
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
    return UNITS if _units_pay(tape, t, slots) else PARAMETERS


def _units_pay(tape: Tape, t: int, slots: tuple[int, ...]) -> bool:
    """Whether unit tangents, which have to come back where there are positions, are fewer than parameters."""
    rule, z = tape.program.nodes[t].rule, tape.values[t + 1]
    if not (type(rule) is Linear or (type(rule) is Convolution and rule.source == "X")):
        return False
    units = z[0].numel()
    if _on_rows(rule, z):
        return True
    positions = units // (z.shape[-1] if type(rule) is Linear else z.shape[1])
    fits = z.numel() * positions * z.element_size() <= _CURVATURE_BYTES
    return fits and _THERE_AND_BACK * units < sum(tape.theta[s].numel() for s in slots)


def _on_rows(rule: Rule, z: Tensor) -> bool:
    return type(rule) is Linear and z.dim() == 2


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
            on_rows = _on_rows(tape.program.nodes[part.node].rule, tape.values[part.node + 1])
            (_at_units if on_rows else _at_positions)(out, tape, space, part.node)
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


def _at_positions(out: Tensor, tape: Tape, space: ParameterSpace, t: int) -> None:
    """sum_n sum_pp' M_n[op, op'] a_njp a_njp' of a Linear or a convolution at several positions."""
    node, z = tape.program.nodes[t], tape.values[t + 1]
    A = inputs_at_positions(node.rule, tape.saved[t], len(z))
    assert A is not None
    # In which order the outputs of a sample are [G, O, p].
    order = units_at_positions(
        node.rule, torch.arange(z[0].numel(), device=z.device).view(1, *z.shape[1:], 1), A.shape[1]
    )
    groups, units, positions = order.shape[1:4]
    E = z.new_zeros(len(z), groups * units, positions, positions)
    chunk = sweep_columns(tape, space, 0, t)
    for i in range(0, E.shape[1] * positions, chunk):
        chosen = order.reshape(-1)[i : i + chunk]
        unit = z.new_zeros(z[0].numel(), len(chosen))
        unit[chosen, torch.arange(len(chosen), device=z.device)] = 1
        M = units_at_positions(node.rule, unit_curvature(tape, t, unit.view(*z.shape[1:], -1)), groups).flatten(1, 2)
        places = torch.arange(i, i + len(chosen), device=z.device)
        own, at = places // positions, places % positions
        E[:, own, :, at] = M[:, own, :, places - i]
    weight, bias = by_curvature(A, E.unflatten(1, (groups, units)))
    for s, part in zip(node.rule.slots, (weight, bias), strict=True):
        if s is not None:
            out[space.slice(s)] = part.reshape(-1)


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
