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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import chaos_ext as ce

from ..base.contents import array, require
from ..data import Dataset
from .findings import Finding
from .followed import FollowedTraining
from .readings import READINGS, ReadTraining, Rows
from .settings import Settings, Unit
from .structural import structural_zeros
from .study import Study, run_study
from .subspace_figure import figure_subspace
from .subspace_findings import findings_of
from .subspace_options import NAME, QUICK_COLUMNS, QUICK_STEPS
from .training import Training, build_model

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
_PAIRS = (("negative", "negative"), ("positive", "positive"), ("negative", "positive"))


@dataclass(frozen=True, kw_only=True)
class SubspaceSettings(Settings):
    """Settings of ``chaos-ext reproduce subspace``.

    Attributes:
        tau: steps between eigenspaces.
        every: steps between the first ones.
        vectors: readings of the expanding directions.
        k: columns of the finite-time map, or None for all.
    """

    tau: tuple[int, ...]
    every: int
    vectors: int
    k: int | None


def eigenspaces(op: ce.HessianOperator) -> dict[str, Tensor]:
    """Orthonormal columns of the negative and of the positive eigenvectors, each [P, dim]."""
    spec, found = ce.spectrum(op), {}
    for name in ("negative", "positive"):
        mask = ce.select(spec, 0.0, name)
        found[name] = spec.eigenvectors(mask) if bool(mask.any()) else op.gradient.new_empty(spec.size, 0)
    return found


def compared(A: Tensor, B: Tensor, zeros: int) -> tuple[int, int, float | None, float]:
    """Dimensions, overlap and baseline of orthonormal columns, in a space of which ``zeros`` directions are no part."""
    a, b = A.shape[1], B.shape[1]
    overlap = float((A.double().T @ B.double()).square().sum()) / min(a, b) if a and b else None
    return a, b, overlap, max(a, b) / (len(A) - zeros)


def batch_of(training: Training, t: int) -> tuple[Tensor, Tensor]:
    """The mini-batch of step t."""
    epoch, position = divmod(t, training.order.steps_per_epoch)
    index = training.order.epoch(epoch)[position].to(training.settings.device)
    return training.batch_data.x_train[index], training.batch_data.y_train[index]


class EigenspaceTraining(ReadTraining):
    """A training that compares eigenspaces with those of tau steps ago.

    Attributes:
        past: step -> theta, of the steps that later ones are compared with.
    """

    def __init__(self, settings: SubspaceSettings, unit: Unit, data: Dataset) -> None:
        super().__init__(settings, unit, data, settings.every)
        self.tau = settings.tau
        self.zeros = structural_zeros(self.model, data.x_train)
        self.past: dict[int, Tensor] = {}
        self.then = build_model(settings, unit.seed)  # holds the theta of some step before

    def before(self, t: int) -> Iterator[tuple[int, int]]:
        """tau and t - tau where the latter is a first step."""
        return ((tau, t - tau) for tau in self.tau if t >= tau and (t - tau) % self.every == 0)

    def due(self, t: int) -> bool:
        """Also at first steps, of which theta is kept."""
        return t % self.every == 0 or any(self.before(t))

    def read(self, t: int) -> Rows:
        """A row for every pair and tau."""
        found: Rows = []
        pairs = list(self.before(t))
        if pairs:
            now = eigenspaces(self._operator(self.model, t))
        for tau, s in pairs:
            vector_to_parameters(self.past[s], self.then.parameters())
            then = eigenspaces(self._operator(self.then, s))
            found += [(f"{a}-{b}", tau, *compared(then[a], now[b], self.zeros)) for a, b in _PAIRS]
        if t % self.every == 0:
            self.past[t] = parameters_to_vector(self.model.parameters()).detach().clone()
        self.past = {s: theta for s, theta in self.past.items() if s > t - max(self.tau)}
        return found

    def _operator(self, model: torch.nn.Module, t: int) -> ce.HessianOperator:
        return ce.HessianOperator(model, self.loss_fn, *batch_of(self, t))

    def state(self) -> dict[str, Any]:
        """As of every training, and what later steps are compared with."""
        return {**super().state(), "past": dict(self.past)}

    def load(self, state: dict[str, Any]) -> None:
        """As of every training, and what later steps are compared with."""
        super().load(state)
        self.past = {s: theta.to(self.settings.device) for s, theta in state["past"].items()}

    def check(self, state: Any) -> None:
        """As of every training, and the steps that are needed."""
        super().check(state)
        past, size = state["past"], sum(p.numel() for p in self.model.parameters())
        require(isinstance(past, dict), "past", "a dict", past)
        needed = range(0, state["step"], self.every)
        missing = [s for s in needed if s >= state["step"] - max(self.tau) + 1 and s not in past]
        require(not missing, "past", "every step that is needed", f"none of {missing}")
        for theta in past.values():
            array("past", theta, (size,))


class ExpandingTraining(FollowedTraining):
    """A training that compares eigenspaces with what it has expanded so far."""

    def __init__(self, settings: SubspaceSettings, unit: Unit, data: Dataset) -> None:
        total = settings.steps(len(data.y_train))
        self.moments = {round(total * (i + 1) / settings.vectors) for i in range(settings.vectors)} - {0}
        state = "theta" if settings.momentum else "auto"
        # Extremes on the way are not asked for.
        options = {"k": settings.k, "method": "svd", "every": total + 1, "state": state, "seed": unit.seed}
        super().__init__(settings, unit, data, total, options)
        self.zeros = structural_zeros(self.model, data.x_train)

    def due(self, t: int) -> bool:
        """At so many moments."""
        return t in self.moments

    def read(self, t: int) -> Rows:
        """Both eigenspaces with the expanding directions."""
        ends = self.analyzer.singular_vectors("left")
        spec = self.analyzer.finite_time()
        grown = ends[:, ~spec.neutral & (spec.exponents > 0)]
        own = eigenspaces(ce.HessianOperator(self.model, self.loss_fn, *batch_of(self, t)))
        return [(f"{name}-expanding", None, *compared(own[name], grown, self.zeros)) for name in own]


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
