"""Curvature along fixed axes during training (appendix B.3.1): negative before positive.

The axes are eigenvectors of the Hessian of one reference batch, those of its largest eigenvalues at the end of training
or of its most negative ones at the start, and, as a control, random directions. Those of the end are found by a first
training; a second one, the same bit for bit, reads v^T H_t v along them.

An axis that is chosen for being negative at the start can hardly but rise. So there are mirror images, too: axes chosen
for the same at the other end of training. Were it selection alone, they would fall as often as the others rise.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import Dataset
from . import report
from .axes_figure import figure_axes
from .axes_findings import findings_of
from .axes_options import NAME, QUICK_STEPS
from .axes_run import AxesSettings, AxesTraining, passes_of
from .findings import Finding
from .readings import READINGS, refused_reference
from .settings import Settings, Unit
from .study import Study, run_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The sets, their mirror images, and the control: named by which end of the spectrum, and when.
RUNS = ("top-end", "negative-start", "random", "top-start", "negative-end")
COLUMNS = {
    "axis": "number of the axis in its set, from 0; of eigenvectors by |eigenvalue|, the largest first",
    "curvature": "v^T H v along it, H of the reference batch at theta(t)",
}


class Axes(Study):
    """Sets of axes, a run each."""

    name, quick_steps = NAME, QUICK_STEPS
    head, columns = READINGS, COLUMNS

    def settings(self, args: argparse.Namespace, common: dict[str, Any]) -> Settings:
        """All sets."""
        every = args.every or (10 if args.quick else 100)
        return AxesSettings(**common, runs=RUNS, k=args.k, reference=args.reference, every=every)

    def refusal(self, args: argparse.Namespace, data: Dataset) -> str | None:
        """The reference batch is of the training split."""
        return refused_reference(args.reference, data)

    def steps(self, settings: Settings, samples: int) -> int:
        """Two trainings where the axes are those of the end."""
        return settings.steps(samples) * sum(passes_of(unit.run) for unit in settings.units)

    def work(self, settings: Settings, unit: Unit, data: Dataset) -> AxesTraining:
        """Along the set that the run is named by."""
        assert isinstance(settings, AxesSettings)
        return AxesTraining(settings, unit, data)

    def draw(self, name: str, metrics: Path, settings: Settings) -> Figure:
        """Curvature along the axes of the first seed, and how many are negative."""
        return figure_axes(metrics, settings)

    def findings(self, metrics: Path, settings: Settings) -> list[Finding]:
        """Signs of curvature at the start and the end."""
        return findings_of(metrics)

    def describe(self, record: dict[str, Any]) -> dict[str, Any]:
        """Where training ended: the same for all runs of a seed."""
        return {"end": record["end"]}

    def remarks(self, records: report.Records) -> dict[str, Any]:
        """Whether all trainings of a seed came to the same parameters.

        Raises:
            RuntimeError: they did not; the axes must not be compared.
        """
        ends = {(unit.seed, record["end"]) for unit, record in records.items() if record["failure"] is None}
        if len(ends) != len({seed for seed, _ in ends}):
            raise RuntimeError("runs of a seed ended in different parameters, though all train alike")
        return {"replayed_bit_for_bit": True}


run = functools.partial(run_study, Axes())
