"""What twins say of the paper's claims: bounds, growth at the end, and the law by which they part."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import chaos_ext as ce

from .fig3_run import Fig3Settings, labels
from .findings import Finding, verdict
from .series import slope

SLACK = 1.05  # of the bounds of linear theory, of which twins at a finite eps leave


class Series(NamedTuple):
    """A twin's readings: steps, distances, components along the displacement, bounds (NaN where not read)."""

    step: Tensor
    distance: Tensor
    along: Tensor
    upper: Tensor
    lower: Tensor


def read_twins(metrics: Path) -> dict[tuple[str, str, float], Series]:
    """(seed, strategy, eps) -> readings."""
    found: dict[tuple[str, str, float], list[list[float]]] = {}
    with metrics.open(newline="") as f:
        for row in csv.DictReader(f):
            values = [
                float(row[n]) if row[n] else float("nan") for n in ("step", "distance", "along", "upper", "lower")
            ]
            found.setdefault((row["seed"], row["strategy"], float(row["eps"])), []).append(values)
    return {key: Series(*torch.tensor(v, dtype=torch.float64, device="cpu").unbind(1)) for key, v in found.items()}


def findings_of(metrics: Path, settings: Fig3Settings) -> list[Finding]:
    """At the eps that is nearest to 0.1."""
    eps = min(settings.eps, key=lambda e: abs(e - 0.1))
    found = read_twins(metrics)
    seeds = [str(s) for s in settings.seeds]
    strategies = list(dict.fromkeys(s for s, _ in labels(settings)))
    own = {(seed, s): found[seed, s, eps] for seed in seeds for s in strategies}
    return [_bounds(own, seeds, strategies, eps), _rising(own, seeds, strategies), _law(own, seeds)]


def _bounds(own: dict[tuple[str, str], Series], seeds: list[str], strategies: list[str], eps: float) -> Finding:
    shares = [float(torch.cat([_inside(own[seed, s]) for s in strategies]).double().mean()) for seed in seeds]
    return Finding(
        claim="Twins stay between eps exp(lambda_P(t) t) and eps exp(lambda_1(t) t)",
        where="Figure 3, appendix C.5",
        criterion=f"at every reading with eps = {eps:g}, within {100 * (SLACK - 1):.0f} %, in every seed",
        numbers=", ".join(f"{s:.1%} of readings" for s in shares),
        verdict=verdict([s == 1 for s in shares], len(shares)),
    )


def _inside(r: Series) -> Tensor:
    """Whether the bounds hold, at each reading that has them."""
    known = ~r.upper.isnan()
    return ((r.distance <= SLACK * r.upper) & (r.distance >= r.lower / SLACK))[known]


def _rising(own: dict[tuple[str, str], Series], seeds: list[str], strategies: list[str]) -> Finding:
    counts = [sum(_rises(own[seed, s].distance) for s in strategies) for seed in seeds]
    return Finding(
        claim="Twins still move apart at the end of training",
        where="Figure 3",
        criterion="least-squares slope of the distance over the last third above 0 for every strategy, in every seed",
        numbers=", ".join(f"{c} of {len(strategies)} strategies" for c in counts),
        verdict=verdict([c == len(strategies) for c in counts], len(counts)),
    )


def _rises(distance: Tensor) -> bool:
    return slope(distance[2 * len(distance) // 3 :]) > 0


def _law(own: dict[tuple[str, str], Series], seeds: list[str]) -> Finding:
    held, texts = [], []
    for seed in seeds:
        r = own[seed, "random"]
        if len(r.step) < 13:
            continue
        laws = {law.name: law.prediction_error for law in ce.fit_divergence(r.step, r.distance, resamples=100).laws}
        best = min(v for n, v in laws.items() if n.startswith("ballistic + diffusive"))
        held.append(best < laws["random walk"])
        texts.append(f"{best:.3g} against {laws['random walk']:.3g}")
    return Finding(
        claim="Twins part as sqrt(alpha t^2 + beta t), faster than a random walk",
        where="Figure 3, appendix A.10",
        criterion="fitted to two thirds of the readings it predicts the last third better, in every seed",
        numbers="prediction errors of a random displacement: " + ("; ".join(texts) or "too few readings"),
        verdict=verdict(held, len(seeds)) if held else "undecided",
    )
