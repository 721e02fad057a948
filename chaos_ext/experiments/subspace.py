"""Whether chaotic directions persist (appendix C.2): overlaps of subspaces, beside what their dimensions alone give.

The overlap of two subspaces with orthonormal columns A and B is ||A^T B||_F^2 / min(dim A, dim B). Of a fixed and a
random subspace of the P - z dimensions that some H sees it is max(dim A, dim B) / (P - z) on average, z being the
directions in the kernel of every Hessian (``structural``). Two runs of each seed:

- "eigenspaces": the negative and the positive eigenspace of the mini-batch Hessian of step t with those of step
  t + tau. That negative ones at t overlap with positive ones at t + tau, too, tells persistence of a sign from that of
  the directions in which mini-batches see anything at all.
- "expanding": eigenspaces at t with the directions that training until t has expanded: left singular vectors of the
  product of all tangent maps whose exponents are above zero by more than their tolerance.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import Dataset
from .findings import Finding
from .readings import READINGS, ReadTraining
from .settings import Settings, Unit
from .study import Study, run_study
from .subspace_figure import figure_subspace
from .subspace_findings import findings_of
from .subspace_options import NAME, QUICK_COLUMNS, QUICK_STEPS
from .subspace_run import EigenspaceTraining, ExpandingTraining, SubspaceSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {
    "pair": "the subspaces: negative-negative, positive-positive, negative-positive (the former of step t - tau, the "
    "latter of step t), negative-expanding, positive-expanding",
    "tau": "steps between the two; empty of expanding ones",
    "dim_a": "dimension of the first",
    "dim_b": "dimension of the second",
    "overlap": "||A^T B||_F^2 / min(dim_a, dim_b); empty where one of them has no dimension",
    "baseline": "its mean for random subspaces of the space that some Hessian sees",
}


class Subspace(Study):
    """Eigenspaces over time, and with what training has expanded."""

    name, quick_steps = NAME, QUICK_STEPS
    head, columns = READINGS, COLUMNS

    def settings(self, args: argparse.Namespace, common: dict[str, Any]) -> Settings:
        """The parts that were asked for."""
        k = QUICK_COLUMNS if args.quick and args.k is None else args.k
        every = args.every or (4 if args.quick else 50)
        return SubspaceSettings(**common, runs=args.parts, tau=args.tau, every=every, vectors=args.vectors, k=k)

    def refusal(self, args: argparse.Namespace, data: Dataset) -> str | None:
        """There is something to do."""
        if not args.parts:
            return "argument --parts: expected eigenspaces or expanding, or both, got none"
        return "argument --tau: expected integers of at least 1, got 0" if 0 in args.tau else None

    def work(self, settings: Settings, unit: Unit, data: Dataset) -> ReadTraining:
        """The part that the run is named by."""
        assert isinstance(settings, SubspaceSettings)
        make = EigenspaceTraining if unit.run == "eigenspaces" else ExpandingTraining
        return make(settings, unit, data)

    def draw(self, name: str, metrics: Path, settings: Settings) -> Figure:
        """Overlaps over training and tau, with their baselines."""
        return figure_subspace(metrics, settings)

    def findings(self, metrics: Path, settings: Settings) -> list[Finding]:
        """Whether overlaps are above their baselines, for each tau."""
        assert isinstance(settings, SubspaceSettings)
        return findings_of(metrics, settings.runs, settings.tau, restricted=settings.k is not None)


run = functools.partial(run_study, Subspace())
