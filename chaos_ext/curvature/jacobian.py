"""The Jacobian J [M, P] of a model's output z [M] (flat) with respect to theta, as products, on a tape of layer rules.

Whoever wants curvature at the output multiplies with ``push`` (J v), ``curve`` (C u, C = d2 loss / dz2) and ``pull``
(J^T u): the Gauss-Newton matrix is J^T C J.
"""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..base import workspace
from ..base.batch import Batch
from ..base.parameters import ParameterSpace
from ..base.torch_internals import without_grad
from ..errors import StaleOperatorError
from ..rules.linear import Linear
from ..rules.losses import Evaluated
from .plan import product_columns
from .roots import Root, root_of
from .sweep import cotangents_at, keeps_samples_apart, output_tangent, pulled_back
from .tape import Tape


class Jacobian(Protocol):
    """J and C at one theta and batch.

    Attributes:
        outputs: M.
        size: P.
        dtype, device: of its products.
        lasting: whether it stays what it is after the model has changed.
        has_root: whether C is known as L diag(signs) L^T; else products are all there is.
    """

    outputs: int
    size: int
    dtype: torch.dtype
    device: torch.device
    lasting: bool

    @property
    def has_root(self) -> bool: ...

    def push(self, v: Tensor) -> Tensor:
        """J v [M, k] for v [P, k]."""

    def pull(self, u: Tensor) -> Tensor:
        """J^T u [P, k] for u [M, k]."""

    def curve(self, u: Tensor) -> Tensor:
        """C u [M, k] for u [M, k]."""

    @property
    def root(self) -> Root:
        """C = L diag(signs) L^T."""

    def gram(self) -> Tensor:
        """L^T J J^T L [R, R]."""


def columns_of(J: Jacobian) -> int:
    """R: of how many columns B = J^T L [P, R] with J^T C J = B diag(signs) B^T consists; more than any P without L."""
    return len(J.root.signs) if J.has_root else sys.maxsize


def gram_of(J: Jacobian, chunk: int) -> Tensor:
    """L^T J J^T L [R, R] by products."""
    root = J.root
    columns = unit_columns(columns_of(J), root.signs, chunk)
    return torch.cat([root.transposed(J.push(J.pull(root.apply(c)))) for c in columns], 1)


def unit_columns(size: int, like: Tensor, chunk: int) -> list[Tensor]:
    """The unit matrix [size, size] in blocks of columns."""
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return list(eye.split(max(1, chunk), 1))


class TapeJacobian:
    """J on a tape: every layer has a rule, and the loss too."""

    lasting = has_root = True

    def __init__(self, tape: Tape, space: ParameterSpace) -> None:
        self.tape, self._space = tape, space
        self._loss: Evaluated = tape.loss
        self._shape, self.outputs, self.size = tape.output.shape, tape.output.numel(), space.size
        self.dtype, self.device = tape.output.dtype, tape.output.device
        self._chunk = product_columns(tape, space)
        self._batch = Batch(tape.values[0], None)  # the tape may hold the user's own tensor

    def _require_same_batch(self) -> None:
        if not self._batch.is_fresh():
            raise StaleOperatorError(
                "operator: the batch x was edited after it was made, and what was asked for is computed from it when "
                "it is needed; make a new operator, and edit clones of x"
            )

    @without_grad
    def push(self, v: Tensor) -> Tensor:
        self._require_same_batch()
        out = v.new_zeros(self.outputs, v.shape[1])
        for i in range(0, v.shape[1], self._chunk):
            parts = self._space.split(v[:, i : i + self._chunk].contiguous())
            with workspace.sweep():
                dz = output_tangent(self.tape, dict(enumerate(parts)))
                if dz is not None:
                    out[:, i : i + self._chunk] = dz.reshape(self.outputs, -1)
        return out

    @without_grad
    def pull(self, u: Tensor) -> Tensor:
        self._require_same_batch()
        out = u.new_zeros(self.size, u.shape[1])
        for i in range(0, u.shape[1], self._chunk):
            cotangents = u[:, i : i + self._chunk].reshape(*self._shape, -1).contiguous()
            with workspace.sweep():
                for j, part in enumerate(pulled_back(self.tape, cotangents)):
                    if part is not None:
                        out[self._space.slice(j), i : i + self._chunk] = part.reshape(self._space.sizes[j], -1)
        return out

    @without_grad
    def curve(self, u: Tensor) -> Tensor:
        return self._loss.tangent(u.reshape(*self._shape, -1)).reshape(u.shape)

    @cached_property
    def root(self) -> Root:
        found = root_of(self._loss, self.tape.output)
        assert found is not None  # losses with a rule have one
        return found

    @without_grad
    def gram(self) -> Tensor:
        if self._is_plain():
            return self._plain_gram()
        return gram_of(self, self._chunk)

    def _is_plain(self) -> bool:
        """Whether the gradients of one sample are products d a^T: only Linear layers, on rows, used once."""
        tape, program = self.tape, self.tape.program
        nodes = [program.nodes[t].rule for t in program.parametrised]
        once = all(len(program.uses.get(s, ())) == 1 for s in range(len(tape.theta)))
        rows = [t for t in program.parametrised if tape.values[t + 1].dim() == 2 and keeps_samples_apart(tape, t)]
        return once and all(isinstance(r, Linear) for r in nodes) and rows == program.parametrised and self._is_rows()

    def _is_rows(self) -> bool:
        return len(self._shape) == 2

    def _plain_gram(self) -> Tensor:
        """Layer by layer (A A^T + 1) * (D D^T), with the cotangents D of each output and the inputs A of its sample."""
        n, classes = self._shape
        gram = self.tape.output.new_zeros(n * classes, n * classes)
        for pull in cotangents_at(self.tape, self.class_columns()):
            if not isinstance(pull.rule, Linear) or pull.ddelta is None:
                continue
            weight, bias = (s is not None for s in pull.rule.slots)
            a = self.tape.values[pull.inputs[0]]
            inner = (a @ a.T if weight else a.new_zeros(n, n)) + float(bias)
            d = pull.ddelta.transpose(1, 2).reshape(n * classes, -1)
            gram += (d @ d.T) * inner.repeat_interleave(classes, 0).repeat_interleave(classes, 1)
        return gram

    def class_columns(self) -> Tensor:
        """Column c of L in every sample at once, as cotangents [*z, k]: one for each output of a sample."""
        n, own = self._shape[0], self._shape[1:].numel()
        eye = torch.eye(own, dtype=self.dtype, device=self.device)
        return self.root.apply(eye.repeat(n, 1)).view(*self._shape, own)
