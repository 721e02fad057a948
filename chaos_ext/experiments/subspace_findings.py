"""What overlaps of subspaces say of the persistence of chaotic directions."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .findings import Finding, verdict

FEW = {"eigenspaces": 10, "expanding": 3}  # readings: with fewer nothing is decided
_DIRECTIONS = {"negative": "Chaotic directions (negative curvature)", "positive": "Directions of positive curvature"}


class Reading(NamedTuple):
    """Of one pair of subspaces."""

    step: int
    overlap: float
    baseline: float


class Excess(NamedTuple):
    """Overlap above another one, over the readings of a seed: mean and standard deviation, how many, mean overlap."""

    mean: float
    sd: float
    readings: int
    overlap: float
    against: float

    @property
    def holds(self) -> bool:
        """More than 2 standard deviations."""
        return self.mean > 2 * self.sd


Found = dict[tuple[str, str], dict[str, list[Reading]]]


def read(metrics: Path) -> Found:
    """(pair, tau) -> seed -> readings, those without an overlap left out."""
    found: Found = {}
    with metrics.open(newline="") as f:
        for row in csv.DictReader(f):
            seeds = found.setdefault((row["pair"], row["tau"]), {}).setdefault(row["seed"], [])
            if row["overlap"]:
                seeds.append(Reading(int(row["step"]), float(row["overlap"]), float(row["baseline"])))
    return found


def excess(own: list[Reading], against: list[float]) -> Excess:
    """Of overlaps above what they are held against, reading by reading."""
    gaps = [r.overlap - b for r, b in zip(own, against, strict=True)]
    if not gaps:
        return Excess(math.nan, math.nan, 0, math.nan, math.nan)
    sd = statistics.stdev(gaps) if len(gaps) > 1 else math.nan
    return Excess(
        statistics.fmean(gaps), sd, len(gaps), statistics.fmean(r.overlap for r in own), statistics.fmean(against)
    )


def findings_of(metrics: Path, runs: Sequence[str], tau: Sequence[int], restricted: bool) -> list[Finding]:
    """Each tau, and the control; then the expanding directions, undecided of a restricted map."""
    found, seeds = read(metrics), _seeds(metrics)
    claims: list[Finding] = []
    if "eigenspaces" in runs:
        claims += [_persists(found, seeds, name, str(t)) for name in _DIRECTIONS for t in tau]
        claims += [_of_its_own(found, seeds, str(t)) for t in tau]
    if "expanding" in runs:
        claims += [_expands(found, seeds, name, restricted) for name in _DIRECTIONS]
    return claims


def _seeds(metrics: Path) -> list[str]:
    with metrics.open(newline="") as f:
        return list(dict.fromkeys(row["seed"] for row in csv.DictReader(f)))


def _above_baseline(found: Found, seeds: list[str], pair: str, tau: str) -> list[Excess]:
    readings = [found.get((pair, tau), {}).get(seed, []) for seed in seeds]
    return [excess(own, [r.baseline for r in own]) for own in readings]


def _decided(values: list[Excess], least: int) -> str:
    if not values or any(e.readings < least for e in values):
        return "undecided"
    return verdict([e.holds for e in values], len(values))


def _numbers(values: list[Excess], word: str) -> str:
    return "; ".join(
        f"{e.overlap:.3f} against {e.against:.3f} {word}, {e.mean:.3f} +- {e.sd:.2g} more in {e.readings} readings"
        if e.readings
        else "no readings"
        for e in values
    )


def _persists(found: Found, seeds: list[str], name: str, tau: str) -> Finding:
    values = _above_baseline(found, seeds, f"{name}-{name}", tau)
    return Finding(
        claim=f"{_DIRECTIONS[name]} persist over {tau} step{'s' if tau != '1' else ''} more than by chance",
        where="appendix C.2" if name == "negative" else "appendix C.2, for comparison",
        criterion="overlap of the eigenspaces above the baseline by more than 2 standard deviations over readings, in "
        f"every seed ({FEW['eigenspaces']} readings at least)",
        numbers=_numbers(values, "by chance"),
        verdict=_decided(values, FEW["eigenspaces"]),
    )


def _of_its_own(found: Found, seeds: list[str], tau: str) -> Finding:
    values = []
    for seed in seeds:
        own = found.get(("negative-negative", tau), {}).get(seed, [])
        cross = {r.step: r.overlap - r.baseline for r in found.get(("negative-positive", tau), {}).get(seed, [])}
        both = [r for r in own if r.step in cross]
        values.append(excess(both, [r.baseline + cross[r.step] for r in both]))
    return Finding(
        claim=f"The sign persists over {tau} step{'s' if tau != '1' else ''}, not only what mini-batches see",
        where="control, not in the paper",
        criterion="negative eigenspaces overlap with later negative ones more than with later positive ones, each "
        "above its baseline, by more than 2 standard deviations over readings, in every seed",
        numbers=_numbers(values, "with positive ones, at equal baselines"),
        verdict=_decided(values, FEW["eigenspaces"]),
    )


def _expands(found: Found, seeds: list[str], name: str, restricted: bool) -> Finding:
    values = _above_baseline(found, seeds, f"{name}-expanding", "")
    return Finding(
        claim=f"{_DIRECTIONS[name]} lie in what training has expanded so far more than by chance",
        where="appendix C.2" if name == "negative" else "appendix C.2, for comparison",
        criterion="overlap with the finite-time expanding directions above the baseline by more than 2 standard "
        f"deviations over readings, in every seed ({FEW['expanding']} readings at least); not of a restricted map",
        numbers=_numbers(values, "by chance"),
        verdict="undecided" if restricted else _decided(values, FEW["expanding"]),
    )
