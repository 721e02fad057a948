"""The figure of ``chaos-ext reproduce bounds``: worst failures over eps, and when they happen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..figures import import_numpy
from .fig1 import title_of
from .fig3_figure import LOOKS, finish
from .fig3_findings import read_twins
from .fig3_run import Fig3Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1.2)))


def figure_bounds(
    metrics: Path, settings: Fig3Settings, found: Mapping[tuple[str, float, str], tuple[Tensor, Tensor]], slack: float
) -> Figure:
    """Of the first seed: e-folds above and below over eps; distance / eps over steps, with the upper bound."""
    import_numpy()
    from matplotlib.figure import Figure

    seed, eps = str(settings.seeds[0]), sorted(settings.eps)
    figure = Figure(figsize=(15, 4.8), layout="constrained", dpi=150)
    left, middle, right = figure.subplots(1, 3)
    for strategy, (color, style) in LOOKS.items():
        look: dict[str, Any] = {"color": color, "linestyle": style, "linewidth": 1.4, "label": strategy}
        for side, ax in enumerate((left, middle)):
            ax.plot(eps, [float(found[seed, e, strategy][side].max()) for e in eps], marker=".", **look)
    for ax in (left, middle):
        ax.axhline(slack, color="0.5", linestyle=":", linewidth=1.2, label="tolerated")
        ax.set_xscale("log")
        ax.set_yscale("symlog", linthresh=slack)
        ax.set_ylim(bottom=0)
    _course(right, metrics, seed, eps)
    finish(left, "e-folds above the upper bound, at worst", "eps, displacement before training")
    finish(middle, "e-folds below the lower bound, at worst", "eps, displacement before training")
    finish(right, "distance / eps (max_chaotic)")
    figure.suptitle(title_of(settings), fontsize="medium")
    return figure


def _course(ax: Any, metrics: Path, seed: str, eps: list[float]) -> None:
    """Twins along the most chaotic direction at up to four eps, with the upper bound."""
    twins = read_twins(metrics)
    chosen = [
        eps[round(i)] for i in torch.linspace(0, len(eps) - 1, min(len(eps), len(_STYLES)), device="cpu").tolist()
    ]
    for i, (e, style) in enumerate(zip(chosen, _STYLES, strict=False)):
        r = twins[seed, "max_chaotic", e]
        ax.plot(r.step, r.distance / e, color=str(0.7 * i / len(_STYLES)), linestyle=style, linewidth=1.4,
            label=f"eps = {e:g}")  # fmt: skip
    known = ~r.upper.isnan()
    ax.plot(r.step[known], r.upper[known] / e, color="#009E73", linewidth=1.8, zorder=0, label="upper bound")
    ax.set_yscale("log")
