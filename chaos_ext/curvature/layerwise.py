"""The exact engine for models that are programs of layer rules: sweeps of a tape instead of repeated autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _ops
from ..base import workspace
from ..base.parameters import ParameterSpace
from ..base.tensors import all_finite, rows_contiguous, symmetrize_
from ..errors import NonFiniteError
from ..graph.program import Program
from ..rules.losses import LossRule
from ..rules.rule import Tangent
from .basis import CompressedHessian
from .compressed import bound, compress
from .native_sweep import Native, native
from .plan import PARAMETERS, UNITS, Entry, passing_flops, plan
from .sweep import hessian_vector_products, unit_sweep
from .tape import Tape

_SWEEP_BYTES = 1 << 25  # tangents of a sweep that stay near the cache,
_FEW_COLUMNS = 64  # unless that is fewer columns than keep the products efficient
_MOST_BYTES = 1 << 30
_SWEEP_SHARE = 0.3  # of the dense H: what its sweeps may take
_VECTOR = 16  # columns: a vector register of float32


class LayerwiseEngine:
    """Loss, gradient and Hessian on tapes, one tape per dtype, all of the parameters' values ``theta``."""

    path = "layer rules"

    def __init__(
        self, program: Program, space: ParameterSpace, theta: Sequence[Tensor], x: Tensor, y: Tensor, rule: LossRule
    ) -> None:
        self.program, self.space, self._theta = program, space, theta
        self._x, self._y, self._rule = x, y, rule
        self._tapes: dict[torch.dtype, Tape] = {}
        self._natives: dict[torch.dtype, Native | None] = {}
        tape = self.tape(space.dtype)
        self.loss, self.output = tape.loss.loss, tape.output
        self.gradient = self.flat_gradient(space.dtype)
        if not (math.isfinite(self.loss) and all_finite(self.gradient)):
            raise NonFiniteError("loss: the loss or its gradient is NaN or inf on this batch")

    def tape(self, dtype: torch.dtype) -> Tape:
        """The tape of the parameters in the given dtype."""
        if dtype not in self._tapes:
            with torch.no_grad():
                theta = [t if t.dtype == dtype else t.to(dtype) for t in self._theta]
                x = self._x.detach()
                x = x.to(dtype) if x.is_floating_point() else x
                self._tapes[dtype] = Tape(self.program, theta, x, self._y, self._rule)
        return self._tapes[dtype]

    def flat_gradient(self, dtype: torch.dtype) -> Tensor:
        """The gradient [P] computed in the given dtype."""
        tape = self.tape(dtype)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(tape.gradient, tape.theta, strict=True)]
        return self.space.flatten(parts)

    @torch.no_grad()
    def native(self, dtype: torch.dtype) -> Native | None:
        """The tape for the native sweep, or None where that does not know a layer."""
        if dtype not in self._natives:
            self._natives[dtype] = native(self.tape(dtype), self.space.offsets)
        return self._natives[dtype]

    @torch.no_grad()
    def hvp(self, v: Tensor) -> Tensor:
        """H v for v [P, k], swept in column blocks that stay small."""
        whole = self.native(v.dtype)
        if whole is not None:
            return _ops.tangent_product(rows_contiguous(v), *whole.args)
        tape, out = self.tape(v.dtype), torch.empty_like(v)
        chunk = self.block_columns(v.dtype)
        for i in range(0, v.shape[1], chunk):
            block = v[:, i : i + chunk].contiguous()
            with workspace.sweep():
                products = hessian_vector_products(tape, dict(enumerate(self.space.split(block))))
                for j, part in enumerate(products):
                    out[self.space.slice(j), i : i + chunk] = 0.0 if part is None else part.reshape(-1, block.shape[1])
        return out

    def block_columns(self, dtype: torch.dtype) -> int:
        """Columns that are swept at a time."""
        return self._chunk(self.tape(dtype), self.space.size, 0)

    def _chunk(self, tape: Tape, entered: int, first: int, most_bytes: int = _MOST_BYTES) -> int:
        """Columns of one sweep from node ``first`` on whose tangents fit.

        They are those of what enters and leaves, of all values (kept for the way back) and two of a cotangent.
        """
        sizes = [t.numel() for t in tape.values[first + 1 :]]
        per_column = (entered + self.space.size + sum(sizes) + 2 * max(sizes)) * tape.theta[0].element_size()
        few, many = min(_FEW_COLUMNS, most_bytes // per_column), min(_SWEEP_BYTES, most_bytes) // per_column
        return max(_VECTOR, few // _VECTOR * _VECTOR, many // _VECTOR * _VECTOR)

    def plan(self) -> tuple[Entry, ...]:
        """How each layer's rows of H are computed."""
        return plan(self.tape(self.space.dtype))

    def passing_flops(self, node: int) -> int:
        """Operations that the sweeps of a dense Hessian cost in one node."""
        return passing_flops(self.tape(self.space.dtype), node, self.plan())

    @torch.no_grad()
    def dense_(self, out: Tensor) -> None:
        """Fills out [P, P] with H, bit for bit symmetric."""
        tape = self.tape(out.dtype)
        entries = plan(tape)
        if sum(tape.theta[s].numel() for e in entries for s in e.slots) < self.space.size:
            out.zero_()
        units = [e for e in entries if e.path == UNITS]
        for e in units:
            self._fill_from_units(tape, e.node, [later.node for later in units if later.node >= e.node], out)
        wanted = [s for e in entries for s in e.slots]
        for e in entries:
            if e.path == PARAMETERS:
                self._fill_from_parameters(tape, e.slots, wanted, out)
                wanted = [s for s in wanted if s not in e.slots]

    def _fill_from_units(self, tape: Tape, s: int, later: list[int], out: Tensor) -> None:
        """Blocks of layer s with itself and the given later layers, contracted into H with their transposes."""
        sweep = unit_sweep(tape, s)
        row = self._offsets(s)
        for t in later:
            node, K = self.program.nodes[t], sweep.ddeltas[t]
            J = None if t == s else sweep.dvalues[node.inputs[0]]
            inputs = [tape.values[self.program.nodes[i].inputs[0]].contiguous() for i in (s, t)]
            K = _unit_first(K) if K is not None else tape.values[t + 1].new_zeros(self._zero_shape(tape, s, t))
            delta = None if J is None else _contiguous(tape.deltas[t])
            args = (inputs[0], K, inputs[1], delta, None if J is None else _unit_first(J))
            _ops.hessian_block_(out, *args, *row, *self._offsets(t), t == s)

    @staticmethod
    def _zero_shape(tape: Tape, s: int, t: int) -> tuple[int, int, int]:
        n, units = tape.values[s + 1].shape
        return units, n, tape.values[t + 1].shape[1]

    def _offsets(self, t: int) -> tuple[int, int]:
        w, b = self.program.nodes[t].rule.slots
        return tuple(-1 if s is None else self.space.offsets[s] for s in (w, b))  # type: ignore[return-value]

    def _fill_from_parameters(self, tape: Tape, slots: tuple[int, ...], wanted: list[int], out: Tensor) -> None:
        """Rows and columns of the given slots against the wanted ones: unit tangents of each of their parameters."""
        sizes = [self.space.shapes[s].numel() for s in slots]
        first = min(i for s in slots for i in self.program.uses[s])
        chunk = self._chunk(tape, sum(sizes), first, min(_MOST_BYTES, int(_SWEEP_SHARE * out.nbytes)))
        for i in range(0, sum(sizes), chunk):
            pieces = _pieces(slots, sizes, i, i + chunk)
            # Whole vectors of columns; the surplus ones are zero.
            k = -(-sum(p.count for p in pieces) // _VECTOR) * _VECTOR
            dtheta = {}
            for p in pieces:
                tangent = torch.zeros(self.space.shapes[p.slot].numel(), k, dtype=out.dtype, device=out.device)
                tangent[p.start : p.start + p.count, p.column : p.column + p.count].fill_diagonal_(1)
                dtheta[p.slot] = tangent.view(*self.space.shapes[p.slot], k)
            with workspace.sweep():
                products = hessian_vector_products(tape, dtheta, wanted)
                for t in wanted:
                    self._write(out, t, pieces, products[t], own=t in slots)
        for a in slots:
            symmetrize_(out[self.space.slice(a), self.space.slice(a)])
            for b in slots:
                if b > a:
                    out[self.space.slice(b), self.space.slice(a)] = out[self.space.slice(a), self.space.slice(b)].T

    def _write(self, out: Tensor, t: int, pieces: list[_Piece], product: Tangent, own: bool) -> None:
        """The product's columns into H, with their transposes unless the rows are swept themselves (``own``)."""
        rows = self.space.slice(t)
        flat = None if product is None else product.reshape(rows.stop - rows.start, -1)
        for p in pieces:
            first = self.space.offsets[p.slot] + p.start
            columns = slice(first, first + p.count)
            part = None if flat is None else flat[:, p.column : p.column + p.count]
            out[columns, rows] = 0.0 if part is None else part.T
            if not own:
                out[rows, columns] = 0.0 if part is None else part

    def compressible(self, dtype: torch.dtype) -> int | None:
        """An upper bound of the compressed size n."""
        return bound(self.tape(dtype))

    @torch.no_grad()
    def compressed(self, dtype: torch.dtype) -> CompressedHessian:
        """H = Q S Q^T in the given dtype."""
        return compress(self.tape(dtype), self.space)


@dataclass(frozen=True)
class _Piece:
    """Parameters start..start + count of a slot, as the columns column..column + count of a sweep."""

    slot: int
    start: int
    count: int
    column: int


def _pieces(slots: tuple[int, ...], sizes: list[int], first: int, last: int) -> list[_Piece]:
    """The parameters first..last of several slots in a row."""
    pieces, begin = [], 0
    for slot, size in zip(slots, sizes, strict=True):
        lo, hi = max(first, begin), min(last, begin + size)
        if lo < hi:
            pieces.append(_Piece(slot, lo - begin, hi - lo, lo - first))
        begin += size
    return pieces


def _unit_first(t: Tensor) -> Tensor:
    """[N, ..., O] as [O, N, ...]."""
    return t.movedim(-1, 0).contiguous()


def _contiguous(t: Tangent) -> Tangent:
    return None if t is None else t.contiguous()
