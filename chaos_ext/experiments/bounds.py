"""The bounds of linear theory (appendix C.5): eps exp(lambda_P(t) t) <= d(t) <= eps exp(lambda_1(t) t).

They hold as eps goes to 0 for every direction, since d(t) = eps ||Y_t u|| then lies between the extreme singular values
of Y_t. At a finite eps they may fail, which is told in e-folds of the distance. A random direction is the control: it
is far from both bounds, so that where it fails linear theory says nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..dynamics.perturbation import STRATEGIES
from .bounds_figure import figure_bounds
from .bounds_options import NAME, QUICK_STEPS
from .fig3 import COLUMNS, bounded_rows
from .fig3_findings import SLACK, Series, read_twins
from .fig3_run import Fig3Settings
from .findings import Finding, verdict
from .twin_study import Seed, TwinStudy, run_twin_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXCESS = {
    "above": "ln(distance / upper), where positive: by how many e-folds the upper bound fails",
    "below": "ln(lower / distance), where positive: by how many e-folds the lower bound fails",
}
_HELD = 0.1  # the eps of the claim
_FOLDS = math.log(SLACK)  # tolerated, for what is not linear

# (seed, eps, strategy) -> readings that have bounds: e-folds above the upper and below the lower one [n], clamped to 0
Excess = dict[tuple[str, float, str], tuple[Tensor, Tensor]]


class Bounds(TwinStudy):
    """Twins at eps up to 10, with their bounds."""

    name, quick_steps, columns = NAME, QUICK_STEPS, {**COLUMNS, **EXCESS}

    def rows(self, settings: Fig3Settings, seed: Seed) -> Iterator[str]:
        """As of fig3, and by how much bounds fail."""
        for line in bounded_rows(settings, seed):
            *_, distance, _, upper, lower = line.rstrip("\n").split(",")
            more = ("", "")
            if upper:
                d, top, bottom = float(distance), float(upper), float(lower)
                more = (repr(folds(d, top)), repr(folds(bottom, d)))
            yield f"{line.rstrip()},{','.join(more)}\n"

    def draw(self, metrics: Path, settings: Fig3Settings) -> Figure:
        """Worst failures over eps, and when they happen."""
        return figure_bounds(metrics, settings, excesses(metrics), _FOLDS)

    def findings(self, metrics: Path, settings: Fig3Settings) -> list[Finding]:
        """Whether bounds hold at 0.1, from which eps on they fail, and at the smallest eps."""
        found = excesses(metrics)
        return [_holding(found), _failing(found), _small(found)]


def folds(larger: float, smaller: float) -> float:
    """ln(larger / smaller), at least 0; infinite where a twin diverged."""
    if not math.isfinite(larger) or not math.isfinite(smaller):
        return math.inf
    if larger <= smaller:
        return 0.0
    return math.log(larger / smaller) if smaller else math.inf


def excesses(metrics: Path) -> Excess:
    """By how many e-folds bounds fail at each reading that has them."""
    return {(seed, eps, s): _excess(r) for (seed, s, eps), r in read_twins(metrics).items()}


def _excess(r: Series) -> tuple[Tensor, Tensor]:
    rows = [x for x in zip(r.distance.tolist(), r.upper.tolist(), r.lower.tolist(), strict=True) if x[1] == x[1]]
    pairs = [(folds(d, top), folds(bottom, d)) for d, top, bottom in rows]
    return tuple(torch.tensor(pairs, dtype=torch.float64, device="cpu").reshape(-1, 2).unbind(1))  # type: ignore[return-value]


def worst(found: Excess, seed: str, eps: float, strategies: tuple[str, ...] = STRATEGIES) -> float:
    """The largest number of e-folds of any reading."""
    return max(float(torch.cat(found[seed, eps, s]).max()) for s in strategies)


def _of(found: Excess) -> tuple[list[str], list[float]]:
    seeds, eps = ({key[i]: None for key in found} for i in (0, 1))
    return list(map(str, seeds)), sorted(map(float, eps))


def _share(found: Excess, seed: str, eps: float) -> float:
    both = [torch.stack(found[seed, eps, s]).max(0).values for s in STRATEGIES]
    return float((torch.cat(both) <= _FOLDS).double().mean())


def _holding(found: Excess) -> Finding:
    seeds, sizes = _of(found)
    eps = min(sizes, key=lambda e: abs(math.log(e / _HELD)))
    over = [worst(found, seed, eps) for seed in seeds]
    texts = [f"{_share(found, s, eps):.1%} of readings, {o:.2g} e-folds" for s, o in zip(seeds, over, strict=True)]
    return Finding(
        claim=f"At eps = {eps:g} twins stay between eps exp(lambda_P(t) t) and eps exp(lambda_1(t) t)",
        where="appendix C.5",
        criterion=f"at every reading of all five strategies, within {SLACK - 1:.0%} ({_FOLDS:.3f} e-folds) for what is "
        "not linear, in every seed",
        numbers="; ".join(texts) + " outside at worst",
        verdict=verdict([o <= _FOLDS for o in over], len(over)),
    )


def first_failure(found: Excess, seed: str) -> float:
    """The smallest eps from which on bounds fail at every eps; NaN if they hold at the largest."""
    _, sizes = _of(found)
    failing = math.nan
    for eps in reversed(sizes):
        if worst(found, seed, eps) <= _FOLDS:
            break
        failing = eps
    return failing


def _failing(found: Excess) -> Finding:
    seeds, sizes = _of(found)
    firsts = [first_failure(found, seed) for seed in seeds]
    texts = []
    for seed, first in zip(seeds, firsts, strict=True):
        failing = [f"{e:g} ({worst(found, seed, e):.2g})" for e in sizes if worst(found, seed, e) > _FOLDS]
        start = "none" if math.isnan(first) else f"{first:g}"
        texts.append(f"seed {seed}: from {start} on; at all (by e-folds): {', '.join(failing) or 'none'}")
    return Finding(
        claim="Large displacements leave the bounds: linear theory no longer holds",
        where="appendix C.5",
        criterion=f"there is an eps above {_HELD:g} from which on they fail: at some reading of some strategy at "
        "this eps and every larger one, in every seed",
        numbers="; ".join(texts),
        verdict=verdict([e > _HELD for e in firsts], len(firsts)),
    )


def _small(found: Excess) -> Finding:
    """The control: bounds are a theorem as eps goes to 0."""
    seeds, (eps, *_) = _of(found)
    over = [worst(found, seed, eps, ("random",)) for seed in seeds]
    return Finding(
        claim=f"At the smallest eps, {eps:g}, a random displacement stays within the bounds",
        where="control, not in the paper",
        criterion=f"at every reading, within {SLACK - 1:.0%}, in every seed",
        numbers=", ".join(f"{o:.2g} e-folds outside at worst" for o in over),
        verdict=verdict([o <= _FOLDS for o in over], len(over)),
    )


run = functools.partial(run_twin_study, Bounds())
