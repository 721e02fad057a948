"""Numbers off the rows of a study, seed by seed."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class Spread(NamedTuple):
    """Mean and standard deviation over seeds; of one seed the latter is NaN."""

    mean: float
    sd: float

    def __str__(self) -> str:
        return f"{self.mean:.4g}" if math.isnan(self.sd) else f"{self.mean:.4g} +- {self.sd:.2g}"


def spread(values: Sequence[float]) -> Spread:
    """Of one value a seed."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan)


def columns(metrics: Path, *names: str) -> dict[str, dict[str, Tensor]]:
    """run -> seed -> columns of a metrics file, float64 [steps, names], NaN where empty."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    with metrics.open(newline="") as f:
        for row in csv.DictReader(f):
            values = [float(row[n]) if row[n] else math.nan for n in names]
            found.setdefault(row["run"], {}).setdefault(row["seed"], []).append(values)
    return {
        run: {seed: torch.tensor(rows, dtype=torch.float64, device="cpu") for seed, rows in seeds.items()}
        for run, seeds in found.items()
    }


def last_epoch(metrics: Path, name: str) -> dict[str, list[float]]:
    """run -> means of a column over the steps of one epoch at the end, one a seed; of all steps, if they are fewer."""
    found = columns(metrics, name, "val_loss")
    return {run: [float(c[-_epoch(c[:, 1]) :, 0].mean()) for c in seeds.values()] for run, seeds in found.items()}


def _epoch(evaluations: Tensor) -> int:
    """Steps of an epoch: the first evaluation is at its end."""
    return int((~evaluations.isnan()).nonzero()[0]) + 1


def slope(values: Tensor) -> float:
    """Of the least-squares line through values at steps 0, 1, 2 ..."""
    t = torch.arange(len(values), dtype=torch.float64, device="cpu")
    t = t - t.mean()
    return float((t @ values) / (t @ t))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rho; NaN where one of them is constant."""
    x, y = (ranks(v) - (len(v) + 1) / 2 for v in (a, b))
    return float((x @ y) / (x.norm() * y.norm()))


def ranks(v: Tensor) -> Tensor:
    """1, 2, ... with the mean rank for equal values."""
    _, inverse, counts = torch.unique(v, sorted=True, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1) / 2)[inverse]
