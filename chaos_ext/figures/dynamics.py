"""Figures of growth: Lyapunov exponents as a run goes on, or all of them at its end, and how twins part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..dynamics.finite_time.result import FiniteTimeSpectrum
from ..metrics.divergence_fit import DivergenceFit
from .arguments import axes_or_new, real_numbers, say_missing
from .axes import COLORS, import_numpy

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
            its exponents by rank, those that are zero within their tolerance apart. The legend says how many are not
            finite, and not drawn.
        ax: axes to draw on; None makes a new figure.
        known: values to compare with, as thin horizontal lines.

    Returns:
        The axes drawn on.

    Raises:
        TypeError: another kind of source, no axes, or ``known`` are no real numbers.
        ValueError: ``known`` is not a list of finite numbers.
    """
    np = import_numpy()
    if not isinstance(source, FiniteTimeSpectrum) and not all(hasattr(source, n) for n in ("history", "errors")):
        raise TypeError(
            f"source: expected exponents with a history, or a FiniteTimeSpectrum, got {type(source).__name__}"
        )
    lines = real_numbers("known", known)
    if lines.ndim != 1 or not np.isfinite(lines).all():
        raise ValueError(f"known: expected a list of finite numbers, got {known!r}")
    ax = axes_or_new(ax)
    if isinstance(source, FiniteTimeSpectrum):
        _draw_ranked(ax, np, source)
    else:
        _draw_running(ax, np, source)
    for value in lines:
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
        bar = np.where(np.isfinite(errors[i : i + 1]), errors[i : i + 1], 0)
        ax.errorbar(steps[-1:], values[-1:], yerr=bar, color=color, capsize=3, linewidth=1)
    say_missing(ax, exponents[-1:], "exponent")
    ax.set_xlabel("step")
    ax.set_ylabel("exponents so far (nats per step)")
    ax.margins(x=0.02)


def _draw_ranked(ax: Axes, np: Any, result: FiniteTimeSpectrum) -> None:
    exponents, neutral = np.array(result.exponents.tolist()), np.array(result.neutral.tolist(), dtype=bool)
    rank = np.arange(1, len(exponents) + 1)
    groups = (
        ("positive", np.isfinite(exponents) & (exponents > 0) & ~neutral, COLORS["chaotic"], "^"),
        ("zero", neutral | (exponents == 0), COLORS["sgd"], "s"),
        ("negative", np.isfinite(exponents) & (exponents < 0) & ~neutral, COLORS["negative"], "o"),
    )
    for name, mask, color, marker in groups:
        label = f"{name} ({int(mask.sum())})"
        ax.plot(rank[mask], exponents[mask], marker, color=color, markersize=4, alpha=0.7, label=label)
    say_missing(ax, exponents, "exponent")
    size = np.abs(exponents[np.isfinite(exponents) & ~neutral & (exponents != 0)])
    if len(size):
        ax.set_yscale("symlog", linthresh=float(np.median(size)))
    ax.set_xlabel(f"rank of {len(exponents)} exponents")
    ax.set_ylabel(f"ln σ / t after {result.steps} steps (nats per step)")


def plot_divergence(t: Any, distance: Any, fit: DivergenceFit | None = None, ax: Axes | None = None) -> Axes:
    """Draws how far twins are apart over steps: their root mean square, in a band from the nearest to the farthest.

    Args:
        t: steps [m], finite, at least one.
        distance: [m], or of several twins [m, members], in parameter space, >= 0. A step with a distance that is NaN or
            infinite is left out, and the legend says how many there are.
        fit: of ``fit_divergence``; its two laws are drawn, with the coefficients of the first.
        ax: axes to draw on; None makes a new figure.

    Returns:
        The axes drawn on.

    Raises:
        ValueError: no steps, steps that are not finite (or negative, where ``fit`` is given), negative distances, or
            not one row of distances for each step.
        TypeError: no real numbers, no ``DivergenceFit``, or no axes.
    """
    np = import_numpy()
    if fit is not None and not isinstance(fit, DivergenceFit):
        raise TypeError(f"fit: expected a DivergenceFit or None, got {type(fit).__name__}")
    steps = _steps(np, t, fit)
    d = _distances(distance, len(steps))
    ax = axes_or_new(ax)
    rms, drawn = _root_mean_square(np, d), np.isfinite(d).all(1)
    if d.shape[1] > 1:
        low, high, blue = d.min(1), d.max(1), COLORS["negative"]
        ax.fill_between(steps, low, high, where=drawn, color=blue, alpha=0.2, linewidth=0, label="nearest to farthest")
    label = "distance" if d.shape[1] == 1 else f"root mean square of {d.shape[1]} twins"
    ax.plot(steps, np.where(drawn, rms, np.nan), color=COLORS["negative"], linewidth=1.6, label=label)
    say_missing(ax, rms, label)
    if fit is not None:
        _draw_laws(ax, steps, fit)
    ax.set_xlabel("step")
    ax.set_ylabel("distance of parameters (Euclidean)")
    ax.margins(x=0.01)
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.legend(frameon=False, fontsize="small")
    return ax


def _steps(np: Any, t: Any, fit: DivergenceFit | None) -> Any:
    steps = real_numbers("t", t)
    if steps.ndim != 1 or not steps.size:
        raise ValueError(f"t: expected steps [m], at least one, got shape {steps.shape}")
    if not np.isfinite(steps).all():
        raise ValueError("t: expected finite steps, got NaN or infinity")
    if fit is not None and steps.min() < 0:
        raise ValueError(f"t: expected steps >= 0, where the laws of fit hold, got {steps.min():g}")
    return steps


def _distances(distance: Any, rows: int) -> Any:
    """Of one twin or several, [rows, members]."""
    d = real_numbers("distance", distance)
    if d.ndim not in (1, 2) or len(d) != rows or not d.size:
        raise ValueError(f"distance: expected {rows} rows, one a step of t: [m] or [m, members], got shape {d.shape}")
    if (negative := d[d < 0]).size:
        raise ValueError(f"distance: expected numbers >= 0, got {negative[0]:g}")
    return d.reshape(rows, -1)


def _root_mean_square(np: Any, d: Any) -> Any:
    """Over the last axis; rows are scaled by a power of two first, as squares of 1e200 and 1e-200 are no floats."""
    _, power = np.frexp(np.max(d, axis=1, keepdims=True))
    return np.ldexp(np.sqrt((np.ldexp(d, -power) ** 2).mean(1)), power[:, 0])


def _draw_laws(ax: Axes, steps: Any, fit: DivergenceFit) -> None:
    import torch

    at = torch.tensor(steps.tolist(), dtype=torch.float64, device="cpu")
    laws = ((fit.plain, "√(αt² + βt)", "-."), (fit.offset, "√(αt² + βt + ε²)", "--"))
    for law, formula, style in laws:
        label = f"{formula}: α = {law.alpha.value:.2g}, β = {law.beta.value:.2g}"
        ax.plot(steps, law.distance(at).tolist(), color="black", linewidth=1.1, linestyle=style, label=label)
