"""The figure of ``chaos-ext reproduce spectrum``: four panels a learning rate, of the first seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..figures import COLORS, import_numpy
from .fig1 import title_of
from .series import columns
from .settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 400
_SIGNS = ("negative", "positive")


def figure_spectrum(metrics: Path, settings: Settings, edges: Sequence[float], histogram: Sequence[str]) -> Figure:
    """A row of panels for each run: counts, shares of the gradient, extreme eigenvalues, histograms."""
    import_numpy()
    from matplotlib.figure import Figure

    names = ("n_negative", "n_positive", "n_above", "share_negative", "share_positive", "lambda_min", "lambda_max")
    found, runs = columns(metrics, *names), settings.runs
    figure = Figure(figsize=(14, 3.4 * len(runs) + 0.4), layout="constrained", dpi=150)
    for row, run in zip(figure.subplots(len(runs), 4, squeeze=False), runs, strict=True):
        values = dict(zip(names, next(iter(found[run].values())).unbind(1), strict=True))
        threshold = 2 / float(run.partition("=")[2])
        _counts(row[0], values)
        _shares(row[1], values)
        _extremes(row[2], values, threshold)
        _histograms(row[3], edges, next(iter(columns(metrics, *histogram)[run].values())))
        row[0].set_title(run, loc="left", fontsize="medium")
    figure.suptitle(title_of(settings), fontsize="medium")
    return figure


def _thinned(values: Tensor) -> tuple[list[float], list[float]]:
    """Means over stretches of steps, and their middles."""
    parts = values.tensor_split(min(_POINTS, len(values)))
    ends = torch.tensor([len(p) for p in parts], device="cpu").cumsum(0).tolist()
    return [e - len(p) / 2 for e, p in zip(ends, parts, strict=True)], [float(p.mean()) for p in parts]


def _line(ax: Any, values: Tensor, color: str, label: str, style: str = "-") -> None:
    ax.plot(*_thinned(values), color=color, linestyle=style, linewidth=1.2, label=label)


def _finish(ax: Any, y: str) -> None:
    ax.set_xlabel("optimizer step")
    ax.set_ylabel(y)
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.legend(frameon=False, fontsize="small")


def _counts(ax: Any, v: dict[str, Tensor]) -> None:
    for sign, style in zip(_SIGNS, ("-", "--"), strict=True):
        _line(ax, v[f"n_{sign}"], COLORS[sign], sign, style)
    if bool((v["n_above"] > 0).any()):
        _line(ax, v["n_above"], COLORS["chaotic"], "above 2/lr", ":")
    ax.set_ylim(bottom=0)
    _finish(ax, "eigenvalues (number)")


def _shares(ax: Any, v: dict[str, Tensor]) -> None:
    for sign, style in zip(_SIGNS, ("-", "--"), strict=True):
        _line(ax, v[f"share_{sign}"], COLORS[sign], sign, style)
    ax.set_ylim(-0.02, 1.02)
    _finish(ax, "share of the squared gradient")


def _extremes(ax: Any, v: dict[str, Tensor], threshold: float) -> None:
    _line(ax, v["lambda_max"], COLORS["positive"], "largest", "--")
    _line(ax, v["lambda_min"].abs(), COLORS["negative"], "|smallest|")
    ax.axhline(threshold, color="0.4", linewidth=0.9, linestyle=":", label="2/lr")
    ax.set_yscale("log")
    _finish(ax, "eigenvalue")


def _histograms(ax: Any, edges: Sequence[float], table: Tensor) -> None:
    """Of the first and the last epoch that have one."""
    rows = table[~table.isnan().any(1)]
    shown = (
        ((rows[0], ":", "first epoch"), (rows[-1], "-", "last epoch")) if len(rows) > 1 else ((rows[0], "-", "start"),)
    )
    for counts, style, when in shown:
        for sign, part in zip(_SIGNS, counts.chunk(2), strict=True):
            ax.step(edges, part[1:].tolist(), where="post", color=COLORS[sign], linestyle=style, linewidth=1.2,
                label=f"{sign}, {when}")  # fmt: skip
    ax.set_xscale("log")
    _finish(ax, "eigenvalues per half decade")
    ax.set_xlabel("|eigenvalue|")
