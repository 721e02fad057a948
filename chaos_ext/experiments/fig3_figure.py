"""The figure of ``chaos-ext reproduce fig3``: distances of twins with their bounds, and how eps matters."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..figures import import_numpy
from .fig1 import title_of
from .fig3_findings import Series, read_twins
from .fig3_run import Fig3Settings, labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, and a dash pattern each for prints in grey.
LOOKS = {
    "max_chaotic": ("#D55E00", "-"),
    "chaotic": ("#E69F00", (0, (6, 1.5))),
    "random": ("#000000", (0, (1, 1.2))),
    "nonchaotic": ("#56B4E9", (0, (4, 1.5, 1, 1.5))),
    "max_nonchaotic": ("#0072B2", (0, (3, 2))),
}


def figure_twins(metrics: Path, settings: Fig3Settings) -> Figure:
    """Of the first seed: distances at eps near 0.1, over eps at every eps, components along the displacement."""
    import_numpy()
    from matplotlib.figure import Figure

    found, seed = read_twins(metrics), str(settings.seeds[0])
    eps = min(settings.eps, key=lambda e: abs(e - 0.1))
    figure = Figure(figsize=(15, 4.6), layout="constrained", dpi=150)
    left, middle, right = figure.subplots(1, 3)
    for strategy, (color, style) in LOOKS.items():
        r = found[seed, strategy, eps]
        for ax, values in ((left, r.distance), (right, r.along)):
            ax.plot(r.step, values, color=color, linestyle=style, linewidth=1.4, label=strategy)
    _bounds(left, found[seed, "random", eps])
    for i, (strategy, e) in enumerate(x for x in labels(settings) if x[0] == "random"):
        r = found[seed, strategy, e]
        shade = str(0.75 * i / max(len(settings.eps) - 1, 1))
        middle.plot(r.step, r.distance / e, color=shade, linewidth=1.4, label=f"eps = {e:g}")
    finish(left, f"distance (eps = {eps:g})")
    finish(middle, "distance / eps (random direction)")
    finish(right, f"component along the displacement (eps = {eps:g})")
    left.set_yscale("log")
    middle.set_yscale("log")
    _leave(left, [found[seed, strategy, eps].distance for strategy in LOOKS])
    figure.suptitle(title_of(settings), fontsize="medium")
    return figure


def _bounds(ax: Any, r: Series) -> None:
    known = ~r.upper.isnan()
    for values, label in ((r.upper, "bounds by the extreme exponents"), (r.lower, None)):
        ax.plot(r.step[known], values[known], color="0.5", linewidth=0.9, label=label)


def _leave(ax: Any, shown: Iterable[Tensor]) -> None:
    """Lets the lower bound, which falls by many decades, leave through the bottom, instead of flattening the rest."""
    least = min(float(values[values > 0].min()) for values in shown)
    ax.set_ylim(bottom=least / 10)


def finish(ax: Any, y: str, x: str = "optimizer step") -> None:
    """Labels, grid, legend."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.legend(frameon=False, fontsize="small")
