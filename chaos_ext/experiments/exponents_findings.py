"""What the leading exponents of a training say of the paper's claims, and whether their controls agree."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..models import MODELS
from .findings import Finding, verdict
from .series import columns, rank_correlation
from .settings import Settings

FEW = 20  # readings: with fewer nothing is decided
_VOLUME = {"float64": 1e-8, "float32": 1e-3}  # by which two ways to one sum of logarithms may differ, relatively


class Readings(NamedTuple):
    """Of one run and seed: columns over readings, [n] or [n, k]; NaN where empty."""

    step: Tensor
    epoch: Tensor
    loss: Tensor
    exponent: Tensor
    error: Tensor
    local: Tensor


Seeds = dict[str, Readings]


def read(metrics: Path) -> dict[str, Seeds]:
    """run -> seed -> readings."""
    found = columns(metrics, *Readings._fields, "index")
    return {run: {seed: _tabled(rows) for seed, rows in seeds.items()} for run, seeds in found.items()}


def _tabled(rows: Tensor) -> Readings:
    k = int(rows[:, -1].max())
    table = rows.view(-1, k, rows.shape[1])
    step, epoch, loss, exponent, error, local, _ = table.unbind(2)
    return Readings(step[:, 0], epoch[:, 0], loss[:, 0], exponent, error, local)


def findings_of(metrics: Path, settings: Settings) -> list[Finding]:
    """Claims on the run "qr", then the controls."""
    found = read(metrics)
    own = list(found["qr"].values())
    size = sum(p.numel() for p in MODELS[settings.model](seed=0).parameters()) * (2 if settings.momentum else 1)
    pairs = list(zip(own, found["restart"].values(), strict=True))
    products = list(zip(own, found["svd"].values(), strict=True))
    return [_falling(own), _early(own), _same(pairs, size), _volume(products, size, _VOLUME[settings.dtype])]


def _falling(seeds: list[Readings]) -> Finding:
    later = [(r.exponent[r.epoch >= 1, 0], r.step[r.epoch >= 1]) for r in seeds]
    few = any(len(t) < FEW for _, t in later)
    positive = [float((first > 0).double().mean()) if len(first) else math.nan for first, _ in later]
    rho = [rank_correlation(first, t) if len(t) > 1 else math.nan for first, t in later]
    return Finding(
        claim="The largest Lyapunov exponent of training is positive, and falls",
        where="appendix C.1",
        criterion="from the end of the first epoch on: above 0 at every reading, Spearman's rank correlation with t "
        f"below -0.5, in every seed ({FEW} readings at least)",
        numbers="; ".join(
            f"above 0 at {p:.1%}, rank correlation {c:.3f}, {float(r.exponent[-1, 0]):.3g} at the end"
            for p, c, r in zip(positive, rho, seeds, strict=True)
        ),
        verdict="undecided"
        if few
        else verdict([p == 1 and c < -0.5 for p, c in zip(positive, rho, strict=True)], len(rho)),
    )


def tenths(r: Readings) -> list[float]:
    """Means of the local first exponent over tenths of the readings, NaN where there are fewer than ten."""
    return [float(part.mean()) if len(part) else math.nan for part in r.local[:, 0].tensor_split(10)]


def share_of_first_tenth(r: Readings) -> float:
    """Of the growth of the first exponent over the whole run."""
    growth = r.exponent[:, 0] * r.step
    return float(growth[max(0, len(growth) // 10 - 1)] / growth[-1])


def _early(seeds: list[Readings]) -> Finding:
    means = [tenths(r) for r in seeds]
    few = any(len(r.step) < FEW for r in seeds)
    held = [m[0] > max(m[5:]) for m in means]
    return Finding(
        claim="Chaos is mostly confined to the first phase of training",
        where="appendix C.1",
        criterion="the local largest exponent is higher on average over the first tenth of the readings than over each "
        f"of the last five tenths, in every seed ({FEW} readings at least)",
        numbers="; ".join(
            f"{m[0]:.3g} against at most {max(m[5:]):.3g}, {share_of_first_tenth(r):.0%} of all growth in the former"
            for m, r in zip(means, seeds, strict=True)
        ),
        verdict="undecided" if few else verdict(held, len(held)),
    )


def _same(pairs: list[tuple[Readings, Readings]], size: int) -> Finding:
    gaps = [abs(float(a.exponent[-1, 0] - b.exponent[-1, 0])) for a, b in pairs]
    errors = [math.hypot(*(float(r.error[-1, 0]) for r in pair)) for pair in pairs]
    allowed = [3 * e + math.log(size) / float(a.step[-1]) for e, (a, _) in zip(errors, pairs, strict=True)]
    known = not any(math.isnan(e) for e in errors)
    return Finding(
        claim="The largest exponent does not depend on the deviations that it is measured with",
        where="control, not in the paper",
        criterion="another random start: at the end within 3 standard errors of the difference and ln(S) / t, which "
        "the alignment of a random vector in S dimensions may cost, in every seed",
        numbers="; ".join(f"differ by {g:.2g}, allowed {a:.2g}" for g, a in zip(gaps, allowed, strict=True)),
        verdict=verdict([g <= a for g, a in zip(gaps, allowed, strict=True)], len(gaps)) if known else "undecided",
    )


def _volume(pairs: list[tuple[Readings, Readings]], size: int, tolerance: float) -> Finding:
    sums = [[float(r.exponent[-1].sum() * r.step[-1]) for r in pair] for pair in pairs]
    scale = [float(a.exponent[-1].abs().sum() * a.step[-1]) for a, _ in pairs]
    off = [abs(x - y) / max(s, 1.0) for (x, y), s in zip(sums, scale, strict=True)]
    lead = [float((b.exponent[-1, 0] - a.exponent[-1, 0]) * a.step[-1]) for a, b in pairs]
    held = [o < tolerance and -tolerance <= g <= math.log(size) for o, g in zip(off, lead, strict=True)]
    return Finding(
        claim="Re-orthonormalisation and singular values measure one volume, and nearly one largest growth",
        where="control, not in the paper",
        criterion=f"sums of the k exponents of the same deviations agree to {tolerance:g}; ln of the largest singular "
        "value is above that of the first deviation's growth by 0 to ln(S), in every seed",
        numbers="; ".join(f"sums off by {o:.1g}, largest {g:.3g} above" for o, g in zip(off, lead, strict=True)),
        verdict=verdict(held, len(held)),
    )
