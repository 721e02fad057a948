"""One set of axes of ``chaos-ext reproduce axes``: a training that reads curvature along them, and one before it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import chaos_ext as ce

from ..base.contents import array, count, require
from ..data import Dataset
from ..data.batches import derive_seed, tensor_bytes
from .readings import ReadTraining, Rows, reference_operator
from .settings import Settings, Unit
from .training import build_model


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
