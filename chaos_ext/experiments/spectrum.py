"""The spectrum of the mini-batch Hessian during training (appendix B.2): counts, gradient, histograms, and 2/lr.

At the paper's learning rate no eigenvalue comes near 2/lr, so that chaotic means negative; further runs at larger ones
show the other kind, too.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import chaos_ext as ce

from ..data import Dataset
from . import pruned
from .findings import Finding, verdict
from .pruned import Pruned, PrunedTraining
from .report import Records
from .rows import SPECTRAL
from .series import columns, rank_correlation
from .settings import Settings, Unit
from .spectrum_figure import figure_spectrum
from .spectrum_options import NAME, QUICK_STEPS
from .study import Study, run_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# |lambda| from 1e-8 to 1e4 in half decades; the first and last bins are open.
EDGES = tuple(10.0 ** (i / 2) for i in range(-16, 9))
_BINS = len(EDGES) + 1
HISTOGRAM = {
    f"{sign}_{i:02d}": f"{sign} eigenvalues with |lambda| in bin {i} of the histogram, at the first step of an epoch"
    for sign in ("negative", "positive")
    for i in range(_BINS)
}
COLUMNS = {**SPECTRAL, "n_above": "eigenvalues above 2/lr", **HISTOGRAM}


@dataclass(frozen=True, kw_only=True)
class SpectrumSettings(Settings):
    """Settings of ``chaos-ext reproduce spectrum``; its runs are named by their learning rates."""


class SpectrumTraining(PrunedTraining):
    """Plain SGD at some learning rate."""

    def measure_and_step(self, x: Tensor, y: Tensor) -> Sequence[float | int | None]:
        """As of ``PrunedTraining``, and what concerns 2/lr and histograms."""
        wanted = self.step % self.order.steps_per_epoch == 0
        values = super().measure_and_step(x, y)[:-1]
        eigenvalues, above = self.eigenvalues, 2 / self.what.lr
        counts = _histogram(eigenvalues, self.zero_threshold) if wanted else [None] * (2 * _BINS)
        return (*values, int((eigenvalues > above).sum()), *counts)

    def take_step(self, spec: ce.Spectrum, op: ce.HessianOperator) -> float:
        """Keeps the eigenvalues."""
        self.eigenvalues, self.zero_threshold = spec.eigenvalues.double().cpu(), float(spec.zero_threshold)
        return super().take_step(spec, op)


def _histogram(eigenvalues: Tensor, threshold: float) -> list[int]:
    edges = torch.tensor(EDGES, dtype=torch.float64, device="cpu")
    kept = eigenvalues[eigenvalues.abs() > threshold]
    counts: list[int] = []
    for part in (-kept[kept < 0], kept[kept > 0]):
        counts += torch.bincount(torch.bucketize(part, edges), minlength=_BINS).tolist()
    return counts


class SpectrumStudy(Study):
    """Runs named ``lr=...`` of plain SGD."""

    name, quick_steps = NAME, QUICK_STEPS
    columns, means = COLUMNS, (*SPECTRAL, "n_above")
    shown = "n_above", "n above 2/lr"

    def settings(self, args: argparse.Namespace, common: dict[str, Any]) -> Settings:
        """One run a learning rate."""
        rates = dict.fromkeys((args.lr, *args.more_lr))
        return SpectrumSettings(**common, runs=tuple(f"lr={lr:g}" for lr in rates))

    def work(self, settings: Settings, unit: Unit, data: Dataset) -> SpectrumTraining:
        """At the learning rate that the run is named by."""
        return SpectrumTraining(settings, unit, data, Pruned(float(unit.run.partition("=")[2])))

    def draw(self, name: str, metrics: Path, settings: Settings) -> Figure:
        """Counts, shares, extreme eigenvalues and histograms, of the first seed."""
        return figure_spectrum(metrics, settings, EDGES, tuple(HISTOGRAM))

    def findings(self, metrics: Path, settings: Settings) -> list[Finding]:
        """Of the paper's claims, at the first learning rate; and of 2/lr at the others."""
        first, *others = settings.runs
        names = ("step", "n_negative", "n_positive", "share_negative", "share_positive", "n_above")
        found = columns(metrics, *names)
        own = list(found[first].values())
        more = [_passing(run, list(found[run].values())) for run in others]
        return [_always_negative(own), _trends(own), _shares(own), *more]

    def describe(self, record: dict[str, Any]) -> dict[str, Any]:
        """How close to the zero tolerance a run came."""
        return pruned.describe(record)

    def remarks(self, records: Records) -> dict[str, Any]:
        """The zero tolerance, and the bins of the histograms."""
        return {**pruned.remarks(records), "histogram_edges": EDGES}


def _always_negative(seeds: list[Tensor]) -> Finding:
    shares = [float((s[:, 1] > 0).double().mean()) for s in seeds]
    return Finding(
        claim="The mini-batch Hessian has negative eigenvalues throughout training",
        where="appendix B.2",
        criterion="at 95 % of the steps or more, in every seed",
        numbers=", ".join(f"{s:.1%}" for s in shares),
        verdict=verdict([s >= 0.95 for s in shares], len(shares)),
    )


def _trends(seeds: list[Tensor]) -> Finding:
    rho = [(rank_correlation(s[:, 1], s[:, 0]), rank_correlation(s[:, 2], s[:, 0])) for s in seeds]
    return Finding(
        claim="Negative eigenvalues become fewer during training, positive ones more",
        where="appendix B.2",
        criterion="Spearman's rank correlation with t below -0.5 of one, above 0.5 of the other, in 4 of 5 seeds",
        numbers="; ".join(f"{a:.2f}, {b:.2f}" for a, b in rho),
        verdict=verdict([a < -0.5 and b > 0.5 for a, b in rho], max(1, math.ceil(0.8 * len(rho)))),
    )


def _shares(seeds: list[Tensor]) -> Finding:
    most = [float((s[:, 4] > s[:, 3]).double().mean()) for s in seeds]
    return Finding(
        claim="Most of the gradient lies in positive directions",
        where="appendix B.2",
        criterion="share of ||g||^2 in positive directions above that in negative ones at most steps, in every seed",
        numbers=", ".join(f"{m:.1%} of steps" for m in most),
        verdict=verdict([m > 0.5 for m in most], len(most)),
    )


def _passing(run: str, seeds: list[Tensor]) -> Finding:
    shares = [float((s[:, 5] > 0).double().mean()) for s in seeds]
    return Finding(
        claim=f"At {run} eigenvalues above 2/lr occur: chaotic is more than negative",
        where="control, not in the paper",
        criterion="at some step of every seed",
        numbers=", ".join(f"{s:.2%} of steps" for s in shares),
        verdict=verdict([s > 0 for s in shares], len(shares)),
    )


run = functools.partial(run_study, SpectrumStudy())
