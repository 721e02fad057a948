"""The leading Lyapunov exponents of a training run (appendix C.1): so far, and of each stretch of it.

Exponents at time t are means since the start, so that they remember its first steps; local ones, of the steps between
two readings, do not. Two controls train alike: "restart" begins with other deviations, which must come to the same
exponents but for what alignment has cost, of order 1/t; "svd" takes the singular values of the product of all maps on
the deviations of "qr". These two measure one volume, so that the sums of their k exponents are equal, and the largest
singular value is at least as large as what the first deviation has grown by.

In a run as short as the paper's, alignment costs as much as there is growth: a random deviation grows by less than the
directions of ``chaos-ext reproduce finite-time``, whose exponents are those of the whole map.
"""

from __future__ import annotations

import argparse
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import chaos_ext as ce

from ..base.contents import array, count, require
from ..data import Dataset
from ..data.batches import derive_seed
from .exponents_figure import figure_exponents
from .exponents_findings import findings_of
from .exponents_options import NAME, QUICK_STEPS
from .findings import Finding
from .followed import FollowedTraining
from .readings import READINGS, Rows
from .settings import Settings, Unit
from .study import Study, run_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = ("qr", "restart", "svd")
COLUMNS = {
    "epoch": "passes over the training split until then",
    "loss": "mean loss of the mini-batches since the reading before",
    "index": "of the exponent, from 1, the largest first",
    "exponent": "mean growth since the start, in nats per step",
    "error": "one standard error by block means, of qr and restart; empty with too few blocks",
    "local": "growth of the index-th exponent times t since the reading before, in nats per step",
}


@dataclass(frozen=True, kw_only=True)
class ExponentsSettings(Settings):
    """Settings of ``chaos-ext reproduce exponents``.

    Attributes:
        k: how many exponents.
        every: steps between readings.
    """

    k: int
    every: int


class ExponentsTraining(FollowedTraining):
    """A training whose exponents are read.

    Attributes:
        losses: sum over the steps since the last reading, and how many these are.
        growth: t times the exponents at the last reading, float64 [k].
    """

    plain = (*FollowedTraining.plain, "losses")

    def __init__(self, settings: ExponentsSettings, unit: Unit, data: Dataset) -> None:
        self.losses: list[float | int] = [0.0, 0]
        self.growth = torch.zeros(settings.k, dtype=torch.float64, device="cpu")
        seed = derive_seed("restart", unit.seed) if unit.run == "restart" else unit.seed
        options = {"method": "svd", "every": settings.every} if unit.run == "svd" else {}
        super().__init__(settings, unit, data, settings.every, {"k": settings.k, "seed": seed, **options})

    def look(self, op: ce.HessianOperator) -> None:
        """Adds the loss of its batch."""
        self.losses = [self.losses[0] + op.loss.item(), int(self.losses[1]) + 1]

    def read(self, t: int) -> Rows:
        """Every exponent; none before the first step."""
        if not t:
            return []
        total, steps = self.losses
        exponents = self.analyzer.exponents().cpu()
        local = (exponents * t - self.growth) / steps
        self.growth, self.losses = exponents * t, [0.0, 0]
        errors = self.analyzer.errors().tolist() if self.unit.run != "svd" else [math.nan] * len(local)
        head = (t / self.order.steps_per_epoch, total / steps)
        return [
            (*head, i + 1, value, None if math.isnan(error) else error, now)
            for i, (value, error, now) in enumerate(zip(exponents.tolist(), errors, local.tolist(), strict=True))
        ]

    def state(self) -> dict[str, Any]:
        """As of every one that is followed, and the growth."""
        return {**super().state(), "growth": self.growth}

    def load(self, state: dict[str, Any]) -> None:
        """As of every one that is followed, and the growth."""
        super().load(state)
        self.growth = state["growth"]

    def check(self, state: Any) -> None:
        """As of every training, and the sums."""
        super().check(state)
        array("growth", state["growth"], (len(self.growth),))
        losses = state["losses"]
        require(isinstance(losses, list) and len(losses) == 2, "losses", "a sum and a count", losses)
        count("losses", losses[1], 0, self.every)


class Exponents(Study):
    """One training with its deviations, and the controls."""

    name, quick_steps = NAME, QUICK_STEPS
    head, columns = READINGS, COLUMNS

    def settings(self, args: argparse.Namespace, common: dict[str, Any]) -> Settings:
        """All three runs."""
        return ExponentsSettings(**common, runs=RUNS, k=args.k, every=args.every or (5 if args.quick else 100))

    def work(self, settings: Settings, unit: Unit, data: Dataset) -> ExponentsTraining:
        """By the method that the run is named by."""
        assert isinstance(settings, ExponentsSettings)
        return ExponentsTraining(settings, unit, data)

    def draw(self, name: str, metrics: Path, settings: Settings) -> Figure:
        """Exponents so far, local ones, and the loss."""
        return figure_exponents(metrics, settings)

    def findings(self, metrics: Path, settings: Settings) -> list[Finding]:
        """Whether the first one is positive and falls, where it comes from, and whether the controls agree."""
        return findings_of(metrics, settings)


run = functools.partial(run_study, Exponents())
