"""Intervals of estimates from samples that are few or correlated: moving blocks, widened percentiles, Student's t."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

_NORMAL = NormalDist()
_NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A number with an interval.

    Attributes:
        value: the estimate.
        low, high: ends of its interval; NaN where the data do not say how uncertain it is.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def check_level(level: object) -> float:
    """The level of an interval; raises ValueError outside (0, 1)."""
    if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level < 1:
        raise ValueError(f"level: expected a number in (0, 1) such as 0.95, got {level!r}")
    return float(level)


def student_quantile(p: float, dof: int) -> float:
    """t with P(T <= t) = p for Student's T of ``dof`` >= 1 degrees of freedom, by bisection of the exact sum."""
    if p < 0.5:
        return -student_quantile(1 - p, dof)
    low, high = 0.0, 1.0
    while _student_cdf(high, dof) < p:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, dof) < p else (low, middle)
    return high


def _student_cdf(t: float, dof: int) -> float:
    """P(T <= t) for t >= 0: a finite sum for whole degrees of freedom (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    angle = math.atan(t / math.sqrt(dof))
    c, even = math.cos(angle) ** 2, dof % 2 == 0
    term = total = 1.0 if even else math.cos(angle)
    for j in range(1, dof // 2) if even else range(1, (dof - 1) // 2):
        term *= c * ((2 * j - 1) / (2 * j) if even else 2 * j / (2 * j + 1))
        total += term
    if even:
        return 0.5 + 0.5 * math.sin(angle) * total
    return 0.5 + (angle + math.sin(angle) * (total if dof > 1 else 0.0)) / math.pi


def student_interval(value: float, deviations: Tensor, level: float) -> Estimate:
    """value +- t s / sqrt n for an estimate that is, to first order, value + the mean of n deviations; NaN if n < 2."""
    n = len(deviations)
    if n < 2:
        return Estimate(value, _NAN, _NAN)
    half = student_quantile((1 + level) / 2, n - 1) * float(deviations.std()) / math.sqrt(n)
    return Estimate(value, value - half, value + half)


def percentile_interval(samples: Tensor, level: float, n: int) -> tuple[float, float]:
    """The interval of bootstrap estimates [B] that were made of n independent parts each.

    Percentiles, moved outwards so that the interval of a mean has the width of Student's: the plain ones are too narrow
    by sqrt(n / (n - 1)) and by the heavier tails (Hesterberg, The American Statistician 69, 2015, section 5.3).
    """
    tail = _NORMAL.cdf(-math.sqrt(n / (n - 1)) * student_quantile((1 + level) / 2, n - 1))
    ranked, last = samples.sort().values, len(samples) - 1
    return float(ranked[round(tail * last)]), float(ranked[round((1 - tail) * last)])


def block_length(series: Tensor) -> int | None:
    """Length of the blocks in which a correlated series [m] is resampled, or None where its memory is too long to tell.

    Three times what Politis and White advise (Econometric Reviews 23, 2004; Patton, Politis, White, ibid. 28, 2009):
    (2 G^2 / D)^(1/3) m^(1/3) with G = sum |k| R(k) and D = (4/3) (sum R(k))^2 of the autocovariances R under a flat-top
    window, twice as wide as the lag after which they are noise. That is best for a variance, and too short for
    intervals of a trend: they hold the truth in 80 of 100 cases where three times as long blocks do in 95.
    """
    m = len(series)
    x = series - series.mean()
    around = max(5, math.ceil(math.sqrt(math.log10(m))))
    lags = min(math.ceil(math.sqrt(m)) + around, m - 1)
    R = torch.stack([x[k:] @ x[: m - k] / m for k in range(lags + 1)])
    if float(R[0]) == 0:
        return 1
    silent = (R / R[0]).abs() < 2 * math.sqrt(math.log10(m) / m)
    quiet = [j for j in range(lags - around + 1) if bool(silent[j + 1 : j + 1 + around].all())]
    if not quiet:
        return None
    width = min(2 * max(quiet[0], 1), lags)
    k = torch.arange(-width, width + 1, dtype=torch.float64, device="cpu")
    window = (2 * (1 - k.abs() / width)).clamp(0, 1)
    covariance = window * R[k.abs().long()]
    G, total = float(covariance @ k.abs()), float(covariance.sum())
    return 3 * max(1, math.ceil((1.5 * G * G / total**2 * m) ** (1 / 3))) if total else None


def block_counts(m: int, length: int, resamples: int, generator: torch.Generator) -> Tensor:
    """How often each of m points comes up in resamples of moving blocks, float64 [resamples, m].

    Blocks may start anywhere and go round at the end, so that every point is as likely; the last one is cut to m.
    """
    blocks = -(-m // length)
    starts = torch.randint(m, (resamples, blocks, 1), generator=generator, device="cpu")
    chosen = (starts + torch.arange(length, device="cpu")).view(resamples, -1)[:, :m] % m
    return count(chosen, m)


def count(chosen: Tensor, m: int) -> Tensor:
    """How often each of m indices is in each row of ``chosen`` [B, n], float64 [B, m]."""
    ones = torch.ones(chosen.shape, dtype=torch.float64, device="cpu")
    return torch.zeros(len(chosen), m, dtype=torch.float64, device="cpu").scatter_add_(1, chosen, ones)
