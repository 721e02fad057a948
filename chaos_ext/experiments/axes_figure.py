"""The figure of ``chaos-ext reproduce axes``: curvature along axes, and how many are negative, of the first seed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..figures import COLORS, import_numpy
from .axes_findings import curvatures, negative_share
from .fig1 import title_of
from .panels import finish, signed_log
from .settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colour, dashes, and text of each set.
_LOOKS: dict[str, tuple[str, Any, str]] = {
    "top-end": (COLORS["positive"], "-", "largest at the end"),
    "negative-start": (COLORS["negative"], "--", "most negative at the start"),
    "random": (COLORS["sgd"], ":", "random"),
    "top-start": ("#E69F00", (0, (6, 1.5, 1, 1.5)), "largest at the start"),
    "negative-end": (COLORS["chaotic"], (0, (1, 1)), "most negative at the end"),
}


def figure_axes(metrics: Path, settings: Settings) -> Figure:
    """Panels of the two sets and the control, and one of the share of negative axes in all sets."""
    import_numpy()
    from matplotlib.figure import Figure

    found = {run: next(iter(seeds.values())) for run, seeds in curvatures(metrics).items()}
    figure = Figure(figsize=(15, 4.2), layout="constrained", dpi=150)
    *panels, last = figure.subplots(1, 4)
    for ax, run in zip(panels, ("top-end", "negative-start", "random"), strict=True):
        if run in found:  # else it broke off before its first reading
            _draw_set(ax, *found[run], _LOOKS[run])
    for run, (color, style, text) in _LOOKS.items():
        if run not in found:
            continue
        steps, table = found[run]
        last.plot(steps, negative_share(table), color=color, linestyle=style, linewidth=1.4, label=text)
    last.set_ylim(-0.03, 1.03)
    finish(last, "share of axes with negative curvature", title="axes")
    figure.suptitle(title_of(settings), fontsize="medium")
    return figure


def _draw_set(ax: Any, steps: Tensor, table: Tensor, look: tuple[str, Any, str]) -> None:
    color, _, text = look
    for i, values in enumerate(table.unbind(1)):
        ax.plot(steps, values, color=color, alpha=0.35, linewidth=0.7, label=None if i else "each axis")
    ax.plot(steps, table.median(1).values, color=color, linewidth=2, label="median")
    signed_log(ax, table)
    ax.set_title(text, loc="left", fontsize="medium")
    finish(ax, "curvature along the axis")
