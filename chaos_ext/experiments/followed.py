"""A training with deviations beside it: what studies of Lyapunov exponents share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import chaos_ext as ce

from ..data import Dataset
from .readings import ReadTraining
from .settings import Settings, Unit


class FollowedTraining(ReadTraining):
    """SGD whose every step a ``LyapunovAnalyzer`` follows.

    Args:
        settings, unit, data, every: as of ``ReadTraining``.
        options: of the analyzer.
    """

    def __init__(self, settings: Settings, unit: Unit, data: Dataset, every: int, options: dict[str, Any]) -> None:
        super().__init__(settings, unit, data, every)
        self.analyzer = ce.LyapunovAnalyzer(self.model, self.optimizer, **options)

    def make_optimizer(self) -> ce.CGD:
        """SGD that takes its gradient from the operator: no backward pass beside it."""
        return ce.CGD(self.model.parameters(), lr=self.settings.lr, momentum=self.settings.momentum, prune=None)

    def take_step(self, x: Tensor, y: Tensor) -> None:
        """Of the deviations, then of the parameters."""
        op = ce.HessianOperator(self.model, self.loss_fn, x, y)
        self.look(op)
        self.analyzer.update(op)
        assert isinstance(self.optimizer, ce.CGD)
        self.optimizer.step(op)

    def look(self, op: ce.HessianOperator) -> None:
        """At the operator of a step before it is taken."""

    def state(self) -> dict[str, Any]:
        """As of every training, and the deviations."""
        return {**super().state(), "analyzer": self.analyzer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """As of every training, and the deviations."""
        super().load(state)
        self.analyzer.load_state_dict(state["analyzer"])
