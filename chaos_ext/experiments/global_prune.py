"""Global pruning: what the first steps of a training stretch or shrink is taken out of the gradient at every step.

Training begins again at theta(0), without the directions in which the tangent map of its first steps stretches, or
those in which it shrinks (``global_directions``). Controls do without as many random directions, or as many as hold the
same share of the gradient over the first steps.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

import chaos_ext as ce

from ..data import Dataset
from ..data.batches import derive_seed
from ..figures import import_numpy, plot_training
from .fig1 import title_of
from .findings import Finding, verdict
from .global_directions import SIGNS, GlobalPruneSettings, directions_of
from .global_prune_options import FIRST, NAME, QUICK_FIRST, QUICK_STEPS
from .series import last_epoch, spread
from .settings import Settings, Unit
from .study import Study, run_study
from .training import Training, step_along
from .twin_study import width_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {
    "n_removed": "directions taken out of the gradient",
    "share_removed": "share of the squared gradient norm that the step left out",
}
CONTROLS = ("rank", "energy")
RUNS = ("sgd", *(run for sign in SIGNS for run in (sign, *(f"{sign}-{c}" for c in CONTROLS))))
_LABELS = {"": "{} directions pruned", "rank": "as many random ones", "energy": "random, as much of the gradient"}


class GlobalPruneTraining(Training):
    """SGD whose gradient loses fixed directions at every step."""

    plain = (*Training.plain, "count")

    def __init__(self, settings: GlobalPruneSettings, unit: Unit, data: Dataset) -> None:
        self.own, self.count = settings, 0
        self.U: Tensor | None = None
        super().__init__(settings, unit, data)

    def make_optimizer(self) -> Optimizer:
        """CGD with fixed directions; of controls torch's SGD, which steps along a gradient that they make."""
        s, (sign, _, control) = self.own, self.unit.run.partition("-")
        params = self.model.parameters()
        if sign == "sgd":
            return ce.CGD(params, lr=s.lr, momentum=s.momentum, prune=None)
        found = directions_of(s, self.unit.seed, self.data)
        self.count = found.counts[sign]
        if not control:
            return ce.CGD(params, lr=s.lr, momentum=s.momentum, prune=SIGNS[sign], spectrum=found.spectrum)
        size = found.spectrum.size
        if control == "energy":
            self.count = round(found.shares[sign] * size)
        # The complement of many random directions is a few random ones.
        few = min(self.count, size - self.count)
        self.U = random_frame(size, few, self.unit).to(s.device, getattr(torch, s.dtype))
        return SGD(self.model.parameters(), lr=s.lr, momentum=s.momentum)

    def measure_and_step(self, x: Tensor, y: Tensor) -> Sequence[float | int | None]:
        """Loss and accuracy at theta(t) on the batch, then the step to theta(t+1)."""
        op = ce.HessianOperator(self.model, self.loss_fn, x, y)
        assert isinstance(op.output, Tensor)
        loss, accuracy = op.loss.item(), (op.output.argmax(1) == y).double().mean().item()
        if isinstance(self.optimizer, ce.CGD):
            self.optimizer.step(op)
            info = self.optimizer.last_step
            return loss, accuracy, self.count, 0.0 if info is None else info.share
        g = op.gradient
        kept = self._kept(g)
        step_along(self.model, self.optimizer, kept)
        whole = float(g.double().square().sum())
        return loss, accuracy, self.count, float((g - kept).double().square().sum()) / whole if whole else 0.0

    def _kept(self, g: Tensor) -> Tensor:
        assert self.U is not None
        inside = self.U @ (self.U.T @ g)
        return inside if 2 * self.count > len(g) else g - inside


def random_frame(size: int, count: int, unit: Unit) -> Tensor:
    """Orthonormal columns [size, count] of a subspace that is drawn uniformly."""
    generator = torch.Generator().manual_seed(derive_seed("frame", unit.seed, unit.run))
    drawn = torch.randn(size, count, generator=generator, dtype=torch.float64, device="cpu")
    return torch.linalg.qr(drawn).Q


class GlobalPrune(Study):
    """Plain SGD, both signs, and their controls."""

    name, quick_steps, columns = NAME, QUICK_STEPS, COLUMNS
    means = tuple(COLUMNS)
    shown = "share_removed", "share removed"

    def settings(self, args: argparse.Namespace, common: dict[str, Any]) -> Settings:
        """All runs."""
        first = args.first or (QUICK_FIRST if args.quick else FIRST)
        return GlobalPruneSettings(**common, runs=RUNS, first=first, hidden=width_of(args))

    def work(self, settings: Settings, unit: Unit, data: Dataset) -> GlobalPruneTraining:
        """A training without what its run is named after."""
        assert isinstance(settings, GlobalPruneSettings)
        return GlobalPruneTraining(settings, unit, data)

    def draw(self, name: str, metrics: Path, settings: Settings) -> Figure:
        """Accuracy and loss, a row of panels for each sign."""
        import_numpy()
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 8.4), layout="constrained", dpi=150)
        parts: Any = figure.subfigures(2, 1)
        for part, sign in zip(parts, SIGNS, strict=True):
            runs = [r for r in settings.runs if r == "sgd" or r.startswith(sign)]
            for ax, metric in zip(part.subplots(1, 2), ("accuracy", "loss"), strict=True):
                labels = {r: label(r) for r in runs}
                plot_training(metrics, ax, metric=metric, runs=runs, labels=labels, raw=False, legend=False)
            part.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=len(runs), frameon=False)
        figure.suptitle(title_of(settings), fontsize="medium")
        return figure

    def findings(self, metrics: Path, settings: Settings) -> list[Finding]:
        """Whether pruning harms, and more than its controls."""
        loss = last_epoch(metrics, "loss")
        apart = [_told_apart(loss, sign, control) for sign in SIGNS for control in CONTROLS]
        return [*(_harmed(loss, sign) for sign in SIGNS), *apart]

    def describe(self, record: dict[str, Any]) -> dict[str, Any]:
        """How many directions."""
        return {"n_removed": record["count"]}


def label(run: str) -> str:
    """Of a run, for the legend of its sign."""
    sign, _, control = run.partition("-")
    return "SGD" if sign == "sgd" else _LABELS[control].format(sign)


def _harmed(loss: dict[str, list[float]], sign: str) -> Finding:
    held = [b > a for a, b in zip(loss["sgd"], loss[sign], strict=True)]
    return Finding(
        claim=f"Training without the directions that its first steps have {sign} goes worse",
        where="global pruning",
        criterion="training loss of the last epoch above that of SGD, in every seed (3 at least)",
        numbers=f"{sum(held)} of {len(held)} seeds; {spread(loss[sign])} against {spread(loss['sgd'])}",
        verdict=verdict(held, max(3, len(held))),
    )


def _told_apart(loss: dict[str, list[float]], sign: str, control: str) -> Finding:
    own, other = spread(loss[sign]), spread(loss[f"{sign}-{control}"])
    apart = own.mean - other.mean > 2 * max(own.sd, other.sd)
    what = "as many random directions" if control == "rank" else "random directions with as much of the gradient"
    return Finding(
        claim=f"It is the {sign} directions that matter: pruning {what} harms less",
        where="control, not in the paper",
        criterion="last epoch's training loss is higher by more than 2 standard deviations over seeds (3 at least)",
        numbers=f"{sign} {own}, control {other}, sgd {spread(loss['sgd'])}",
        verdict="undecided" if len(loss[sign]) < 3 else "reproduced" if apart else "not reproduced",
    )


run = functools.partial(run_study, GlobalPrune())
