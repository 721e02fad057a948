"""The trainings of ``chaos-ext reproduce subspace``, which compare subspaces on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import chaos_ext as ce

from ..base.contents import array, require
from ..data import Dataset
from .followed import FollowedTraining
from .readings import ReadTraining, Rows
from .settings import Settings, Unit
from .structural import structural_zeros
from .training import Training, build_model

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
        found[name] = spec.eigenvectors(mask)
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
