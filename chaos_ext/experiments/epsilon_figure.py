"""The figure of ``chaos-ext reproduce epsilon``: growth over eps, its error, and how float32 departs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..figures import COLORS, import_numpy
from .fig1 import title_of
from .fig3_figure import finish
from .series import columns
from .settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOKS = {"float64": (COLORS["negative"], "-", "o"), "float32": (COLORS["chaotic"], (0, (4, 2)), "^")}


def figure_epsilon(metrics: Path, settings: Settings, eps: Sequence[float], distances: Sequence[str]) -> Figure:
    """Of the first seed: d(T)/eps, its distance from ||Y_T u||, and d(t)/eps in float32."""
    import_numpy()
    from matplotlib.figure import Figure

    found = columns(metrics, "step", "linear", "floor", *distances)
    tables = {run: next(iter(found[run].values())) for run in _LOOKS}
    figure = Figure(figsize=(15, 4.8), layout="constrained", dpi=150)
    left, middle, right = figure.subplots(1, 3)
    for run, (color, style, marker) in _LOOKS.items():
        _, linear, floor, *ends = tables[run][-1].tolist()
        look: dict[str, Any] = {"color": color, "linestyle": style, "linewidth": 1.4, "marker": marker, "markersize": 4}
        left.plot(eps, [d / e for d, e in zip(ends, eps, strict=True)], **look, label=run)
        off = [max(abs(d / (e * linear) - 1), 1e-12) for d, e in zip(ends, eps, strict=True)]
        middle.plot(eps, off, **look, label=run)
        for ax in (left, middle):
            ax.axvline(floor / linear, color=color, linestyle=":", linewidth=1.2, label=f"{run}: eps ||Y u|| = floor")
    left.axhline(tables["float64"][-1, 1], color="0.5", linewidth=0.9, label="left: ||Y u|| of the tangent map")
    middle.axhline(0.01, color="0.5", linewidth=0.9, label="middle: 1 %")
    table = tables["float32"][~tables["float32"][:, 1].isnan()]
    chosen = [i for i, e in enumerate(eps) if e >= 1e-8][:5]
    styles: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1.5)))
    for j, (i, style) in enumerate(zip(chosen, styles, strict=True)):
        shade = str(0.75 * j / len(chosen))
        right.plot(table[:, 0], table[:, 3 + i] / eps[i], color=shade, linestyle=style, linewidth=1.3,
            label=f"eps = {eps[i]:.0e}")  # fmt: skip
    right.plot(table[:, 0], table[:, 1], color=COLORS["positive"], linewidth=1.6, label="||Y u|| of the tangent map")
    for ax in (left, middle, right):
        ax.set_yscale("log")
    for ax in (left, middle):
        ax.set_xscale("log")
    finish(left, "distance at the end / eps", "eps, displacement before training")
    finish(middle, "relative error of eps ||Y u|| at the end", "eps, displacement before training")
    finish(right, "distance / eps in float32")
    right.set_ylim(top=10 * right.get_ylim()[1])  # room for the legend
    right.legend(frameon=False, fontsize="small", loc="upper left", ncols=2)
    for ax in (left, middle):
        ax.get_legend().remove()
    lines, texts = (a + b[-1:] for a, b in zip(*(ax.get_legend_handles_labels() for ax in (left, middle)), strict=True))
    figure.legend(lines, texts, loc="outside lower left", ncols=3, frameon=False)
    figure.suptitle(title_of(settings), fontsize="medium")
    return figure
