"""Small displacements in both dtypes (appendix C.4): where distances are proportional to eps, and where rounding rules.

Twins are displaced by eps u, u one random direction, and trained on the same batches. Linear theory says that their
distance is eps ||Y_t u||, with the tangent map along u for Y_t u, which knows nothing of twins. The control measures
rounding: a twin that is not displaced, trained on the same batches in reverse order. Its sums have the same terms, so
that its distance, the floor, is rounding and what training makes of it.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.optim import Optimizer

import chaos_ext as ce

from ..base.contents import array
from ..data import Dataset
from ..data.batches import derive_seed
from .epsilon_figure import figure_epsilon
from .epsilon_findings import COLUMNS, DISTANCES, EPS, RUNS, findings_of
from .epsilon_options import NAME, QUICK_STEPS
from .findings import Finding
from .settings import Settings, Unit
from .study import Study, run_study
from .training import Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class EpsilonSettings(Settings):
    """Settings of ``chaos-ext reproduce epsilon``; its runs are named by their dtypes.

    Attributes:
        every: steps between readings.
    """

    every: int


class EpsilonTraining(Training):
    """A training with its twins, the control, and the tangent map along u."""

    def __init__(self, settings: EpsilonSettings, unit: Unit, data: Dataset) -> None:
        super().__init__(replace(settings, dtype=unit.run), unit, data)
        self.every = settings.every
        start = parameters_to_vector(self.model.parameters()).detach()
        generator = torch.Generator().manual_seed(derive_seed("epsilon", unit.seed))
        u = torch.randn(len(start), generator=generator, dtype=torch.float64, device="cpu").to(start.device)
        u /= u.norm()
        lengths = torch.tensor((0.0, *EPS), dtype=torch.float64, device=start.device)
        thetas = (start.double() + lengths[:, None] * u).to(start.dtype)
        self.twins, self.reordered = self._ensemble(thetas), self._ensemble(start[None].clone())
        self.tangent = ce.TangentMap(self.optimizer)
        self.Y = torch.zeros(self.tangent.size, 1, dtype=start.dtype, device=start.device)
        self.Y[: len(u), 0] = u

    def make_optimizer(self) -> Optimizer:
        """SGD that takes the gradient from the operator."""
        return ce.CGD(self.model.parameters(), lr=self.settings.lr, momentum=self.settings.momentum, prune=None)

    def _ensemble(self, thetas: Tensor) -> ce.Ensemble:
        opt = torch.optim.SGD(self.model.parameters(), lr=self.settings.lr, momentum=self.settings.momentum)
        return ce.Ensemble(self.model, self.loss_fn, opt, thetas)

    def measure_and_step(self, x: Tensor, y: Tensor) -> Sequence[float | int | None]:
        """Loss, accuracy and, where a reading is due, distances; then a step of everything."""
        op = ce.HessianOperator(self.model, self.loss_fn, x, y)
        assert isinstance(op.output, Tensor)
        loss, accuracy = op.loss.item(), (op.output.argmax(1) == y).double().mean().item()
        due = self.step % self.every == 0 or self.step == self.total - 1
        read = self._read() if due else [None] * len(COLUMNS)
        assert isinstance(self.optimizer, ce.CGD)
        self.tangent.apply_(op, self.Y)
        self.twins.step(x, y)
        self.reordered.step(x.flip(0), y.flip(0))
        self.optimizer.step(op)
        return (loss, accuracy, *read)

    def _read(self) -> list[float]:
        size = self.twins.thetas.shape[1]
        floor = self.reordered.distances(self.twins.thetas[0])
        return [float(self.Y[:size].double().norm()), float(floor[0]), *self.twins.distances()[1:].tolist()]

    def state(self) -> dict[str, Any]:
        """As of every training, and the twins, the control, Y u."""
        own = {"twins": self.twins.state_dict(), "reordered": self.reordered.state_dict(), "Y": self.Y}
        return {**super().state(), **own}

    def load(self, state: dict[str, Any]) -> None:
        """As of every training."""
        super().load(state)
        self.twins.load_state_dict(state["twins"])
        self.reordered.load_state_dict(state["reordered"])
        self.Y.copy_(state["Y"])

    def check(self, state: Any) -> None:
        """As of every training, and Y."""
        super().check(state)
        array("Y", state["Y"], tuple(self.Y.shape))


class Epsilon(Study):
    """A run in each dtype."""

    name, quick_steps, columns = NAME, QUICK_STEPS, COLUMNS

    def settings(self, args: argparse.Namespace, common: dict[str, Any]) -> Settings:
        """Both dtypes."""
        return EpsilonSettings(**common, runs=RUNS, every=args.every)

    def work(self, settings: Settings, unit: Unit, data: Dataset) -> EpsilonTraining:
        """Twins in the dtype of the run."""
        assert isinstance(settings, EpsilonSettings)
        return EpsilonTraining(settings, unit, data)

    def draw(self, name: str, metrics: Path, settings: Settings) -> Figure:
        """Growth over eps in both dtypes, its error, and how float32 departs."""
        return figure_epsilon(metrics, settings, EPS, tuple(DISTANCES))

    def findings(self, metrics: Path, settings: Settings) -> list[Finding]:
        """Where distances are proportional to eps, and what rounding does."""
        return findings_of(metrics)


run = functools.partial(run_study, Epsilon())
