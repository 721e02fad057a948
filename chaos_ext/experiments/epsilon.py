"""Small displacements in both dtypes (appendix C.4): where distances are proportional to eps, and where rounding rules.

Twins are displaced by eps u, u one random direction, and trained on the same batches. Linear theory says that their
distance is eps ||Y_t u||, with the tangent map along u for Y_t u, which knows nothing of twins. The control measures
rounding: a twin that is not displaced, trained on the same batches in reverse order. Its sums have the same terms, so
that its distance, the floor, is rounding and what training makes of it.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.optim import Optimizer

import chaos_ext as ce

from ..base.contents import array
from ..data import Dataset
from ..data.batches import derive_seed
from .epsilon_figure import figure_epsilon
from .epsilon_options import NAME, QUICK_STEPS
from .findings import Finding, verdict
from .series import columns
from .settings import Settings, Unit
from .study import Study, run_study
from .training import Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPS = tuple(10.0**k for k in range(-14, 1))
DISTANCES = {f"d_{e:.0e}": f"distance at theta(t) of the twin displaced by {e:g}, at readings" for e in EPS}
COLUMNS = {
    "linear": "||Y_t u||: what a distance of one becomes by the tangent map, at readings",
    "floor": "distance of the twin that was not displaced, each batch in reverse order, at readings",
    **DISTANCES,
}
RUNS = ("float64", "float32")
_WITHIN = 0.01  # relative, of d(t) and eps ||Y_t u||
_DECADES = 3
_ROUNDOFFS = 2.0**29  # unit roundoff of float32 over that of float64


@dataclass(frozen=True, kw_only=True)
class EpsilonSettings(Settings):
    """Settings of ``chaos-ext reproduce epsilon``; its runs are named by their dtypes.

    Attributes:
        every: steps between readings.
    """

    every: int


class EpsilonTraining(Training):
    """A training with its twins, the control, and the tangent map along u."""

    def __init__(self, settings: EpsilonSettings, unit: Unit, data: Dataset) -> None:
        super().__init__(replace(settings, dtype=unit.run), unit, data)
        self.every = settings.every
        start = parameters_to_vector(self.model.parameters()).detach()
        generator = torch.Generator().manual_seed(derive_seed("epsilon", unit.seed))
        u = torch.randn(len(start), generator=generator, dtype=torch.float64).to(start.device)
        u /= u.norm()
        lengths = torch.tensor((0.0, *EPS), dtype=torch.float64, device=start.device)
        thetas = (start.double() + lengths[:, None] * u).to(start.dtype)
        self.twins, self.reordered = self._ensemble(thetas), self._ensemble(start[None].clone())
        self.tangent = ce.TangentMap(self.optimizer)
        self.Y = torch.zeros(self.tangent.size, 1, dtype=start.dtype, device=start.device)
        self.Y[: len(u), 0] = u

    def make_optimizer(self) -> Optimizer:
        """SGD that takes the gradient from the operator."""
        return ce.CGD(self.model.parameters(), lr=self.settings.lr, momentum=self.settings.momentum, prune=None)

    def _ensemble(self, thetas: Tensor) -> ce.Ensemble:
        opt = torch.optim.SGD(self.model.parameters(), lr=self.settings.lr, momentum=self.settings.momentum)
        return ce.Ensemble(self.model, self.loss_fn, opt, thetas)

    def measure_and_step(self, x: Tensor, y: Tensor) -> Sequence[float | int | None]:
        """Loss, accuracy and, where a reading is due, distances; then a step of everything."""
        op = ce.HessianOperator(self.model, self.loss_fn, x, y)
        assert isinstance(op.output, Tensor)
        loss, accuracy = op.loss.item(), (op.output.argmax(1) == y).double().mean().item()
        due = self.step % self.every == 0 or self.step == self.total - 1
        read = self._read() if due else [None] * len(COLUMNS)
        assert isinstance(self.optimizer, ce.CGD)
        self.tangent.apply_(op, self.Y)
        self.twins.step(x, y)
        self.reordered.step(x.flip(0), y.flip(0))
        self.optimizer.step(op)
        return (loss, accuracy, *read)

    def _read(self) -> list[float]:
        size = self.twins.thetas.shape[1]
        floor = self.reordered.distances(self.twins.thetas[0])
        return [float(self.Y[:size].double().norm()), float(floor[0]), *self.twins.distances()[1:].tolist()]

    def state(self) -> dict[str, Any]:
        """As of every training, and the twins, the control, Y u."""
        own = {"twins": self.twins.state_dict(), "reordered": self.reordered.state_dict(), "Y": self.Y}
        return {**super().state(), **own}

    def load(self, state: dict[str, Any]) -> None:
        """As of every training."""
        super().load(state)
        self.twins.load_state_dict(state["twins"])
        self.reordered.load_state_dict(state["reordered"])
        self.Y.copy_(state["Y"])

    def check(self, state: Any) -> None:
        """As of every training, and Y."""
        super().check(state)
        array("Y", state["Y"], tuple(self.Y.shape))


class Epsilon(Study):
    """A run in each dtype."""

    name, quick_steps, columns = NAME, QUICK_STEPS, COLUMNS

    def settings(self, args: argparse.Namespace, common: dict[str, Any]) -> Settings:
        """Both dtypes."""
        return EpsilonSettings(**common, runs=RUNS, every=args.every)

    def work(self, settings: Settings, unit: Unit, data: Dataset) -> EpsilonTraining:
        """Twins in the dtype of the run."""
        assert isinstance(settings, EpsilonSettings)
        return EpsilonTraining(settings, unit, data)

    def draw(self, name: str, metrics: Path, settings: Settings) -> Figure:
        """Growth over eps in both dtypes, its error, and how float32 departs."""
        return figure_epsilon(metrics, settings, EPS, tuple(DISTANCES))

    def findings(self, metrics: Path, settings: Settings) -> list[Finding]:
        """Where distances are proportional to eps, and what rounding does."""
        ends = read_ends(metrics)
        return [_proportional(ends), _departing(ends), _rounding(ends)]


class End(NamedTuple):
    """The last reading of one run.

    Attributes:
        linear, floor: of the columns of these names.
        off: d(T) / (eps ||Y_T u||) - 1, in the order of ``EPS``; NaN of a twin that diverged.
    """

    linear: float
    floor: float
    off: list[float]

    @property
    def trusted(self) -> list[float]:
        """The longest stretch of neighbouring eps at which linear theory holds."""
        best: list[float] = []
        run: list[float] = []
        for eps, off in zip(EPS, self.off, strict=True):
            run = [*run, eps] if abs(off) <= _WITHIN else []
            best = max(best, run, key=len)
        return best

    @property
    def smallest(self) -> str:
        """The first of that stretch."""
        return f"{self.trusted[0]:.0e}" if self.trusted else "none"

    @property
    def worst(self) -> float:
        """The largest error in that stretch."""
        return max((abs(o) for e, o in zip(EPS, self.off, strict=True) if e in self.trusted), default=math.nan)


def read_ends(metrics: Path) -> dict[str, list[End]]:
    """dtype -> last readings, seed by seed."""
    found = columns(metrics, *COLUMNS)
    return {run: [_end(table[-1].tolist()) for table in seeds.values()] for run, seeds in found.items()}


def _end(row: list[float]) -> End:
    linear, floor, *distances = row
    return End(linear, floor, [d / (e * linear) - 1 for d, e in zip(distances, EPS, strict=True)])


def _range(trusted: list[float]) -> str:
    return f"eps {trusted[0]:.0e} to {trusted[-1]:.0e}" if trusted else "no eps"


def _proportional(ends: dict[str, list[End]]) -> Finding:
    texts = [f"{_range(e.trusted)}, off by {e.worst:.1g} at most; ||Y u|| {e.linear:.4g}" for e in ends["float64"]]
    held = [len(e.trusted) > _DECADES for e in ends["float64"]]
    return Finding(
        claim="Distances of twins are proportional to small displacements, as the tangent map says",
        where="appendix C.4",
        criterion=f"in float64 d(T)/eps is ||Y_T u|| within {_WITHIN:.0%} over {_DECADES} decades of eps or more, in "
        "every seed",
        numbers="; ".join(texts),
        verdict=verdict(held, len(held)),
    )


def _departing(ends: dict[str, list[End]]) -> Finding:
    held, texts = [], []
    for single, double in zip(ends["float32"], ends["float64"], strict=True):
        below, above, good = [], [], []
        for eps, off in zip(EPS, single.off, strict=True):
            share = single.floor / (eps * single.linear)
            if share >= 1:
                below.append(abs(off) > _WITHIN)
            elif eps in double.trusted:  # d is within floor of eps ||Y u||, as two sides of a triangle are
                above.append(abs(off) <= share)
                good += [eps] if abs(off) <= _WITHIN else []
        if below and above:
            held.append(all(below) and all(above))
        lowest = f"{good[0]:.0e}" if good else "none"
        texts.append(f"floor {single.floor:.2g}; smallest eps to be trusted {lowest}, in float64 {double.smallest}")
    return Finding(
        claim="In float32 small displacements drown in rounding",
        where="appendix C.4",
        criterion=f"in float32 d(T) is off by more than {_WITHIN:.0%} at every eps with eps ||Y_T u|| below the "
        "measured floor, and by the floor at most at every eps above it that float64 is right at, in every seed",
        numbers="; ".join(texts),
        verdict=verdict(held, len(ends["float32"])) if held else "undecided",
    )


def _rounding(ends: dict[str, list[End]]) -> Finding:
    ratios = [a.floor / b.floor if b.floor else math.inf for a, b in zip(ends["float32"], ends["float64"], strict=True)]
    held = [_ROUNDOFFS / 30 < r < _ROUNDOFFS * 30 for r in ratios]
    return Finding(
        claim="The floor is rounding: it is as much lower in float64 as float64 is finer",
        where="control, not in the paper",
        criterion="of batches in reverse order, floor(T) of float32 over that of float64 within a factor 30 of 2^29 = "
        "5.4e8, in every seed",
        numbers=", ".join(f"{r:.2g}" for r in ratios),
        verdict=verdict(held, len(held)),
    )


run = functools.partial(run_study, Epsilon())
