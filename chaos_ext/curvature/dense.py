"""The dense Hessian [P, P], block by block into place: contracted from unit sweeps, or swept parameter by parameter.

``plan`` says which layer goes which way. Each block is written once with its transpose, so H is bit for bit symmetric.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _ops
from ..base import workspace
from ..base.parameters import ParameterSpace
from ..base.tensors import all_finite, symmetrize_
from ..errors import NonFiniteError
from ..rules.rule import Tangent
from .plan import PARAMETERS, UNITS, VECTOR, plan, sweep_columns
from .sweep import hessian_vector_products, unit_sweep
from .tape import Tape

_MOST_BYTES = 1 << 30
_SWEEP_SHARE = 0.3  # of the dense H: what its sweeps may take


def not_finite(what: str) -> str:
    """The message of a NonFiniteError."""
    return (
        f"{what}: NaN or infinity in the second derivatives (a kink such as |x|^1.5 at 0, or an overflow): the loss is "
        "not twice differentiable at these parameters, on this batch"
    )


def require_finite(*parts: Tangent) -> None:
    """Raises NonFiniteError. What a dense H is made of is small against it, and no product of finite parts is NaN."""
    if not all(t is None or all_finite(t) for t in parts):
        raise NonFiniteError(not_finite("H"))


def fill_(out: Tensor, tape: Tape, space: ParameterSpace) -> None:
    """Writes H at the tape's point into out [P, P]."""
    entries = plan(tape)
    if sum(tape.theta[s].numel() for e in entries for s in e.slots) < space.size:
        out.zero_()
    units = [e.node for e in entries if e.path == UNITS]
    for s in units:
        _fill_from_units(out, tape, space, s, [t for t in units if t >= s])
    wanted = [s for e in entries for s in e.slots]
    for e in entries:
        if e.path == PARAMETERS:
            _fill_from_parameters(out, tape, space, e.slots, wanted)
            wanted = [s for s in wanted if s not in e.slots]


def _fill_from_units(out: Tensor, tape: Tape, space: ParameterSpace, s: int, later: list[int]) -> None:
    """Blocks of layer s with itself and the given later layers, contracted into H with their transposes."""
    nodes, sweep = tape.program.nodes, unit_sweep(tape, s)
    a_s = tape.values[nodes[s].inputs[0]].contiguous()
    for t in later:
        K = sweep.ddeltas[t]
        K = _zero_block(tape, s, t) if K is None else _unit_first(K)
        a_t = a_s if t == s else tape.values[nodes[t].inputs[0]].contiguous()
        J = None if t == s else sweep.dvalues[nodes[t].inputs[0]]
        delta = None if J is None else _contiguous(tape.deltas[t])
        require_finite(K, J)
        places = (*_offsets(tape, space, s), *_offsets(tape, space, t))
        _ops.hessian_block_(out, a_s, K, a_t, delta, None if J is None else _unit_first(J), *places, t == s)


def _zero_block(tape: Tape, s: int, t: int) -> Tensor:
    """K [O_s, N, O_t] of a layer that the units of s do not reach."""
    n, units = tape.values[s + 1].shape
    return tape.values[t + 1].new_zeros(units, n, tape.values[t + 1].shape[1])


def _offsets(tape: Tape, space: ParameterSpace, t: int) -> tuple[int, int]:
    """Where weight and bias of a Linear begin in theta; -1: not differentiated."""
    w, b = tape.program.nodes[t].rule.slots
    return tuple(-1 if s is None else space.offsets[s] for s in (w, b))  # type: ignore[return-value]


def _unit_first(t: Tensor) -> Tensor:
    """[N, ..., O] as [O, N, ...]."""
    return t.movedim(-1, 0).contiguous()


def _contiguous(t: Tangent) -> Tangent:
    return None if t is None else t.contiguous()


def _fill_from_parameters(
    out: Tensor, tape: Tape, space: ParameterSpace, slots: tuple[int, ...], wanted: Sequence[int]
) -> None:
    """Rows and columns of the given slots against the wanted ones: unit tangents of each of their parameters."""
    sizes = [space.shapes[s].numel() for s in slots]
    first = min(i for s in slots for i in tape.program.uses[s])
    chunk = sweep_columns(tape, space, sum(sizes), first, min(_MOST_BYTES, int(_SWEEP_SHARE * out.nbytes)))
    for i in range(0, sum(sizes), chunk):
        pieces = list(_pieces(slots, sizes, i, i + chunk))
        dtheta = _unit_tangents(out, space, pieces)
        with workspace.sweep():
            products = hessian_vector_products(tape, dtheta, wanted)
            for t in wanted:
                _write(out, space, t, pieces, products[t], own=t in slots)
        # Whole rows by now: other columns came with the slots before.
        require_finite(*[out[p.rows(space)] for p in pieces])
    _symmetrise_slots_(out, space, slots)


@dataclass(frozen=True)
class _Piece:
    """Parameters start..start + count of a slot, as the columns column..column + count of a sweep."""

    slot: int
    start: int
    count: int
    column: int

    def rows(self, space: ParameterSpace) -> slice:
        """Where they are in theta."""
        first = space.offsets[self.slot] + self.start
        return slice(first, first + self.count)


def _pieces(slots: Sequence[int], sizes: Sequence[int], first: int, last: int) -> Iterator[_Piece]:
    """The parameters first..last of several slots in a row."""
    begin = 0
    for slot, size in zip(slots, sizes, strict=True):
        lo, hi = max(first, begin), min(last, begin + size)
        if lo < hi:
            yield _Piece(slot, lo - begin, hi - lo, lo - first)
        begin += size


def _unit_tangents(out: Tensor, space: ParameterSpace, pieces: list[_Piece]) -> dict[int, Tensor]:
    """One column for each parameter of the pieces: whole vectors of columns, the surplus ones zero."""
    k = -(-sum(p.count for p in pieces) // VECTOR) * VECTOR
    dtheta = {}
    for p in pieces:
        shape = space.shapes[p.slot]
        tangent = torch.zeros(shape.numel(), k, dtype=out.dtype, device=out.device)
        tangent[p.start : p.start + p.count, p.column : p.column + p.count].fill_diagonal_(1)
        dtheta[p.slot] = tangent.view(*shape, k)
    return dtheta


def _write(out: Tensor, space: ParameterSpace, t: int, pieces: list[_Piece], product: Tangent, own: bool) -> None:
    """The product's columns into H, with their transposes unless the rows are swept themselves (``own``)."""
    rows = space.slice(t)
    flat = None if product is None else product.reshape(rows.stop - rows.start, -1)
    for p in pieces:
        columns = p.rows(space)
        part = None if flat is None else flat[:, p.column : p.column + p.count]
        out[columns, rows] = 0.0 if part is None else part.T
        if not own:
            out[rows, columns] = 0.0 if part is None else part


def _symmetrise_slots_(out: Tensor, space: ParameterSpace, slots: tuple[int, ...]) -> None:
    """Both triangles of the block of these slots, which was swept row by row, made one."""
    for a in slots:
        symmetrize_(out[space.slice(a), space.slice(a)])
        for b in slots:
            if b > a:
                out[space.slice(b), space.slice(a)] = out[space.slice(a), space.slice(b)].T
