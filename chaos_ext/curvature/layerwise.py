"""The exact engine for models that are programs of layer rules: sweeps of a tape instead of repeated autograd."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from .. import _ops
from ..base import workspace
from ..base.parameters import ParameterSpace
from ..base.tensors import all_finite, fresh_like, rows_contiguous
from ..base.torch_internals import without_grad
from ..errors import NonFiniteError
from ..graph.program import Program
from ..rules.embedding import Embedding
from ..rules.losses import LossRule
from . import dense
from .basis import Columns
from .compressed import CompressedHessian, bound, compress, narrowed
from .inspection import PADDING
from .native_sweep import Native, native
from .plan import LayerReport, fuses, linear_work, product_columns, reports, sweep_columns
from .sweep import hessian_vector_products
from .tape import Tape


class LayerwiseEngine:
    """Loss, gradient and Hessian on tapes, one tape per dtype, all of the parameters' values ``theta``."""

    loss_writes = False  # losses with rules leave nothing behind

    def __init__(
        self, program: Program, space: ParameterSpace, theta: Sequence[Tensor], x: Tensor, y: Tensor, rule: LossRule
    ) -> None:
        self.program, self.space, self._theta = program, space, theta
        self._x, self._y, self._rule = x, y, rule
        self._tapes: dict[torch.dtype, Tape] = {}
        self._natives: dict[torch.dtype, Native | None] = {}
        tape = self.tape(space.dtype)
        self.loss, self.output, self.unused = tape.loss.loss, tape.output, tape.unused
        self.gradient = self.flat_gradient(space.dtype)
        if not (math.isfinite(self.loss) and all_finite(self.gradient)):
            raise NonFiniteError("loss: the loss or its gradient is NaN or inf on this batch")

    @property
    def apart(self) -> str | None:
        """The row of an embedding that is a constant to H, where something else moves it; see ``Program``."""
        nodes, saved = self.program.nodes, self.tape(self.space.dtype).saved
        for i, rule in enumerate(n.rule for n in nodes):
            if isinstance(rule, Embedding) and rule.slots[0] is not None and rule.meets_padding(saved[i]):
                others = [nodes[j].rule for j in self.program.uses[rule.slots[0]]]
                if any(getattr(r, "padding_idx", None) != rule.padding_idx for r in others):
                    return PADDING
        return None

    def tape(self, dtype: torch.dtype) -> Tape:
        """The tape of the parameters in the given dtype."""
        if dtype not in self._tapes:
            self._tapes[dtype] = self._recorded(dtype)
        return self._tapes[dtype]

    @without_grad
    def _recorded(self, dtype: torch.dtype) -> Tape:
        theta = [t if t.dtype == dtype else t.to(dtype) for t in self._theta]
        x = self._x.detach() if self._x.requires_grad else self._x
        x = x.to(dtype) if x.is_floating_point() else x
        return Tape(self.program, theta, x, self._y, self._rule)

    def flat_gradient(self, dtype: torch.dtype) -> Tensor:
        """The gradient [P] computed in the given dtype."""
        tape = self.tape(dtype)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(tape.gradient, tape.theta, strict=True)]
        return self.space.flatten(parts)

    @without_grad
    def native(self, dtype: torch.dtype) -> Native | None:
        """The tape for the native sweep, or None where that does not know a layer."""
        if dtype not in self._natives:
            self._natives[dtype] = native(self.tape(dtype), self.space.offsets)
        return self._natives[dtype]

    @cached_property
    def _work(self) -> int:
        return linear_work(self.tape(self.space.dtype))

    @without_grad
    def hvp(self, v: Tensor) -> Tensor:
        """H v for v [P, k]: natively as a whole, or layer by layer in column blocks that stay small."""
        tape, out = self.tape(v.dtype), fresh_like(v)
        whole = self.native(v.dtype)
        # On a GPU the other way has not been measured.
        if whole is not None and (v.is_cuda or fuses(self._work)):
            return _ops.tangent_product(rows_contiguous(v), *whole.args)
        chunk = product_columns(tape, self.space)
        for i in range(0, v.shape[1], chunk):
            parts = self.space.split(v[:, i : i + chunk].contiguous())
            with workspace.sweep():
                products = hessian_vector_products(tape, dict(enumerate(parts)))
                for j, part in enumerate(products):
                    rows = out[self.space.slice(j), i : i + chunk].unflatten(0, self.space.shapes[j] or (1,))
                    rows.copy_(part) if part is not None else rows.zero_()
        return out

    def block_columns(self, dtype: torch.dtype) -> int:
        """Columns that are swept at a time."""
        return sweep_columns(self.tape(dtype), self.space, self.space.size, 0)

    def explain(self) -> Iterator[LayerReport]:
        """How each layer's rows of H are computed."""
        return reports(self.tape(self.space.dtype), self.space)

    @without_grad
    def dense_(self, out: Tensor) -> None:
        """Fills out [P, P] with H, bit for bit symmetric."""
        dense.fill_(out, self.tape(out.dtype), self.space)

    def compressible(self, dtype: torch.dtype) -> int | None:
        """An upper bound of the compressed size n."""
        return bound(self.tape(dtype))

    @without_grad
    def compressed(self, dtype: torch.dtype) -> CompressedHessian:
        """H = Q S Q^T in the given dtype."""
        return compress(self.tape(dtype), self.space)

    @without_grad
    def narrowed(self, compressed: CompressedHessian) -> tuple[Columns, Tensor]:
        """Basis and S of what ``compressed`` gave, smaller where numbers allow it."""
        return narrowed(self.tape(compressed.dtype), compressed)
