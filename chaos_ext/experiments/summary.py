"""summary.csv of a study of trainings: one row a run, averaged over its seeds."""

from __future__ import annotations

import csv
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ..base.files import atomic_write
from .output import METRICS, SUMMARY, OutputFolder

_COLUMNS = ("run", "seeds", "steps", "train_loss", "train_loss_sd", "train_accuracy", "val_loss", "val_accuracy")


class _Series:
    """Running summary of one unit's rows."""

    def __init__(self, last: int, means: Sequence[str]) -> None:
        self.steps = 0
        self.tail: deque[tuple[float, float]] = deque(maxlen=last)
        self.sums = dict.fromkeys(means, 0.0)
        self.val_loss = self.val_accuracy = float("nan")

    def add(self, row: Mapping[str, str]) -> None:
        self.steps += 1
        self.tail.append((float(row["loss"]), float(row["accuracy"])))
        for name in self.sums:
            self.sums[name] += float(row[name])
        if row["val_loss"]:
            self.val_loss, self.val_accuracy = float(row["val_loss"]), float(row["val_accuracy"])


def write_summary(out: OutputFolder, last: int, means: Sequence[str]) -> list[dict[str, Any]]:
    """Writes summary.csv, one row a run, from the metrics.csv of trainings and returns its rows.

    train_loss and train_accuracy are means over the last ``last`` steps (an epoch) of every seed, then over seeds;
    train_loss_sd is the standard deviation over seeds (empty for one); val_* are those of the last evaluation, and
    mean_* are means over all steps of the columns ``means``, both averaged over seeds.
    """
    series: dict[str, dict[str, _Series]] = {}
    with (out.path / METRICS).open(newline="") as f:
        for row in csv.DictReader(f):
            series.setdefault(row["run"], {}).setdefault(row["seed"], _Series(last, means)).add(row)
    rows = [_summarise(run, list(seeds.values())) for run, seeds in series.items()]

    columns = (*_COLUMNS, *(f"mean_{name}" for name in means))
    lines = [",".join(columns)]
    lines += [",".join("" if row[c] is None else str(row[c]) for c in columns) for row in rows]
    atomic_write(out.path / SUMMARY, "\n".join(lines) + "\n")
    return rows


def _summarise(run: str, seeds: list[_Series]) -> dict[str, Any]:
    losses = [statistics.fmean(loss for loss, _ in s.tail) for s in seeds]
    values: dict[str, Any] = {
        "train_loss": statistics.fmean(losses),
        "train_loss_sd": statistics.stdev(losses) if len(losses) > 1 else None,
        "train_accuracy": statistics.fmean(statistics.fmean(a for _, a in s.tail) for s in seeds),
        "val_loss": statistics.fmean(s.val_loss for s in seeds),
        "val_accuracy": statistics.fmean(s.val_accuracy for s in seeds),
    }
    values |= {f"mean_{name}": statistics.fmean(s.sums[name] / s.steps for s in seeds) for name in seeds[0].sums}
    # No NaN: an evaluation that never came is as empty here as in metrics.csv, and JSON has no NaN.
    rounded = {n: None if v is None or math.isnan(v) else float(f"{v:.6g}") for n, v in values.items()}
    return {"run": run, "seeds": len(seeds), "steps": sum(s.steps for s in seeds), **rounded}
