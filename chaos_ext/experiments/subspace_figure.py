"""The figure of ``chaos-ext reproduce subspace``: overlaps over training and over tau, of the first seed."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..figures import COLORS, import_numpy
from .fig1 import title_of
from .panels import finish
from .settings import Settings
from .subspace_findings import Found, Reading, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TAUS = (("#000000", "-"), ("#0072B2", (0, (6, 1.5))), ("#D55E00", (0, (3, 2))), ("#E69F00", (0, (1, 1.2))))
_PAIRS = {
    "negative-negative": (COLORS["negative"], "-", "o", "negative with negative"),
    "positive-positive": (COLORS["positive"], "--", "s", "positive with positive"),
    "negative-positive": (COLORS["sgd"], ":", "^", "negative with later positive"),
}


def figure_subspace(metrics: Path, settings: Settings) -> Figure:
    """Overlaps of negative and positive eigenspaces, their means over tau, and those with expanding directions."""
    import_numpy()
    from matplotlib.figure import Figure

    found, runs = read(metrics), settings.runs
    wide = 3 * ("eigenspaces" in runs) + ("expanding" in runs)
    figure = Figure(figsize=(3.75 * wide + 0.6, 4.2), layout="constrained", dpi=150)
    panels = list(figure.subplots(1, wide, squeeze=False).flat)
    if "eigenspaces" in runs:
        for ax, name in zip(panels, ("negative", "positive"), strict=False):
            _over_training(ax, found, f"{name}-{name}")
            finish(ax, f"overlap of {name} eigenspaces", "optimizer step t + tau")
        _over_tau(panels[2], found)
        finish(panels[2], "mean overlap", "tau (optimizer steps)", title="lines: overlap, thin: by chance")
    if "expanding" in runs:
        _expanding(panels[-1], found)
        finish(panels[-1], "overlap with expanding directions")
    for ax in panels:
        ax.set_ylim(-0.02, 1.02)
    figure.suptitle(title_of(settings), fontsize="medium")
    return figure


def _first(found: Found, pair: str, tau: str) -> list[Reading]:
    return next(iter(found[pair, tau].values()))


def _taus(found: Found, pair: str) -> list[str]:
    return sorted((t for p, t in found if p == pair), key=int)


def _over_training(ax: Any, found: Found, pair: str) -> None:
    for i, tau in enumerate(_taus(found, pair)):
        own, (color, style) = _first(found, pair, tau), _TAUS[i % len(_TAUS)]
        ax.plot([r.step for r in own], [r.overlap for r in own], color=color, linestyle=style, linewidth=1.1,
            marker="." if len(own) < 3 else None, label=f"tau = {tau}")  # fmt: skip
        by_chance = "by chance" if not i else None
        ax.plot([r.step for r in own], [r.baseline for r in own], color="0.55", linewidth=0.8, label=by_chance)


def _over_tau(ax: Any, found: Found) -> None:
    for pair, (color, style, marker, text) in _PAIRS.items():
        taus = [t for t in _taus(found, pair) if _first(found, pair, t)]
        own = [_first(found, pair, t) for t in taus]
        steps = [int(t) for t in taus]
        means = [statistics.fmean(r.overlap for r in readings) for readings in own]
        chance = [statistics.fmean(r.baseline for r in readings) for readings in own]
        if steps:
            ax.plot(steps, means, color=color, linestyle=style, marker=marker, markersize=4, label=text)
            ax.plot(steps, chance, color=color, linestyle=style, linewidth=0.6)
    if _taus(found, "negative-negative"):
        ax.set_xscale("log")


def _expanding(ax: Any, found: Found) -> None:
    for name, marker, style in (("negative", "o", "-"), ("positive", "s", "--")):
        if (f"{name}-expanding", "") not in found:
            continue
        own = _first(found, f"{name}-expanding", "")
        steps, color = [r.step for r in own], COLORS[name]
        ax.plot(steps, [r.overlap for r in own], color=color, linestyle=style, marker=marker, markersize=4, label=name)
        ax.plot(
            steps, [r.baseline for r in own], color=color, linestyle=style, linewidth=0.6, label=f"{name}, by chance"
        )
