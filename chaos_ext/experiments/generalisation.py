"""The generalisation gap against measures of chaos, over learning rates, batch sizes and seeds: no claim of the paper.

Each run gives one row, at its end: losses over both whole splits, and what is said to go with their gap. The training
loss and the batch size are measures, too, as controls: what goes with the one only tells how far training has come, and
what goes with the other may only count the samples that a mini-batch Hessian has its directions from.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chaos_ext as ce

from ..base.contents import number, require
from ..data import Dataset
from .findings import Finding
from .followed import FollowedTraining
from .generalisation_findings import figure_generalisation, findings_of
from .generalisation_options import NAME, QUICK_STEPS
from .readings import READINGS, Rows, reference_operator, refused_reference
from .settings import Settings, Unit
from .study import Study, run_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BATCHES = 8  # of which the sharpness dimension is taken
COLUMNS = {
    "lr": "learning rate",
    "batch_size": "samples per step",
    "train_loss": "mean loss over the training split",
    "train_accuracy": "accuracy over it",
    "test_loss": "mean loss over the test split",
    "test_accuracy": "accuracy over it",
    "gap": "test_loss - train_loss",
    "accuracy_gap": "train_accuracy - test_accuracy",
    "lambda_1": "largest Lyapunov exponent of the training, nats per step",
    "sum_positive": "sum of the positive ones of its k leading exponents",
    "sharpness_dimension": f"of {_BATCHES} mini-batches at the end, without the exponents that are zero in each",
    "n_chaotic": "mean number of chaotic directions of the mini-batch Hessian, over steps looked at",
    "share_chaotic": "mean share of the squared gradient norm in them",
    "sharpness": "largest eigenvalue of the reference batch at the end over 2 / lr",
}


@dataclass(frozen=True, kw_only=True)
class GeneralisationSettings(Settings):
    """Settings of ``chaos-ext reproduce generalisation``; its runs are named by learning rate and batch size.

    Attributes:
        k: Lyapunov exponents.
        every: steps between looks at the spectrum.
        reference: samples of the reference batch.
    """

    k: int
    every: int
    reference: int


def own_settings(settings: Settings, run: str) -> Settings:
    """Those of one training, by the name of its run."""
    lr, batch = run.removeprefix("lr").split("-batch")
    return replace(settings, lr=float(lr), batch_size=int(batch))


class GeneralisationTraining(FollowedTraining):
    """A training that is measured at its end.

    Attributes:
        looks: sums over steps looked at of chaotic directions and their share, and how many these are.
    """

    plain = (*FollowedTraining.plain, "looks")

    def __init__(self, settings: GeneralisationSettings, unit: Unit, data: Dataset) -> None:
        own = own_settings(settings, unit.run)
        self.looks = [0.0, 0.0, 0.0]
        self.reference, self.look_every = settings.reference, settings.every
        total = own.steps(len(data.y_train))
        super().__init__(own, unit, data, total, {"k": settings.k, "seed": unit.seed})

    def due(self, t: int) -> bool:
        """At the end only."""
        return False

    def look(self, op: ce.HessianOperator) -> None:
        """At the spectrum, now and then."""
        if self.step % self.look_every == 0:
            s = ce.spectral_summary(ce.directions(op), self.settings.lr)
            share = s.share_chaotic if s.share_chaotic == s.share_chaotic else 0.0  # NaN: there is no gradient
            self.looks = [a + b for a, b in zip(self.looks, (s.n_chaotic, share, 1.0), strict=True)]

    def read(self, t: int) -> Rows:
        """One row."""
        d, s = self.batch_data, self.settings
        train, test = self.evaluate_on(d.x_train, d.y_train), self.evaluate_on(d.x_test, d.y_test)
        exponents = self.analyzer.exponents()
        n, share = (v / self.looks[2] for v in self.looks[:2])
        top = ce.spectrum(reference_operator(self, self.reference), k=1, which="largest")
        found = (test[0] - train[0], train[1] - test[1], float(exponents[0]), self.analyzer.sum_of_positive_exponents())
        sharpness = float(top.eigenvalues[-1]) * s.lr / 2
        return [(s.lr, s.batch_size, *train, *test, *found, self._dimension(), n, share, sharpness)]

    def _dimension(self) -> float:
        """Of mini-batches of the next epoch."""
        d, device = self.batch_data, self.settings.device
        chosen = self.order.epoch(self.total // self.order.steps_per_epoch + 1)[:_BATCHES]
        operators = (
            ce.HessianOperator(self.model, self.loss_fn, d.x_train[i.to(device)], d.y_train[i.to(device)])
            for i in chosen
        )
        return ce.sharpness_dimension((ce.spectrum(op) for op in operators), self.settings.lr).without_zeros

    def check(self, state: Any) -> None:
        """As of every one that is followed, and the sums."""
        super().check(state)
        looks = state["looks"]
        require(isinstance(looks, list) and len(looks) == 3, "looks", "three sums", looks)
        for value in looks:
            number("looks", value)


class Generalisation(Study):
    """Runs named ``lrA-batchN``."""

    name, quick_steps = NAME, QUICK_STEPS
    head, columns = READINGS, COLUMNS

    def settings(self, args: argparse.Namespace, common: dict[str, Any]) -> Settings:
        """Every learning rate with every batch size."""
        rates, sizes = (args.lr, *args.more_lr), (args.batch_size, *args.more_batch_size)
        runs = dict.fromkeys(f"lr{lr!r}-batch{n}" for lr in sorted(rates) for n in sorted(sizes))
        every = args.every or (10 if args.quick else 100)
        return GeneralisationSettings(**common, runs=tuple(runs), k=args.k, every=every, reference=args.reference)

    def refusal(self, args: argparse.Namespace, data: Dataset) -> str | None:
        """Batches are of the training split."""
        most = len(data.y_train)
        if max(args.more_batch_size) > most:
            return f"argument --more-batch-size: expected at most {most} samples, got {max(args.more_batch_size)}"
        return refused_reference(args.reference, data)

    def steps(self, settings: Settings, samples: int) -> int:
        """More with smaller batches."""
        return sum(own_settings(settings, unit.run).steps(samples) for unit in settings.units)

    def batches(self, unit: Unit) -> str:
        """Those of one batch size are the same."""
        return f"{unit.seed}, {unit.run.partition('-')[2]}"

    def work(self, settings: Settings, unit: Unit, data: Dataset) -> GeneralisationTraining:
        """As the run is named."""
        assert isinstance(settings, GeneralisationSettings)
        return GeneralisationTraining(settings, unit, data)

    def draw(self, name: str, metrics: Path, settings: Settings) -> Figure:
        """The gap over each measure."""
        return figure_generalisation(metrics, settings)

    def findings(self, metrics: Path, settings: Settings) -> list[Finding]:
        """Rank correlations of the gap with each measure."""
        return findings_of(metrics)


run = functools.partial(run_study, Generalisation())
