"""The operators of the batches of a data set: what they say of the whole, and how they are visited again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..base.memory import held_bytes
from ..base.parameters import ParameterSpace
from ..base.progress import Progress
from ..base.tensors import all_finite
from ..base.torch_internals import tree_leaves
from ..distributed.shares import Alone
from ..errors import NonFiniteError, StaleOperatorError
from .hessian import HessianOperator
from .walks import Walks, of_batch
from .weighting import Weighting


class Make(Protocol):
    """Makes the operator of one batch; ``output_only``: of any loss, for what the model returns."""

    def __call__(self, x: Any, y: Any, *, first: bool = False, output_only: bool = False) -> HessianOperator: ...


class Recorded:
    """One operator a batch, each with its share in the whole, from a first walk; kept as far as there is room.

    Of a group of ranks each has its batches, or none, and all have the same ``loss``, ``gradient``, ``unused`` and
    ``columns``, of the whole.

    Args:
        make: makes the operator of a batch.
        walks: through the batches.
        weighting: how their losses combine.
        space: the parameters.
        keep: bytes of operators that are kept.
        progress: whether a bar counts batches.
        share: in a whole that is several ranks'.

    Attributes:
        normalisers: n_b, of this rank's batches.
        loss, gradient: of the whole, in float64.
        unused: places of the parameters that no loss depends on.
        columns: how many a product takes at a time.
    """

    def __init__(
        self,
        make: Make,
        walks: Walks,
        weighting: Weighting,
        space: ParameterSpace,
        keep: int,
        progress: bool,
        share: Alone,
    ) -> None:
        self._make, self._walks, self._weighting, self._space = make, walks, weighting, space
        self._room, self._kept = keep, dict[int, HessianOperator]()
        self._bar = Progress(None, shown=progress)
        self.normalisers: list[float] = []
        self._losses: list[Tensor] = []
        self.unused, self.columns = frozenset(range(len(space.params))), space.size
        self.gradient = torch.zeros(space.size, dtype=torch.float64, device=space.device)
        walks.first(self._see, may_be_empty=share.ranks is not None)
        self._combine(share)

    def _see(self, i: int, x: Any, y: Any) -> None:
        op, n = of_batch(i, lambda: self._examined(x, y))
        self.normalisers.append(n)
        self._losses.append(self.gradient.new_zeros(()) if op is None else op.loss.double())
        if op is not None and n:
            self.gradient.add_(op.gradient, alpha=n)
            self.unused, self.columns = self.unused & op.unused, min(self.columns, op.block_columns())
            self._keep(i, op)
        self._bar.report(1, False)

    def _examined(self, x: Any, y: Any) -> tuple[HessianOperator | None, float]:
        """The operator of a batch, and n; None where all its samples are ignored, which makes its mean 0/0."""
        try:
            op = self._make(x, y, first=True)
        except NonFiniteError:
            n = self._weighting.of_targets(y)
            # Refuses a batch or an output that is not finite either.
            n = n or self._weighting.normaliser(x, self._make(x, y, output_only=True).output, y)
            if n:
                raise
            if self._weighting.adds_something(y):
                raise NonFiniteError(
                    "loss: all its labels have class weight 0, so that its mean is x/0, but with label smoothing they "
                    "count in the union; put them into batches with other labels, or take reduction='sum'"
                ) from None
            return None, 0.0
        return op, self._weighting.normaliser(x, op.output, y)

    def _keep(self, i: int, op: HessianOperator) -> None:
        if self._room > 0:
            self._room -= held_bytes(op)
            if self._room >= 0:
                self._kept[i] = op

    def _combine(self, share: Alone) -> None:
        own = sum(self.normalisers), len(self.normalisers), self.columns
        sums, counts, columns = zip(*share.gather_objects(own, "the normalisers of the batches"), strict=True)
        if not any(counts):
            raise ValueError("batches: expected at least one batch on one of the ranks, got none on any")
        whole, self.columns = 1.0 if self._weighting.is_sum else sum(sums), min(columns)
        if not whole > 0:
            raise NonFiniteError("loss: the mean over all batches is 0/0, every sample is ignored or has weight 0")
        self._shares = [n / whole for n in self.normalisers]
        self.gradient /= whole
        self.loss = sum((c * l for c, l in zip(self._shares, self._losses, strict=True)), self.gradient.new_zeros(()))
        if share.ranks is not None:
            self._sum(share)
        if not all_finite(torch.cat([self.gradient, self.loss.view(1)]).to(self._space.dtype)):
            raise NonFiniteError("loss: the loss of all batches or its gradient is NaN or inf")

    def _sum(self, share: Alone) -> None:
        """In one message the gradient, the loss, and which parameters are used."""
        used = [float(i not in self.unused) for i in range(len(self._space.params))]
        parts = self.gradient, self.gradient.new_tensor([float(self.loss), *used])
        total = share.sum(torch.cat(parts), "the gradient of all batches")
        self.gradient, self.loss = total[: self._space.size], total[self._space.size]
        self.unused = frozenset([i for i, n in enumerate(total[self._space.size + 1 :].tolist()) if not n])

    def kept(self, i: int) -> HessianOperator | None:
        """The operator of batch i, where that is kept; None too where the batch has no share."""
        return self._kept.get(i)

    @property
    def count(self) -> int:
        """How many batches have a share."""
        return sum(map(bool, self._shares))

    def each(self, visit: Callable[[HessianOperator, float], object]) -> None:
        """Visits the operator of every batch that has a share, with that; walks only if some were not kept.

        Raises:
            StaleOperatorError: a batch, or something that its loss reads, has changed.
        """

        def of(i: int, x: Any, y: Any) -> None:
            if self._shares[i]:
                of_batch(i, lambda: visit(self._kept.get(i) or self._again(i, x, y), self._shares[i]))
            self._bar.report(1, False)

        if len(self._kept) < self.count:
            self._walks.again(of)
        else:
            for i in range(len(self._shares)):
                of(i, None, None)

    def _again(self, i: int, x: Any, y: Any) -> HessianOperator:
        op, then = self._make(x, y), self._losses[i]
        eps = torch.finfo(self._space.dtype).eps
        if not torch.allclose(op.loss.double(), then, rtol=eps**0.5, atol=eps):
            raise StaleOperatorError(
                f"its loss was {float(then):.6g} and is {float(op.loss):.6g}: something that the model's forward or "
                "the loss reads changed after the operator was made; make a new DatasetHessian"
            )
        return op


def sum_of_all(output: Any, y: object) -> Tensor:
    """A loss of any output."""
    parts = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
    return torch.stack([t.sum() for t in parts]).sum()
