"""Displacements of any size (appendix C.3): how far apart twins end, and how well each is trained.

As in fig3 models are displaced before training along what it stretches and shrinks, by lengths up to 15, beyond the
distance of two independent initialisations. A random direction is the control.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..data import Dataset
from ..dynamics.perturbation import STRATEGIES
from .fig3_run import Fig3Settings, Twins, labels
from .findings import Finding, verdict
from .init_distance import expected
from .magnitude_figure import figure_magnitude
from .magnitude_options import NAME, QUICK_STEPS
from .rows import format_row
from .series import rank_correlation
from .training import build_model
from .twin_study import Seed, TwinStudy, run_twin_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {
    "seed": "decides initialisation, batches and drawn directions",
    "strategy": "direction of the displacement; none: the model that was not displaced",
    "eps": "its length",
    "distance": "of the twin from the model that was not displaced, at the end of training",
    "along": "component of the difference along the displacement",
    "growth": "distance / eps",
    "train_loss": "mean loss over the training split at the end",
    "train_accuracy": "accuracy over the training split",
    "test_loss": "mean loss over the test split",
    "test_accuracy": "accuracy over the test split",
    "init_distance": "expected distance of two independent initialisations of this network, by a closed form",
}
_FALLING = 0.1  # eps from which on growth has to fall
_RHO = -0.8
_SMALL, _LARGE = 0.1, 5.0  # eps up to which, and from which on, strategies are compared
_APART, _ALIKE = 2.0, 1.1  # ratio of the largest to the smallest distance


class EvaluatedTwins(Twins):
    """Twins that are looked at when trained."""

    def __init__(self, settings: Fig3Settings, data: Dataset, folder: Path, kept: dict[str, Any]) -> None:
        super().__init__(settings, data, folder, kept)
        (seed,) = settings.seeds
        self.init_distance = expected(build_model(settings, seed))

    def final(self) -> dict[str, Any]:
        """Loss and accuracy on both splits, one a member: [members, 4]."""
        d, found = self.data, []
        for x, y in ((d.x_train, d.y_train), (d.x_test, d.y_test)):
            read = self.ensemble.evaluate(x, y)
            assert read.accuracy is not None
            found += [read.loss.tolist(), read.accuracy.tolist()]
        return {"evaluations": list(zip(*found, strict=True)), "init_distance": self.init_distance}


class Magnitude(TwinStudy):
    """Twins at many eps, at the end of training."""

    name, quick_steps, columns, twins = NAME, QUICK_STEPS, COLUMNS, EvaluatedTwins

    def rows(self, settings: Fig3Settings, seed: Seed) -> Iterator[str]:
        """A line for the model that was not displaced, and one for each twin."""
        with seed.twins.open(newline="") as f:
            *_, last = csv.reader(f)
        read, count = [float(v) for v in last[1:]], len(labels(settings))
        own, *others = seed.final["evaluations"]
        scale = seed.final["init_distance"]
        yield format_row((seed.seed, "none", 0.0, 0.0, None, None, *own, scale)).decode()
        for (strategy, eps), distance, along, values in zip(
            labels(settings), read[:count], read[count:], others, strict=True
        ):
            row = (seed.seed, strategy, eps, distance, along, distance / eps, *values, scale)
            yield format_row(row).decode()

    def draw(self, metrics: Path, settings: Fig3Settings) -> Figure:
        """Distances, growth and accuracies over eps."""
        return figure_magnitude(metrics, settings)

    def findings(self, metrics: Path, settings: Fig3Settings) -> list[Finding]:
        """Whether growth falls with eps, and whether directions still matter."""
        found = read_ends(metrics)
        return [_sublinear(found), _told_apart(found), _forgotten(found)]


class Ends(NamedTuple):
    """Of the twins of one seed and strategy, over eps."""

    eps: Tensor
    distance: Tensor


def read_ends(metrics: Path) -> dict[str, dict[str, Ends]]:
    """seed -> strategy -> distances at the end, by ascending eps."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with metrics.open(newline="") as f:
        for row in csv.DictReader(f):
            if row["strategy"] != "none":
                pair = float(row["eps"]), float(row["distance"])
                found.setdefault(row["seed"], {}).setdefault(row["strategy"], []).append(pair)
    return {
        seed: {
            s: Ends(*torch.tensor(sorted(pairs), dtype=torch.float64, device="cpu").unbind(1))
            for s, pairs in of.items()
        }
        for seed, of in found.items()
    }


def _sublinear(found: dict[str, dict[str, Ends]]) -> Finding:
    held, texts = [], []
    for of in found.values():
        rho = {s: _rho(ends) for s, ends in of.items()}
        known = [r for r in rho.values() if not math.isnan(r)]
        if known:
            held.append(len(known) == len(rho) and max(known) < _RHO)
            texts.append(", ".join(f"{s} {r:.2f}" for s, r in rho.items()))
    return Finding(
        claim="Distance at the end grows less than in proportion to the displacement",
        where="appendix C.3",
        criterion=f"Spearman's rank correlation of d(T)/eps with eps over eps > {_FALLING:g} below {_RHO:g}, of every "
        "strategy, in every seed (4 eps at least; a twin that diverged counts against it)",
        numbers="; ".join(texts) or "too few eps",
        verdict=verdict(held, len(held)) if held else "undecided",
    )


def _rho(ends: Ends) -> float:
    """NaN with fewer than four eps; 1 where a twin diverged, which is growth without bound."""
    used = ends.eps > _FALLING
    growth = ends.distance[used] / ends.eps[used]
    if len(growth) < 4:
        return math.nan
    return rank_correlation(growth, ends.eps[used]) if bool(growth.isfinite().all()) else 1.0


def _ratios(of: dict[str, Ends]) -> dict[float, float]:
    """eps -> largest over smallest distance of the strategies."""
    eps = next(iter(of.values())).eps.tolist()
    each = torch.stack([of[s].distance for s in STRATEGIES])
    return dict(zip(eps, (each.max(0).values / each.min(0).values).tolist(), strict=True))


def _told_apart(found: dict[str, dict[str, Ends]]) -> Finding:
    held, texts = [], []
    for of in found.values():
        ratios = _ratios(of)
        small = [r for e, r in ratios.items() if e <= _SMALL]
        large = [r for e, r in ratios.items() if e >= _LARGE]
        if small and large:
            held.append(min(small) > _APART and max(large) < _ALIKE)
            texts.append(f"{min(small):.3g} or more against {max(large):.3g} or less")
    return Finding(
        claim="The direction of a displacement decides how far a twin ends only while the displacement is small",
        where="appendix C.3",
        criterion=f"the largest over the smallest d(T) of the five strategies is above {_APART:g} at every eps <= "
        f"{_SMALL:g} and below {_ALIKE:g} at every eps >= {_LARGE:g}, in every seed",
        numbers="; ".join(texts) or "no eps of both kinds",
        verdict=verdict(held, len(held)) if held else "undecided",
    )


def _forgotten(found: dict[str, dict[str, Ends]]) -> Finding:
    """The control."""
    held, texts = [], []
    for of in found.values():
        eps, random = of["random"].eps, of["random"].distance
        used = eps <= _SMALL
        if bool(used.any()):
            above, below = of["max_chaotic"].distance[used], of["max_nonchaotic"].distance[used]
            held.append(bool(((above > random[used]) & (random[used] > below)).all()))
            texts.append(f"{(above / random[used]).min():.3g} and {(below / random[used]).max():.3g} of it")
    return Finding(
        claim="A random direction lies between the most chaotic and the least chaotic one",
        where="control, not in the paper",
        criterion="d(T) of max_chaotic above, of max_nonchaotic below that of the random one at every eps <= "
        f"{_SMALL:g}, in every seed",
        numbers="; ".join(texts) or "no such eps",
        verdict=verdict(held, len(held)) if held else "undecided",
    )


run = functools.partial(run_twin_study, Magnitude())
