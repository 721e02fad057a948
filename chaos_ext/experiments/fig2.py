"""Figure 2: directions pruned from step 2,000, 5,000 or 10,000 on, of a network with sigmoids.

Until pruning begins a run is that of plain SGD, bit for bit; what changes then is what the directions do.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..data import Dataset
from ..figures import figure_training
from . import pruned
from .fig1 import title_of
from .fig2_options import NAME, QUICK_START, QUICK_STEPS, START
from .findings import Finding, verdict
from .pruned import Pruned, PrunedTraining
from .report import Records
from .series import columns, slope
from .settings import Settings, Unit
from .study import Study, run_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AFTER = 2000  # steps after the onset over which slopes are compared
Seeds = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Fig2Settings(Settings):
    """Settings of ``chaos-ext reproduce fig2``; ``k`` and ``order`` as of fig1."""

    k: int | None
    order: str


class Fig2(Study):
    """Plain SGD, and runs named ``SET@STEP``."""

    name, quick_steps = NAME, QUICK_STEPS
    columns, means = pruned.COLUMNS, pruned.MEANS
    shown = "n_chaotic", "n chaotic"

    def settings(self, args: argparse.Namespace, common: dict[str, Any]) -> Settings:
        """Plain SGD, and each set from each step on."""
        starts = args.start or (QUICK_START if args.quick else START)
        runs = ("sgd", *(f"{chosen}@{t}" for chosen in args.prune for t in starts))
        return Fig2Settings(**common, runs=runs, k=args.k, order=args.order)

    def work(self, settings: Settings, unit: Unit, data: Dataset) -> PrunedTraining:
        """A training that prunes as its run is named."""
        assert isinstance(settings, Fig2Settings)
        chosen, start = _parsed(unit.run)
        return PrunedTraining(
            settings, unit, data, Pruned(settings.lr, chosen, None, settings.k, settings.order, start=start)
        )

    def draw(self, name: str, metrics: Path, settings: Settings) -> Figure:
        """Accuracy and loss of all runs."""
        return figure_training(metrics, title=title_of(settings), labels={r: _label(r) for r in settings.runs})

    def findings(self, metrics: Path, settings: Settings) -> list[Finding]:
        """Whether curves agree before the onset, and what pruning does to the slope after it."""
        found = columns(metrics, "loss")
        return [f for run in found if run != "sgd" for f in (_before(found, run), _after(found, run))]

    def describe(self, record: dict[str, Any]) -> dict[str, Any]:
        """How close to the zero tolerance a run came."""
        return pruned.describe(record)

    def remarks(self, records: Records) -> dict[str, Any]:
        """The zero tolerance."""
        return pruned.remarks(records)


def _parsed(run: str) -> tuple[str | None, int]:
    chosen, _, start = run.partition("@")
    return (None, 0) if run == "sgd" else (chosen, int(start))


def _label(run: str) -> str:
    chosen, start = _parsed(run)
    return "SGD" if chosen is None else f"{chosen} pruned from step {start}"


def _pairs(found: Seeds, run: str) -> list[tuple[Tensor, Tensor]]:
    return [(found["sgd"][seed][:, 0], own[:, 0]) for seed, own in found[run].items()]


def _before(found: Seeds, run: str) -> Finding:
    start = _parsed(run)[1]
    held = [bool((a[:start] == b[:start]).all()) for a, b in _pairs(found, run)]
    return Finding(
        claim=f"Until step {start} the run with {run.partition('@')[0]} directions pruned is that of SGD",
        where="Figure 2",
        criterion="equal losses, bit for bit, at every step before the onset, in every seed",
        numbers=f"{sum(held)} of {len(held)} seeds",
        verdict=verdict(held, len(held)),
    )


def _after(found: Seeds, run: str) -> Finding:
    chosen, start = _parsed(run)
    pairs = [(a[start : start + _AFTER], b[start : start + _AFTER]) for a, b in _pairs(found, run)]
    slopes = [(slope(a), slope(b)) for a, b in pairs if len(b) > 1]
    held = [b > a for a, b in slopes]
    text = "; ".join(f"{a:.2g} against {b:.2g}" for a, b in slopes)
    return Finding(
        claim=f"From step {start} on the loss falls more slowly with {chosen} directions pruned",
        where="Figure 2",
        criterion=f"least-squares slope of the loss over {_AFTER} steps after the onset is above that of SGD, "
        "in at least 4 of 5 seeds",
        numbers=f"{sum(held)} of {len(held)} seeds; slopes of SGD against pruned: {text}",
        verdict=verdict(held, max(4, (4 * len(held) + 4) // 5)),
    )


run = functools.partial(run_study, Fig2())
