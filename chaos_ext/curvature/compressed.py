"""The compressed Hessian H = Q S Q^T: a basis for each layer (``basis``), then S in its coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ..base import memory
from ..base.parameters import ParameterSpace
from ..base.tensors import symmetrize_
from ..rules.linear import Linear
from . import narrowing
from .basis import Basis, LayerBasis
from .dense import require_finite
from .plan import UNITS, plan
from .sweep import hessian_vector_products, unit_sweep
from .tape import Tape, by_form


class _Copied:
    """A field that is read as a copy: edits of what is handed out do not reach what it came from."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, obj: object | None, owner: type) -> Any:
        if obj is None:
            raise AttributeError(self._name)  # dataclass asks for a default
        return _copy(vars(obj)[self._name])

    def __set__(self, obj: object, value: Any) -> None:
        vars(obj)[self._name] = value


def _copied() -> Any:
    return _Copied()


def _copy(value: Tensor | Basis) -> Tensor | Basis:
    if isinstance(value, Tensor):
        return value.clone()
    return Basis(tuple(LayerBasis(*map(_copied_part, vars(b).values())) for b in value.layers), value.rows)


def _copied_part(part: Any) -> Any:
    return part.clone() if isinstance(part, Tensor) else part


@dataclass(frozen=True)
class CompressedHessian:
    """H = Q S Q^T.

    Attributes:
        basis: Q [P, n]; like S a copy, free to be edited.
        S: [n, n], exactly symmetric.
    """

    basis: Basis = _copied()  # noqa: RUF009
    S: Tensor = _copied()  # noqa: RUF009

    def parts(self) -> tuple[Basis, Tensor]:
        """The basis and S themselves, for reading only."""
        own = vars(self)
        return own["basis"], own["S"]

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        return self.parts()[0].rows, self.parts()[0].rows

    @property
    def dtype(self) -> torch.dtype:
        """Of S."""
        return self.parts()[1].dtype

    @property
    def device(self) -> torch.device:
        """Of S."""
        return self.parts()[1].device

    def to_dense(self) -> Tensor:
        """Q S Q^T as a [P, P] matrix.

        Raises:
            MemoryBudgetError: P * P numbers do not fit.
        """
        basis, S = self.parts()
        need = 3 * basis.rows**2 * S.dtype.itemsize
        memory.require(need, S.device, "to_dense", "use the compressed Hessian as an operator")
        half = basis.lift(S)
        H = basis.lift(half.T.contiguous())
        return (H + H.T) / 2

    def __matmul__(self, v: Tensor) -> Tensor:
        """H v for v [P] or [P, k] in the dtype of S, of the same shape."""
        basis, S = self.parts()
        if not isinstance(v, Tensor) or v.dtype != S.dtype or v.device != S.device:
            raise TypeError(f"v: expected a {S.dtype} tensor on {S.device}, got {getattr(v, 'dtype', type(v))}")
        if v.dim() not in (1, 2) or len(v) != basis.rows:
            raise ValueError(f"v: expected shape [{basis.rows}] or [{basis.rows}, k], got {tuple(v.shape)}")
        columns = v.unsqueeze(1) if v.dim() == 1 else v
        return basis.lift(S @ basis.coordinates(columns)).view_as(v)


@by_form
def bound(tape: Tape) -> int:
    """An upper bound of n from shapes alone."""
    total = 0
    for slots, uses in _parts(tape):
        if not uses:
            total += tape.theta[slots[0]].numel()
            continue
        units, inputs = _sizes(tape, slots)
        rows = sum(tape.values[t + 1].numel() // units for t in uses)
        r = min(rows, inputs)
        total += units * r + (0 if _is_first(tape, uses) else min(rows, units) * (inputs - r))
    return total


@by_form
def _parts(tape: Tape) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Slots that share a basis, with the Linear nodes through which alone they enter (none: no structure is known).

    A weight goes with its bias where both belong to one layer; a tied weight stacks the rows of all its uses.
    """
    program = tape.program
    seen: set[int] = set()
    parts: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for t in program.parametrised:
        for s in program.nodes[t].rule.slots:
            if s is None or s in seen:
                continue
            uses = tuple(i for i in program.uses[s] if tape.deltas[i] is not None)
            structured = bool(uses) and all(_is_weight(tape, i, s) for i in uses)
            slots: tuple[int, ...] = (s,)
            if structured and len(program.uses[s]) == 1:
                bias = program.nodes[t].rule.slots[1]
                slots = (s, bias) if bias is not None and len(program.uses[bias]) == 1 else (s,)
            seen.update(slots)
            if uses:
                parts.append((slots, uses if structured else ()))
    return parts


def _is_weight(tape: Tape, i: int, s: int) -> bool:
    """Whether node i is a Linear that has slot s as its weight, and only there."""
    rule = tape.program.nodes[i].rule
    return isinstance(rule, Linear) and rule.slots[0] == s and rule.slots[1] != s


def _sizes(tape: Tape, slots: tuple[int, ...]) -> tuple[int, int]:
    """Units, and inputs including the constant one of the bias."""
    units, inputs = tape.theta[slots[0]].shape
    return units, inputs + len(slots) - 1


def _is_first(tape: Tape, uses: tuple[int, ...]) -> bool:
    """Whether the inputs depend on no differentiated parameter in any use."""
    return not any(tape.program.depends[tape.program.nodes[t].inputs[0]] for t in uses)


def _orthonormal(A: Tensor, full: bool) -> tuple[Tensor, Tensor]:
    """Bases of the row space of A [N, I] and, if asked for, of its complement.

    Singular values below eps * min(N, I) * s_1 count as zero: dropping them changes H by rounding only, and a column
    too many is exact anyway.
    """
    n, i = A.shape
    U, s, _ = torch.linalg.svd(A.T, full_matrices=full and n < i)
    tol = torch.finfo(A.dtype).eps * min(n, i) * s.max() if s.numel() else 0.0
    r = int((s > tol).sum())
    return U[:, :r], U[:, r:]


def _rows(tape: Tape, slots: tuple[int, ...], uses: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Inputs A [R, I (+ 1)] and cotangents D [R, O] of all uses."""
    units, inputs = tape.theta[slots[0]].shape
    A = torch.cat([tape.values[tape.program.nodes[t].inputs[0]].reshape(-1, inputs) for t in uses])
    D = torch.cat([tape.deltas[t].reshape(-1, units) for t in uses])  # type: ignore[union-attr]
    return (A if len(slots) == 1 else torch.cat([A, A.new_ones(len(A), 1)], 1)), D


def _layer_basis(
    tape: Tape, slots: tuple[int, ...], uses: tuple[int, ...], offsets: tuple[int, ...], start: int
) -> LayerBasis:
    units, inputs = tape.theta[slots[0]].shape
    A, D = _rows(tape, slots, uses)
    first = _is_first(tape, uses)
    span, perp = _orthonormal(A, full=not first)
    if first or not perp.shape[1]:
        perp, seen = A.new_zeros(A.shape[1], 0), A.new_zeros(units, 0)
    else:
        seen = _orthonormal(D, full=False)[0]
    bias = offsets[slots[1]] if len(slots) == 2 else -1
    return LayerBasis(offsets[slots[0]], bias, units, inputs, span, perp, seen, start)


def _whole(tape: Tape, slot: int, offset: int, start: int) -> LayerBasis:
    """Every direction of a parameter."""
    size, one = tape.theta[slot].numel(), torch.ones_like(tape.theta[slot].reshape(-1)[:1]).view(1, 1)
    return LayerBasis(offset, -1, size, 1, one, one.new_zeros(1, 0), one.new_zeros(size, 0), start)


def compress(tape: Tape, space: ParameterSpace) -> CompressedHessian:
    """The basis of every layer, and S: contracted from unit sweeps where every layer allows it, else swept."""
    layers: list[LayerBasis] = []
    nodes: dict[int, LayerBasis] = {}
    start = 0
    for slots, uses in _parts(tape):
        if uses:
            layer = _layer_basis(tape, slots, uses, space.offsets, start)
            nodes[uses[0]] = layer
        else:
            layer = _whole(tape, slots[0], space.offsets[slots[0]], start)
        layers.append(layer)
        start += layer.size
    basis = Basis(tuple(layers), space.size)
    S = tape.theta[0].new_zeros(start, start)
    if len(nodes) == len(layers) and all(e.path == UNITS for e in plan(tape)):
        _contract(tape, nodes, S)
    else:
        _sweep(tape, space, basis, S)
    require_finite(S)
    return CompressedHessian(basis, S)


def narrowed(tape: Tape, compressed: CompressedHessian) -> tuple[Basis, Tensor]:
    """Basis and S, smaller where units of a first layer are off for some samples (see ``narrowing``)."""
    basis, S = compressed.parts()
    if not S.is_cpu:  # sizes that depend on numbers make the host wait
        return basis, S
    first = {
        uses[0]: layer
        for (_, uses), layer in zip(_parts(tape), basis.layers, strict=True)
        if len(uses) == 1 and _is_first(tape, uses)
    }
    return narrowing.narrowed(tape, first, basis, S)


def _sweep(tape: Tape, space: ParameterSpace, basis: Basis, S: Tensor, chunk: int = 256) -> None:
    """S = Q^T H Q, column block by column block."""
    for i in range(0, len(S), chunk):
        k = min(chunk, len(S) - i)
        unit = S.new_zeros(len(S), k)
        unit[i : i + k].fill_diagonal_(1)
        V = basis.lift(unit)
        products = hessian_vector_products(tape, dict(enumerate(space.split(V))))
        for j, part in enumerate(products):
            V[space.slice(j)] = 0.0 if part is None else part.reshape(-1, k)
        S[:, i : i + k] = basis.coordinates(V)
    symmetrize_(S)


def _contract(tape: Tape, bases: dict[int, LayerBasis], S: Tensor) -> None:
    """The dense contraction, in coordinates."""
    inputs = {t: b.input_coordinates(tape.values[tape.program.nodes[t].inputs[0]]) for t, b in bases.items()}
    for s in bases:
        sweep = unit_sweep(tape, s)
        for t, basis in bases.items():
            K = sweep.ddeltas[t]
            if t >= s and K is not None:
                J = None if t == s else sweep.dvalues[tape.program.nodes[t].inputs[0]]
                _contract_block(tape, bases[s], basis, inputs[s], inputs[t], K, J, tape.deltas[t], S, t == s)


def _contract_block(
    tape: Tape,
    row: LayerBasis,
    column: LayerBasis,
    a_s: Tensor,
    a_t: Tensor,
    K: Tensor,
    J: Tensor | None,
    delta: Tensor | None,
    S: Tensor,
    same: bool,
) -> None:
    K = K.movedim(-1, 0).contiguous()
    J = None if J is None else J.movedim(-1, 0)
    J_span = None if J is None else _project(J, column, column.span)
    _ops.hessian_block_(S, a_s, K, a_t, None if J is None else delta, J_span, row.start, -1, column.start, -1, same)
    if J is not None and delta is not None and min(column.y_shape) > 0:
        J_perp = _project(J, column, column.perp)
        _ops.hessian_block_(S, a_s, None, None, delta @ column.seen, J_perp, row.start, -1, column.y_start, -1, False)


def _project(J: Tensor, basis: LayerBasis, U: Tensor) -> Tensor:
    """Tangents of the inputs [O, N, I] in the columns of U; the constant input has none."""
    return torch.matmul(J, U[: basis.inputs])
