"""What twins at small displacements say: where distances are proportional to eps, and what rounding does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from .findings import Finding, verdict
from .series import columns

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


def findings_of(metrics: Path) -> list[Finding]:
    """Of the last readings of all runs."""
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
