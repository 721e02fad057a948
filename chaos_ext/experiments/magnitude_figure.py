"""The figure of ``chaos-ext reproduce magnitude``: distances at the end over eps, how they grew, and accuracies."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from ..figures import import_numpy
from .fig1 import title_of
from .fig3_figure import LOOKS, finish
from .fig3_run import Fig3Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_magnitude(metrics: Path, settings: Fig3Settings) -> Figure:
    """Of all seeds, each a line: three panels over eps, with the distance of two initialisations."""
    import_numpy()
    from matplotlib.figure import Figure

    with metrics.open(newline="") as f:
        rows = list(csv.DictReader(f))
    figure = Figure(figsize=(15, 4.6), layout="constrained", dpi=150)
    panels = figure.subplots(1, 3)
    for i, seed in enumerate(map(str, settings.seeds)):
        for strategy, (color, style) in LOOKS.items():
            own = sorted((r for r in rows if r["seed"] == seed and r["strategy"] == strategy), key=_eps)
            for ax, name in zip(panels, ("distance", "growth", "test_accuracy"), strict=True):
                ax.plot([_eps(r) for r in own], [float(r[name]) for r in own], color=color, linestyle=style,
                    linewidth=1.4, marker=".", label=None if i else strategy)  # fmt: skip
    eps, scale = sorted(settings.eps), float(rows[0]["init_distance"])
    panels[0].plot(eps, eps, color="0.5", linewidth=0.9, label="neither grown nor shrunk; not displaced")
    panels[1].axhline(1, color="0.5", linewidth=0.9)
    panels[2].axhline(float(rows[0]["test_accuracy"]), color="0.5", linewidth=0.9)
    for ax in panels:
        ax.axvline(scale, color="0.5", linestyle=":", linewidth=1.2, label=f"two initialisations: {scale:.3f}")
        ax.set_xscale("log")
    panels[0].set_yscale("log")
    panels[1].set_yscale("log")
    x = "eps, displacement before training"
    for ax, y in zip(
        panels,
        ("distance at the end of training", "distance at the end / eps", "test accuracy at the end"),
        strict=True,
    ):
        finish(ax, y, x)
        ax.get_legend().remove()
    lines, texts = panels[0].get_legend_handles_labels()
    figure.legend(lines, texts, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title_of(settings), fontsize="medium")
    return figure


def _eps(row: dict[str, str]) -> float:
    return float(row["eps"])
