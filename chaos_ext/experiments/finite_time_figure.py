"""The figure of ``chaos-ext reproduce finite-time``: extreme exponents over steps, and all of them at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import chaos_ext as ce

from ..figures import COLORS, import_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_finite_time(spec: ce.FiniteTimeSpectrum, title: str) -> Figure:
    """Two panels: the largest and smallest exponent during the run, and the whole spectrum at its end."""
    import_numpy()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    _draw_extremes(left, spec.extremes)
    _draw_spectrum(right, spec)
    figure.suptitle(title, fontsize="medium")
    return figure


def _draw_extremes(ax: Any, extremes: ce.Extremes) -> None:
    steps = extremes.steps.tolist()
    for name, color in (("largest", COLORS["chaotic"]), ("smallest", COLORS["negative"])):
        values, tolerances = (getattr(extremes, n).tolist() for n in (name, f"{name}_tolerance"))
        ax.plot(steps, values, color=color, linewidth=1.2, label=name)
        bands = [[v + sign * t for v, t in zip(values, tolerances, strict=True)] for sign in (-1, 1)]
        ax.fill_between(steps, *bands, color=color, alpha=0.2, linewidth=0)
    _finish(ax, "optimizer step t")
    if steps:
        ax.set_xscale("log")


def _draw_spectrum(ax: Any, spec: ce.FiniteTimeSpectrum) -> None:
    values, neutral = spec.exponents.tolist(), spec.neutral.tolist()
    for wanted, color, name in ((False, COLORS["sgd"], "finite"), (True, COLORS["positive"], "neutral")):
        shown = [(i + 1, v) for i, (v, n) in enumerate(zip(values, neutral, strict=True)) if n == wanted]
        points = ([i for i, _ in shown], [v for _, v in shown])
        look = {"color": color, "markersize": 5 if wanted else 2, "label": f"{name} ({len(shown)})"}
        ax.plot(*points, ".", **look, rasterized=True)
    ax.set_yscale("symlog", linthresh=1 / max(spec.steps, 1))  # one e-fold over the run
    _finish(ax, "index" + (" (restricted map)" if spec.is_restricted else ""))


def _finish(ax: Any, label: str) -> None:
    ax.axhline(0, color="0.5", linewidth=0.8, zorder=0)
    ax.set_xlabel(label)
    ax.set_ylabel("finite-time exponent (nats per step)")
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.legend(frameon=False)
