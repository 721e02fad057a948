"""The figure of ``chaos-ext reproduce exponents``: exponents so far, local ones, and the loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..figures import COLORS, import_numpy
from .exponents_findings import Readings, read, tenths
from .fig1 import title_of
from .panels import finish
from .settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOKS = {
    "qr": (COLORS["chaotic"], "-", "largest"),
    "restart": (COLORS["negative"], (0, (4, 3)), "largest, other start"),
    "svd": (COLORS["sgd"], (0, (1, 1.5)), "largest singular value"),
}


def figure_exponents(metrics: Path, settings: Settings) -> Figure:
    """The first seed; of the loss all of them."""
    import_numpy()
    from matplotlib.figure import Figure

    found = read(metrics)
    figure = Figure(figsize=(15, 4.4), layout="constrained", dpi=150)
    left, middle, right = figure.subplots(1, 3)
    for run, seeds in found.items():
        color, style, text = _LOOKS[run]
        r = next(iter(seeds.values()))
        left.plot(r.step, r.exponent[:, 0], color=color, linestyle=style, linewidth=1.6, label=text, zorder=3)
    if "qr" in found:  # else it broke off before its first reading
        own = next(iter(found["qr"].values()))
        _others(left, own)
        _local(middle, own)
        for i, r in enumerate(found["qr"].values()):
            right.plot(r.step, r.loss, color=COLORS["sgd"], alpha=0.7, linewidth=1,
                label=None if i else "mean since the reading before, each seed")  # fmt: skip
    left.set_xscale("log")
    finish(left, "exponent since the start (nats per step)")
    finish(middle, "local largest exponent (nats per step)")
    finish(right, "training loss")
    right.set_ylim(bottom=0)
    figure.suptitle(title_of(settings), fontsize="medium")
    return figure


def _others(ax: Any, r: Readings) -> None:
    others = r.exponent[:, 1:].unbind(1)
    for i, values in enumerate(others):
        ax.plot(r.step, values, color="0.6", linewidth=0.6, label=None if i else f"the next {len(others)}")
    ax.axhline(0, color="0.4", linewidth=0.9, zorder=0)


def _local(ax: Any, r: Readings) -> None:
    color, _, _ = _LOOKS["qr"]
    ax.plot(r.step, r.local[:, 0], color=color, alpha=0.45, linewidth=0.7, label="between readings")
    if len(r.step) >= 10:
        ends = _edges(r.step)
        ax.stairs(tenths(r), ends, color=COLORS["sgd"], linewidth=1.8, baseline=None, label="means over tenths")
    ax.axhline(0, color="0.4", linewidth=0.9, zorder=0)


def _edges(step: Tensor) -> list[float]:
    """Where tenths of the readings begin and end."""
    return [0.0, *(float(part[-1]) for part in step.tensor_split(10))]
