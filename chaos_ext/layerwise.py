"""The exact engine for models that are programs of layer rules: sweeps of a tape instead of repeated autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _ops
from .capture import Program
from .compressed import CompressedHessian, bound, compress
from .errors import NonFiniteError, UnsupportedError
from .layers import Linear
from .losses import LossRule
from .params import ParameterSpace
from .sweep import hessian_vector_products, unit_sweep
from .tape import Tape

_SWEEP_BYTES = 1 << 26


class LayerwiseEngine:
    """Loss, gradient and Hessian on tapes, one tape per dtype, all of the parameters at construction."""

    path = "layer rules"

    def __init__(self, program: Program, space: ParameterSpace, x: Tensor, y: Tensor, rule: LossRule) -> None:
        self.program, self.space, self._x, self._y, self._rule = program, space, x, y, rule
        self._tapes: dict[torch.dtype, Tape] = {}
        tape = self.tape(space.dtype)
        self.loss, self.output = tape.loss.loss, tape.output
        self.gradient = self.flat_gradient(space.dtype)
        if not (torch.isfinite(self.loss) and torch.isfinite(self.gradient).all()):
            raise NonFiniteError("loss: the loss or its gradient is NaN or inf on this batch")

    def tape(self, dtype: torch.dtype) -> Tape:
        """The tape of the parameters in the given dtype."""
        if dtype not in self._tapes:
            with torch.no_grad():
                theta = [p.detach().to(dtype) for p in self.space.params]
                self._tapes[dtype] = Tape(self.program, theta, self._x.detach().to(dtype), self._y, self._rule)
        return self._tapes[dtype]

    def flat_gradient(self, dtype: torch.dtype) -> Tensor:
        """The gradient [P] computed in the given dtype."""
        tape = self.tape(dtype)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(tape.gradient, tape.theta, strict=True)]
        return self.space.flatten(parts)

    @torch.no_grad()
    def hvp(self, v: Tensor) -> Tensor:
        """H v for v [P, k], swept in column blocks that stay small."""
        tape, out = self.tape(v.dtype), torch.empty_like(v)
        per_column = (2 * self.space.size + 2 * sum(t.numel() for t in tape.values)) * v.element_size()
        chunk = max(1, _SWEEP_BYTES // per_column)
        for i in range(0, v.shape[1], chunk):
            block = v[:, i : i + chunk]
            products = hessian_vector_products(tape, self.space.split(block))
            for j, part in enumerate(products):
                rows = self.space.slice(j)
                out[rows, i : i + chunk] = 0.0 if part is None else part.reshape(block.shape[1], -1).T
        return out

    @torch.no_grad()
    def dense_(self, out: Tensor) -> None:
        """Fills out [P, P] with H, bit for bit symmetric."""
        if self.program.tied:
            self._dense_from_products_(out)
            return
        tape = self.tape(out.dtype)
        nodes = [t for t in self.program.linears if tape.deltas[t] is not None]
        if self._covered(nodes) < self.space.size:
            out.zero_()
        for s in nodes:
            self._fill_rows(tape, s, nodes, out)

    def _covered(self, nodes: list[int]) -> int:
        slots = {s for t in nodes for s in self.program.nodes[t].rule.slots if s is not None}
        return sum(self.space.shapes[s].numel() for s in slots)

    def _fill_rows(self, tape: Tape, s: int, nodes: list[int], out: Tensor) -> None:
        """Blocks of layer s with itself and every later layer, contracted straight into H with their transposes."""
        sweep = unit_sweep(tape, s)
        row = self._offsets(s)
        for t in nodes:
            if t < s:
                continue
            node, K = self.program.nodes[t], sweep.ddeltas[t]
            J = None if t == s else sweep.dvalues[node.inputs[0]]
            inputs = [tape.values[self.program.nodes[i].inputs[0]].contiguous() for i in (s, t)]
            assert K is not None
            delta = None if J is None else tape.deltas[t]
            args = (inputs[0], K.contiguous(), inputs[1], delta, J if J is None else J.contiguous())
            _ops.hessian_block_(out, *args, *row, *self._offsets(t), t == s)

    def _offsets(self, t: int) -> tuple[int, int]:
        w, b = self.program.nodes[t].rule.slots
        return tuple(-1 if s is None else self.space.offsets[s] for s in (w, b))  # type: ignore[return-value]

    def _dense_from_products_(self, out: Tensor) -> None:
        """Enters at the parameters: H I, column block by column block."""
        chunk = 512
        for i in range(0, len(out), chunk):
            k = min(chunk, len(out) - i)
            eye = torch.zeros(len(out), k, dtype=out.dtype, device=out.device)
            eye[torch.arange(i, i + k), torch.arange(k)] = 1
            out[:, i : i + k] = self.hvp(eye)
        out.copy_((out + out.T) / 2)

    def compressible(self, dtype: torch.dtype) -> int | None:
        """An upper bound of the compressed size n, or None where H has no compressed form here."""
        if self.program.tied or not all(isinstance(self.program.nodes[t].rule, Linear) for t in self.program.linears):
            return None
        return bound(self.tape(dtype))

    @torch.no_grad()
    def compressed(self, dtype: torch.dtype) -> CompressedHessian:
        """H = Q S Q^T in the given dtype."""
        if self.program.tied:
            raise UnsupportedError("compressed: a parameter is used by more than one layer; use dense()")
        return compress(self.tape(dtype), self.space.offsets, self.space.size)
