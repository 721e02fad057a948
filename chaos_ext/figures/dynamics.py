"""Figures of growth: Lyapunov exponents as a run goes on, or all of them at its end, and how twins part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..dynamics.finite_time.result import FiniteTimeSpectrum
from ..metrics.divergence_fit import DivergenceFit
from .axes import COLORS, import_numpy, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CYCLE = ("#D55E00", "#000000", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (8, 1.5, 1.5, 1.5)))
_MOST_LABELS = 7


def plot_exponents(source: Any, ax: Axes | None = None, *, known: Sequence[float] = ()) -> Axes:
    """Draws Lyapunov exponents: running means over steps, or all finite-time exponents by rank.

    Args:
        source: what has a ``history``, ``exponents`` and ``errors``, such as a ``LyapunovAnalyzer`` by QR or a
            ``LyapunovResult``: its running means, each with its standard error at the end. Or a ``FiniteTimeSpectrum``:
            its exponents by rank, those that are zero within their tolerance apart.
        ax: axes to draw on; None makes a new figure.
        known: values to compare with, as thin horizontal lines.

    Returns:
        The axes drawn on.

    Raises:
        TypeError: another kind of source.
    """
    np = import_numpy()
    if not isinstance(source, FiniteTimeSpectrum) and not all(hasattr(source, n) for n in ("history", "errors")):
        raise TypeError(
            f"source: expected exponents with a history, or a FiniteTimeSpectrum, got {type(source).__name__}"
        )
    ax = new_axes() if ax is None else ax
    if isinstance(source, FiniteTimeSpectrum):
        _draw_ranked(ax, np, source)
    else:
        _draw_running(ax, np, source)
    for value in known:
        ax.axhline(value, color="0.5", linewidth=0.7, zorder=0)
    ax.axhline(0, color="0.4", linewidth=0.8, zorder=0)
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.legend(frameon=False, fontsize="small")
    return ax


def _draw_running(ax: Axes, np: Any, source: Any) -> None:
    steps, exponents = (np.array(t.tolist()) for t in source.history)
    errors = np.array((source.errors() if callable(source.errors) else source.errors).tolist())
    for i, values in enumerate(exponents.T):
        color, style = _CYCLE[i % len(_CYCLE)], _STYLES[i % len(_STYLES)]
        label = f"{values[-1]:+.3g} ± {errors[i]:.1g}" if i < _MOST_LABELS else None
        ax.plot(steps, values, color=color, linestyle=style, linewidth=1.4, label=label)
        ax.errorbar(steps[-1:], values[-1:], yerr=np.nan_to_num(errors[i : i + 1]), color=color, capsize=3, linewidth=1)
    ax.set_xlabel("step")
    ax.set_ylabel("exponents so far (nats per step)")
    ax.margins(x=0.02)


def _draw_ranked(ax: Axes, np: Any, result: FiniteTimeSpectrum) -> None:
    exponents, neutral = np.array(result.exponents.tolist()), np.array(result.neutral.tolist(), dtype=bool)
    rank = np.arange(1, len(exponents) + 1)
    groups = (
        ("positive", (exponents > 0) & ~neutral, COLORS["chaotic"], "^"),
        ("zero", neutral, COLORS["sgd"], "s"),
        ("negative", (exponents < 0) & ~neutral, COLORS["negative"], "o"),
    )
    for name, mask, color, marker in groups:
        label = f"{name} ({int(mask.sum())})"
        ax.plot(rank[mask], exponents[mask], marker, color=color, markersize=4, alpha=0.7, label=label)
    size = np.abs(exponents[np.isfinite(exponents) & ~neutral])
    if len(size):
        ax.set_yscale("symlog", linthresh=float(np.median(size)))
    ax.set_xlabel(f"rank of {len(exponents)} exponents")
    ax.set_ylabel(f"ln σ / t after {result.steps} steps (nats per step)")


def plot_divergence(t: Any, distance: Any, fit: DivergenceFit | None = None, ax: Axes | None = None) -> Axes:
    """Draws how far twins are apart over steps: their root mean square, in a band from the nearest to the farthest.

    Args:
        t: steps [m].
        distance: [m], or of several twins [m, members], in parameter space.
        fit: of ``fit_divergence``; its two laws are drawn, with the coefficients of the first.
        ax: axes to draw on; None makes a new figure.

    Returns:
        The axes drawn on.

    Raises:
        ValueError: not one row of distances for each step.
    """
    np = import_numpy()
    steps, d = (np.asarray(v.tolist() if hasattr(v, "tolist") else v, dtype=np.float64) for v in (t, distance))
    d = d.reshape(len(d), -1)
    if steps.ndim != 1 or len(steps) != len(d):
        raise ValueError(f"distance: expected {len(steps)} rows, one a step of t, got {len(d)}")
    ax = new_axes() if ax is None else ax
    rms = np.sqrt((d**2).mean(1))
    if d.shape[1] > 1:
        low, high, blue = d.min(1), d.max(1), COLORS["negative"]
        ax.fill_between(steps, low, high, color=blue, alpha=0.2, linewidth=0, label="nearest to farthest")
    label = "distance" if d.shape[1] == 1 else f"root mean square of {d.shape[1]} twins"
    ax.plot(steps, rms, color=COLORS["negative"], linewidth=1.6, label=label)
    if fit is not None:
        _draw_laws(ax, steps, fit)
    ax.set_xlabel("step")
    ax.set_ylabel("distance of parameters (Euclidean)")
    ax.margins(x=0.01)
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.legend(frameon=False, fontsize="small")
    return ax


def _draw_laws(ax: Axes, steps: Any, fit: DivergenceFit) -> None:
    import torch

    at = torch.tensor(steps.tolist(), dtype=torch.float64, device="cpu")
    laws = ((fit.plain, "√(αt² + βt)", "-."), (fit.offset, "√(αt² + βt + ε²)", "--"))
    for law, formula, style in laws:
        label = f"{formula}: α = {law.alpha.value:.2g}, β = {law.beta.value:.2g}"
        ax.plot(steps, law.distance(at).tolist(), color="black", linewidth=1.1, linestyle=style, label=label)
