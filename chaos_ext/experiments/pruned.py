"""Training with directions pruned, and its controls: what fig1 and fig2 do at each step.

A control takes as much out of the gradient g as its set would at the same theta, but in directions drawn at random:

The set "bulk" is all but the k dominant directions; its dimension and share are what these leave.

- ``SET-rank``: the component in a uniformly random subspace of as many dimensions n as the set has. Of ||g||^2 it has
  the share b ~ Beta(n / 2, (P - n) / 2);
- ``SET-energy``: the component in a random subspace that has the same share s of ||g||^2 as the set. Its first vector
  is sqrt(s) g / ||g|| + sqrt(1 - s) xi, xi a random unit vector orthogonal to g; the others are orthogonal to both.

Either way the component is s g + sqrt(s (1 - s)) ||g|| xi (s = b for the first), so no subspace has to be formed.
``SET-noise`` adds Gaussian noise in the set's directions instead of pruning them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

import chaos_ext as ce

from ..base.contents import number, require
from ..data import Dataset
from ..errors import NotConvergedError
from .rows import SPECTRAL
from .settings import Settings, Unit
from .training import Training, step_along

SETS = ("chaotic", "negative", "positive")
BULK = "bulk"  # all directions but the dominant ones
CONTROLS = ("rank", "energy", "noise")
COLUMNS = {
    **SPECTRAL,
    "share_removed": "share of the squared gradient norm that the step left out",
}
MEANS = tuple(COLUMNS)


def parsed(run: str) -> tuple[str | None, str | None]:
    """Set and control of a run by its name: ``negative-rank`` -> ("negative", "rank"), ``sgd`` -> (None, None)."""
    if run == "sgd":
        return None, None
    chosen, _, control = run.partition("-")
    return chosen, control or None


_CONTROL_LABELS = {
    "rank": "random, as many as {}",
    "energy": "random, gradient share of {}",
    "noise": "noise in {}",
}


def label(run: str) -> str:
    """Of a run, for legends."""
    chosen, control = parsed(run)
    if run == BULK:
        return "dominant directions only"
    if control is None:
        return "SGD" if chosen is None else f"{chosen} directions pruned"
    return _CONTROL_LABELS[control].format(chosen)


class Pruned(NamedTuple):
    """How a training prunes.

    Attributes:
        lr: its learning rate.
        chosen: one of ``SETS``, "dominant", "bulk", or None: plain SGD.
        control: one of ``CONTROLS``, or None: the set itself.
        k, order: as of ``CGD``.
        noise: standard deviation, of the control "noise".
        start: first step that prunes.
    """

    lr: float
    chosen: str | None = None
    control: str | None = None
    k: int | None = None
    order: str = "top_abs"
    noise: float | None = None
    start: int = 0


class PrunedTraining(Training):
    """SGD whose gradient loses a set of directions, or what a control takes, from step ``start`` on.

    Args:
        settings, unit, data: as of ``Training``.
        what: how to prune.
    """

    plain = (*Training.plain, "near", "zero_tol")

    def __init__(self, settings: Settings, unit: Unit, data: Dataset, what: Pruned) -> None:
        self.what = what
        self.near = [0.0, 0.0]  # sums over steps: eigenvalues near the zero threshold, their share of ||g||^2
        self.zero_tol: float | None = None
        super().__init__(settings, unit, data)

    def make_optimizer(self) -> Optimizer:
        """CGD, which stores what it draws; of controls that step along a gradient of their own torch's SGD."""
        w, momentum = self.what, self.settings.momentum
        if w.control in ("rank", "energy"):
            return SGD(self.model.parameters(), lr=w.lr, momentum=momentum)
        noisy = w.control == "noise"
        return ce.CGD(
            self.model.parameters(),
            lr=w.lr,
            momentum=momentum,
            prune=w.chosen,
            k=w.k,
            order=w.order,
            start=w.start,
            mix=0.0 if noisy else 1.0,
            noise=w.noise if noisy else None,
            generator=self.generator,
        )

    def measure_and_step(self, x: Tensor, y: Tensor) -> Sequence[float | int | None]:
        """Loss, accuracy and spectrum at theta(t) on the batch, then the step to theta(t+1)."""
        op = ce.HessianOperator(self.model, self.loss_fn, x, y)
        spec = ce.directions(op)
        s = self.summary(spec)
        assert isinstance(op.output, Tensor)
        loss, accuracy = op.loss.item(), (op.output.argmax(1) == y).double().mean().item()
        return self.measured(loss, accuracy, s, spec.zero_tol, self.take_step(spec, op))

    def summary(self, spec: ce.Spectrum) -> ce.SpectralSummary:
        """Of the spectrum before a step.

        Raises:
            NotConvergedError: dominant directions that are not determined: the run ends, as where numbers leave the
            finite ones.
        """
        s, w = ce.spectral_summary(spec, self.what.lr), self.what
        if w.chosen in ("dominant", BULK) and self.step >= w.start and s.n_positive < (w.k or 0):
            raise NotConvergedError(f"k: {w.k} dominant directions of a batch with {s.n_positive} positive eigenvalues")
        return s

    def measured(
        self, loss: float, accuracy: float, s: ce.SpectralSummary, zero_tol: float, removed: float
    ) -> Sequence[float | int | None]:
        """What a row has of a step that was taken."""
        self.near[0] += s.n_near_threshold
        self.near[1] += 0.0 if math.isnan(s.share_near_threshold) else s.share_near_threshold  # NaN: g = 0
        self.zero_tol = zero_tol
        counts = (s.n_negative, s.n_zero, s.n_positive, s.n_chaotic)
        shares = (s.share_negative, s.share_zero, s.share_positive, s.share_chaotic)
        return (loss, accuracy, *counts, s.lambda_min, s.lambda_max, *shares, removed)

    def take_step(self, spec: ce.Spectrum, op: ce.HessianOperator) -> float:
        """To theta(t+1); the share of ||g||^2 that was left out."""
        optimizer = self.optimizer
        if isinstance(optimizer, ce.CGD):
            optimizer.step(spec)
            info = optimizer.last_step
            return 0.0 if info is None or self.what.control == "noise" else info.share
        g, share = op.gradient, 0.0
        if self.step >= self.what.start:
            share = self._share(spec)
            g = g - _component(g, share, self.generator)
        step_along(self.model, optimizer, g)
        return share

    def _share(self, spec: ce.Spectrum) -> float:
        w = self.what
        bulk = w.chosen == BULK
        mask = ce.select(spec, w.lr, "dominant" if bulk else w.chosen, w.k, w.order, self.generator)
        if w.control == "rank":
            n = int(mask.sum())
            return _beta(spec.size - n if bulk else n, spec.size, self.generator)
        whole = float(spec.gradient_norm_squared)
        share = float(spec.gradient_coefficients()[mask].double().square().sum()) / whole if whole else float(bulk)
        return max(1 - share, 0.0) if bulk else share

    def check(self, state: Any) -> None:
        """As of every training, and the sums."""
        super().check(state)
        require(isinstance(state["near"], list) and len(state["near"]) == 2, "near", "two numbers", state["near"])
        for value in (*state["near"], *([] if state["zero_tol"] is None else [state["zero_tol"]])):
            number("near, zero_tol", value)


def _beta(n: int, size: int, generator: torch.Generator) -> float:
    """Share of a fixed vector's squared length in a random subspace of n of ``size`` dimensions."""
    squares = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu").square()
    return float(squares[:n].sum() / squares.sum())


def _component(g: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Of g, in a random subspace that has this share of its squared length."""
    xi = torch.randn(len(g), generator=generator, dtype=torch.float64, device="cpu").to(g.device)
    whole, length = g.double(), g.double().norm()
    if not float(length):
        return g
    xi = xi - whole * (whole @ xi / length**2)
    across = math.sqrt(max(share * (1 - share), 0.0)) * length / xi.norm()
    return (share * whole + across * xi).to(g.dtype)


def remarks(records: Any) -> dict[str, Any]:
    """The zero tolerance of all runs."""
    return {"zero_tolerance": next((r["zero_tol"] for r in records.values() if r["zero_tol"] is not None), None)}


def describe(record: dict[str, Any]) -> dict[str, Any]:
    """How close to the zero tolerance a run came."""
    steps = record["steps"]
    return {
        "mean_n_near_threshold": record["near"][0] / steps if steps else None,
        "mean_share_near_threshold": record["near"][1] / steps if steps else None,
    }
