"""``HessianOperator`` of several ranks, each with its batch: a data set of one batch a rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..base.batch import Batch
from ..base.blocks import Chosen
from ..base.snapshot import Origin, Snapshot
from ..distributed.shares import shares
from ..errors import UnsupportedError
from .compressed import CompressedHessian
from .dataset import DatasetHessian
from .hessian import HessianOperator
from .native_sweep import Native
from .recorded import sum_of_all
from .weighting import Weighting

_ALL = 1 << 62  # bytes: the one batch is kept


class SharedHessian(DatasetHessian, HessianOperator):
    """The Hessian of the loss on the union of the ranks' batches; arguments and errors as of ``HessianOperator``.

    What belongs to a batch (``origin.x``, ``output``) is that of this rank.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        x: object,
        y: object,
        verify: bool = False,
        *,
        params: Chosen | None = None,
        memory_budget: int | None = None,
        group: Any,
    ) -> None:
        ranks = shares(group).ranks
        assert ranks is not None
        with ranks.together("the making of a HessianOperator", meets=True):
            _require_known(loss_fn)
            DatasetHessian.__init__(
                self,
                model,
                loss_fn,
                [(x, y)],
                params,
                keep=_ALL,
                verify=verify,
                memory_budget=memory_budget,
                group=ranks,
            )
        self._ranks, self._loss_fn, self._y = ranks, loss_fn, y
        self._own = self._recorded.kept(0)  # None: all samples of this rank are ignored
        self.snapshot = Snapshot(self.space, Batch(x, y), self.snapshot.tree)
        loss = None if self._own is None else self._own.origin.loss
        self.origin = Origin(model, x, self.snapshot, self._recorded.unused, loss)

    __reduce__ = HessianOperator.__reduce__

    @property
    def output(self) -> object:
        """What the model returned on this rank's batch, detached."""
        if self._own is not None:
            return self._own.output
        block = self.space.block
        return HessianOperator(self.snapshot.tree.model, sum_of_all, self.origin.x, self._y, params=block).output

    def native_sweep(self) -> Native | None:
        """None: what is swept here is a part of the whole."""
        return None

    def compressed(self, dtype: torch.dtype | None = None) -> CompressedHessian:
        """Refused: the range of the sum is that of all ranks' batches."""
        raise UnsupportedError("compressed: not of several ranks' batches; use dense() or spectrum()")

    def compressed_bound(self, dtype: torch.dtype) -> int | None:
        """None: there is no compressed form."""
        return None

    def diagonal_columns(self) -> int:
        """The most that a rank takes for ``diagonal()``."""
        with self._ranks.together("the cost of the diagonal", meets=True):
            own = 0 if self._own is None else self._own.diagonal_columns()
            return max(self._ranks.gather_objects(own, "the cost of the diagonal"))

    @property
    def held_constant(self) -> str | None:
        """As of ``HessianOperator``, on any rank."""
        with self._ranks.together("what forward holds constant", meets=True):
            own = None if self._own is None else self._own.held_constant
            said = self._ranks.gather_objects(own, "what forward holds constant")
        return next((s for s in said if s is not None), None)

    def _made_again(self) -> HessianOperator:
        args = self.origin.model, self._loss_fn, self.origin.x, self._y
        return HessianOperator(*args, params=self.space.block, memory_budget=self._budget, group=self._ranks)


def _require_known(loss_fn: Any) -> None:
    try:
        Weighting(loss_fn, None)
    except UnsupportedError as e:
        raise UnsupportedError(f"{e}, to DatasetHessian(model, loss_fn, [(x, y)], group=group)") from None
