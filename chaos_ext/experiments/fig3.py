"""Figure 3: models displaced before training, along what it will stretch and shrink, and how far apart they end.

The finite-time spectrum of a whole training gives the directions: its right singular vectors. Twins are displaced along
them by some eps and trained on the same batches. Linear theory bounds their distance by eps exp(lambda_1(t) t) from
above and eps exp(lambda_P(t) t) from below.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .fig3_figure import figure_twins
from .fig3_findings import findings_of
from .fig3_options import NAME, QUICK_STEPS
from .fig3_run import Fig3Settings, column, labels
from .findings import Finding
from .twin_study import Seed, TwinStudy, run_twin_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {
    "seed": "decides initialisation, batches and drawn directions",
    "step": "t: optimizer steps taken",
    "strategy": "direction of the displacement",
    "eps": "its length",
    "distance": "of the twin from the model that was not displaced",
    "along": "component of the difference along the displacement",
    "upper": "eps exp(lambda_1(t) t), where it was read",
    "lower": "eps exp(lambda_P(t) t), where it was read",
}


class Fig3(TwinStudy):
    """Twins at a few eps, with the bounds of linear theory."""

    name, quick_steps, columns = NAME, QUICK_STEPS, COLUMNS

    def rows(self, settings: Fig3Settings, seed: Seed) -> Iterator[str]:
        """A line for each twin at each reading."""
        return bounded_rows(settings, seed)

    def draw(self, metrics: Path, settings: Fig3Settings) -> Figure:
        """Distances with their bounds, and how eps matters."""
        return figure_twins(metrics, settings)

    def findings(self, metrics: Path, settings: Fig3Settings) -> list[Finding]:
        """Bounds, growth, and the law by which twins part."""
        return findings_of(metrics, settings)


def bounded_rows(settings: Fig3Settings, seed: Seed) -> Iterator[str]:
    """A line for each twin at each reading, with the bounds where extremes were read at the same step."""
    with seed.extremes.open(newline="") as f:
        ends = {r["step"]: (float(r["largest"]), float(r["smallest"])) for r in csv.DictReader(f)}
    with seed.twins.open(newline="") as f:
        for row in csv.DictReader(f):
            for strategy, eps in labels(settings):
                t = int(row["step"])
                growth = [math.exp(v * t) for v in ends.get(row["step"], ())]
                bounds = [f"{eps * g!r}" for g in growth] if t else [f"{eps!r}"] * 2
                read = [row[column(what, strategy, eps)] for what in ("distance", "along")]
                yield f"{seed.seed},{t},{strategy},{eps!r},{','.join([*read, *(bounds or ('', ''))])}\n"


run = functools.partial(run_twin_study, Fig3())
