"""Figures of training runs: metrics over optimizer steps, from a CSV or from arrays."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union

from ..base.arguments import require_int
from .arguments import axes_or_new, real_numbers
from .axes import COLORS, import_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

RUNS = ("sgd", "chaotic", "negative", "positive")
LABELS = {
    "sgd": "SGD",
    "chaotic": "chaotic directions pruned",
    "negative": "negative directions pruned",
    "positive": "positive directions pruned",
}
_MORE_COLORS = ("#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_MORE_STYLES = ((0, (1, 1.2)), (0, (6, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (2, 2)))
# "chaotic" and "negative" nearly coincide while no eigenvalue passes 2/lr: the dashes leave the other one visible.
# "positive" has a pattern of its own for prints in grey.
_STYLES = {"negative": (0, (4, 3)), "positive": (0, (8, 1.5, 1.5, 1.5))}
_METRIC_LABELS = {
    "loss": "training loss",
    "accuracy": "training accuracy",
    "val_loss": "validation loss",
    "val_accuracy": "validation accuracy",
}
_MAX_RAW = 1000  # of a raw curve that is drawn as it is
_BINS = 40  # of steps, for the band that stands for a longer one
_MAX_POINTS = 2000  # of a smoothed curve; more cannot be seen and makes the PDF heavy

_Number = TypeVar("_Number", int, float)
_Seed = tuple["NDArray[Any]", "NDArray[Any]"]  # steps, values
# run -> values over steps [steps], or one such array a seed [seeds, steps]
Curves = Mapping[str, Any]
Source = Union[str, "os.PathLike[str]", Curves]  # a metrics CSV, or curves


def read_metric(path: str | os.PathLike[str], metric: str) -> dict[str, list[_Seed]]:
    """Reads one column of a metrics CSV.

    Args:
        path: file with the columns run, seed, step and ``metric``, in any order and among others.
        metric: a column of numbers; rows where it is empty are left out.

    Returns:
        run -> one pair a seed of steps [n], integers, and values [n], float64; runs, seeds and rows in the order of the
        file. A seed all of whose rows are empty has two arrays of length 0.

    Raises:
        ValueError: a column or a cell is missing, or a step or value is no number: with file, line and column.
        OSError: the file cannot be read.
    """
    np = import_numpy()
    points: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    with Path(path).open(newline="") as f:
        reader = csv.reader(f)
        header = next(reader, [])
        missing = [c for c in ("run", "seed", "step", metric) if c not in header]
        if missing:
            raise ValueError(f"{path}: expected the columns run, seed, step and {metric}, got no {', '.join(missing)}")
        run_at, seed_at, step_at, value_at = (header.index(c) for c in ("run", "seed", "step", metric))
        for row in filter(None, reader):
            where = f"{path}, line {reader.line_num}"
            if len(row) != len(header):
                raise ValueError(f"{where}: expected {len(header)} cells like the columns, got {len(row)}")
            steps, values = points.setdefault(row[run_at], {}).setdefault(row[seed_at], ([], []))
            if row[value_at]:
                steps.append(_cell(row[step_at], int, f"{where}, column step", "an integer"))
                values.append(_cell(row[value_at], float, f"{where}, column {metric}", "a number"))
    return {run: [(np.array(s), np.array(v)) for s, v in seeds.values()] for run, seeds in points.items()}


def _cell(text: str, kind: Callable[[str], _Number], where: str, expected: str) -> _Number:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{where}: expected {expected}, got {text!r}") from None


def smooth(values: Any, window: int) -> NDArray[Any]:
    """Centred moving average; at the ends over the part of the window that exists, so no value is invented.

    Args:
        values: [steps], array-like.
        window: number of steps averaged, at least 1; an even one reaches one step further back than ahead.

    Returns:
        float64 [steps].

    Raises:
        ValueError: ``window`` is no int of at least 1, or ``values`` are not [steps].
        TypeError: ``values`` are no real numbers.
    """
    np = import_numpy()
    v = real_numbers("values", values)
    if v.ndim != 1:
        raise ValueError(f"values: expected [steps], got shape {v.shape}")
    require_int("window", window, 1)
    # A window longer than the curve would make np.convolve return the window's length.
    ones = np.ones(min(window, max(len(v), 1)))
    if len(v) == 0:
        return v
    averages: NDArray[Any] = np.convolve(v, ones, "same") / np.convolve(np.ones(len(v)), ones, "same")
    return averages


def _series(source: Source, metric: str) -> dict[str, list[_Seed]]:
    if isinstance(source, (str, os.PathLike)):
        return read_metric(source, metric)
    if not isinstance(source, Mapping):
        raise TypeError(f"source: expected a CSV, or a mapping of run -> values, got {type(source).__name__}")
    np = import_numpy()
    rows = {run: np.atleast_2d(real_numbers(f"source[{run!r}]", values)) for run, values in source.items()}
    for run, table in rows.items():
        if table.ndim > 2:
            raise ValueError(f"source[{run!r}]: expected [steps] or [seeds, steps], got shape {table.shape}")
    return {run: [(np.arange(len(r)), r) for r in table] for run, table in rows.items()}


def plot_training(
    source: Source,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    window: int = 50,
    runs: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    raw: bool = True,
    legend: bool = True,
) -> Axes:
    """Draws a metric of training runs over optimizer steps: smoothed curves over what they smooth, faintly.

    With several seeds the curve is the mean over seeds of the smoothed curves, in a band from their minimum to their
    maximum. Seeds of different length (a diverged run) are compared over the steps that all of them reached.

    Args:
        source: a metrics CSV of ``chaos-ext reproduce fig1``, or run -> array [steps] or [seeds, steps].
        ax: axes to draw on; None makes a new figure.
        metric: column of the CSV, and the label of the y axis.
        window: steps that the moving average spans; 1 draws the values themselves.
        runs: which runs, in drawing order; default all, the known ones first.
        labels: run -> its text in the legend, where that is not its name; those of Figure 1 have theirs.
        raw: whether to draw the unsmoothed curves. A curve of more than 1000 steps is drawn as a band that holds the
            middle half of the values of each fortieth of the steps.
        legend: whether to draw the legend.

    Returns:
        The axes drawn on; ``ax.figure`` is their figure. The legend says at how many steps a curve is not finite, and
        so not drawn.

    Raises:
        ValueError: ``runs`` names one that the source does not have, the CSV lacks a column, arrays have other shapes,
            or ``window`` is no int of at least 1.
        TypeError: the source is neither, an array has no real numbers, or ``ax`` is no axes.
    """
    require_int("window", window, 1)
    series = _series(source, metric)
    if unknown := [r for r in runs or () if r not in series]:
        raise ValueError(f"runs: expected some of {', '.join(series)}, got {', '.join(unknown)}")
    chosen = list(runs) if runs is not None else sorted(series, key=lambda r: RUNS.index(r) if r in RUNS else len(RUNS))
    ax = axes_or_new(ax)
    others = [r for r in chosen if r not in COLORS]
    for run in chosen:
        more = (others.index(run) if run in others else 0) % len(_MORE_COLORS)
        look = COLORS.get(run, _MORE_COLORS[more]), _STYLES.get(run, "-" if run in COLORS else _MORE_STYLES[more])
        label = {**LABELS, **(labels or {})}.get(run, run)
        _draw_run(ax, label, [s for s in series[run] if len(s[0])], look, window, raw)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel(_METRIC_LABELS.get(metric, metric))
    ax.margins(x=0.01)
    ax.grid(alpha=0.25, linewidth=0.5)
    if legend and chosen:
        ax.legend(frameon=False, loc="upper right")  # "best" would weigh every point of the raw curves
    return ax


def _draw_run(ax: Axes, label: str, seeds: list[_Seed], look: tuple[str, Any], window: int, raw: bool) -> None:
    np = import_numpy()
    color, style = look
    if raw and window > 1 and seeds:
        _draw_raw(ax, seeds, color)
    length = min((len(s) for s, _ in seeds), default=0)
    if length == 0:
        ax.plot([], [], color=color, linestyle=style, label=f"{label} (no data)")
        return
    smoothed = np.stack([smooth(values[:length], window) for _, values in seeds])
    missing = int((~np.isfinite(smoothed.mean(0))).sum())
    label += f" (not finite, not drawn: {missing} of {length} steps)" if missing else ""
    shown = np.unique(np.linspace(0, length - 1, min(length, _MAX_POINTS)).astype(int))
    steps, smoothed = seeds[0][0][:length][shown], smoothed[:, shown]
    ax.plot(steps, smoothed.mean(0), color=color, linestyle=style, linewidth=1.6, label=label, zorder=3)
    if len(seeds) > 1:
        band = (smoothed.min(0), smoothed.max(0))
        ax.fill_between(steps, *band, color=color, alpha=0.2, linewidth=0, zorder=2)


def _draw_raw(ax: Axes, seeds: list[_Seed], color: str) -> None:
    """The unsmoothed curves, faintly; long ones would be a wall, so of them the band with the middle half of values."""
    np = import_numpy()
    if max(len(steps) for steps, _ in seeds) <= _MAX_RAW:
        for steps, values in seeds:
            ax.plot(steps, values, color=color, alpha=0.12, linewidth=0.5, rasterized=True, zorder=1)
        return
    steps, values = (np.concatenate(parts) for parts in zip(*seeds, strict=True))
    order = np.argsort(steps, kind="stable")
    bins = np.array_split(order, _BINS)
    centres = [steps[b].mean() for b in bins]
    low, high = np.transpose([np.quantile(values[b], (0.25, 0.75)) for b in bins])
    ax.fill_between(centres, low, high, color=color, alpha=0.13, linewidth=0, zorder=1)


def figure_training(
    source: Source,
    *,
    window: int = 50,
    title: str | None = None,
    runs: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """The two panels of the paper's Figure 1, training accuracy and loss of every run, with one legend.

    Args:
        source: a metrics CSV of ``chaos-ext reproduce fig1``. Arrays, too, but both panels show the same ones then.
        window, runs, labels: as of ``plot_training``, which also says what is raised.
        title: above both panels; None for none.
    """
    import_numpy()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    for ax, metric in ((left, "accuracy"), (right, "loss")):
        plot_training(source, ax, metric=metric, window=window, runs=runs, labels=labels, legend=False)
    left.set_ylim(-0.02, 1.02)
    right.set_ylim(bottom=0)
    lines, texts = right.get_legend_handles_labels()
    if lines:  # one legend for both panels, where it hides no curve
        columns = 4 if max(map(len, texts)) < 30 else 3
        figure.legend(lines, texts, loc="outside lower center", ncols=columns, frameon=False)
    if title:
        figure.suptitle(title, fontsize="medium")
    return figure
