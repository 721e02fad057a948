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
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import chaos_ext as ce

from ..base.contents import array, count, require
from ..data import Dataset
from ..data.batches import derive_seed, tensor_bytes
from . import report
from .axes_figure import figure_axes
from .axes_findings import findings_of
from .axes_options import NAME, QUICK_STEPS
from .findings import Finding
from .readings import READINGS, ReadTraining, Rows, reference_operator, refused_reference
from .settings import Settings, Unit
from .study import Study, run_study
from .training import build_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The sets, their mirror images, and the control: named by which end of the spectrum, and when.
RUNS = ("top-end", "negative-start", "random", "top-start", "negative-end")
COLUMNS = {
    "axis": "number of the axis in its set, from 0; of eigenvectors by |eigenvalue|, the largest first",
    "curvature": "v^T H v along it, H of the reference batch at theta(t)",
}


@dataclass(frozen=True, kw_only=True)
class AxesSettings(Settings):
    """Settings of ``chaos-ext reproduce axes``; its runs are sets of axes.

    Attributes:
        k: axes of each set.
        reference: samples of the reference batch.
        every: steps between readings.
    """

    k: int
    reference: int
    every: int


class AxesTraining(ReadTraining):
    """A training that reads curvature along axes; those of the end take a training before it.

    Attributes:
        passes: trainings that came to their end.
        axes: columns [P, k], once they are known.
        end: hash of the parameters at the end of the first training, or "".
    """

    plain = (*ReadTraining.plain, "passes", "end")

    def __init__(self, settings: AxesSettings, unit: Unit, data: Dataset) -> None:
        self.passes, self.end = 0, ""
        self.axes: Tensor | None = None
        self.k, self.reference = settings.k, settings.reference
        super().__init__(settings, unit, data, settings.every)

    @property
    def first(self) -> bool:
        """Whether this is the training that only finds the axes."""
        return passes_of(self.unit.run) == 2 and not self.passes

    @property
    def taken(self) -> int:
        """Steps of all passes."""
        return self.step + self.passes * self.total

    def advance(self) -> bytes:
        """One step; after the last one of the first pass back to the start.

        Raises:
            RuntimeError: the second pass ended elsewhere.
        """
        found = super().advance()
        if self.failure is None and self.step == self.total:
            self._end_pass(self._hash_of_theta())
        return found

    def _end_pass(self, end: str) -> None:
        if self.first:
            self.axes, self.end, self.passes, self.step = self._found_axes(), end, 1, 0
            self.epoch_hashes = []
            self.model = build_model(self.settings, self.unit.seed)
            self.optimizer = self.make_optimizer()
        elif self.end not in ("", end):
            raise RuntimeError(
                f"{self.unit.name}: trained again it ended elsewhere; expected parameters with hash {self.end}, got "
                f"{end}; the axes are not those of this training (give --threads 1, or --device cpu)"
            )
        else:
            self.end = end

    def _hash_of_theta(self) -> str:
        sha = hashlib.sha256()
        for p in self.model.parameters():
            sha.update(tensor_bytes(p))
        return sha.hexdigest()[:16]

    def read(self, t: int) -> Rows:
        """The curvature along every axis."""
        if self.first:
            return []
        if self.axes is None:
            self.axes = self._found_axes()
        V = self.axes
        curvatures = (V * (reference_operator(self, self.reference) @ V)).double().sum(0)
        return list(enumerate(curvatures.tolist()))

    def _found_axes(self) -> Tensor:
        """The axes of this set, of theta now."""
        op = reference_operator(self, self.reference)
        which = self.unit.run.partition("-")[0]
        if which == "random":
            generator = torch.Generator().manual_seed(derive_seed("axes", self.unit.seed))
            drawn = torch.randn(op.shape[0], self.k, generator=generator, dtype=torch.float64, device="cpu")
            return torch.linalg.qr(drawn).Q.to(op.device, op.dtype)
        spec = ce.spectrum(op, k=self.k, which="largest" if which == "top" else "smallest")
        order = spec.eigenvalues.argsort(descending=which == "top")
        return spec.eigenvectors(order)

    def state(self) -> dict[str, Any]:
        """As of every training, and the axes."""
        return {**super().state(), "axes": self.axes}

    def load(self, state: dict[str, Any]) -> None:
        """As of every training, and the axes."""
        super().load(state)
        self.axes = state["axes"]

    def check(self, state: Any) -> None:
        """As of every training, and the passes and axes."""
        super().check(state)
        count("passes", state["passes"], 0, passes_of(self.unit.run) - 1)
        require(isinstance(state["end"], str), "end", "a hash", state["end"])
        if state["axes"] is not None:
            array("axes", state["axes"], (None, self.k))
        require(state["axes"] is not None or not state["written"], "axes", "axes of the rows", None)


def passes_of(run: str) -> int:
    """Trainings that a set of axes takes."""
    return 2 if run.endswith("-end") else 1


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
