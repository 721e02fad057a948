"""What goes with the generalisation gap: rank correlations over runs, and the figure that shows them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..figures import COLORS, import_numpy
from .findings import Finding
from .series import columns
from .settings import Settings
from .significance import permuted_rho

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW, FEW_WITHIN = 12, 4  # runs, in all and of each learning rate: with fewer nothing is decided
RHO, LEVEL = 0.5, 0.01
MEASURES = {
    "lambda_1": "largest Lyapunov exponent (nats per step)",
    "sum_positive": "sum of positive leading exponents (nats per step)",
    "sharpness_dimension": "sharpness dimension",
    "n_chaotic": "chaotic directions (mean number)",
    "share_chaotic": "gradient in chaotic directions (mean share)",
    "sharpness": "largest eigenvalue over 2/lr",
    "train_loss": "training loss (control)",
    "batch_size": "batch size (control)",
}
_COLORS = (COLORS["sgd"], COLORS["negative"], COLORS["chaotic"], COLORS["positive"], "#E69F00", "#56B4E9")
_MARKERS = "os^Dvx"


class Correlation(NamedTuple):
    """Of the gap with a measure: Spearman's rho over all runs and on average within learning rates, with p-values."""

    across: tuple[float, float]
    within: tuple[float, float]


def table(metrics: Path) -> dict[str, Tensor]:
    """Column -> values over runs."""
    names = ("lr", "gap", *MEASURES)
    rows = torch.cat([rows for seeds in columns(metrics, *names).values() for rows in seeds.values()])
    return dict(zip(names, rows.unbind(1), strict=True))


def correlation(found: dict[str, Tensor], measure: str) -> Correlation:
    """Of the gap with one measure."""
    gap, values = found["gap"], found[measure]
    return Correlation(permuted_rho(values, gap), permuted_rho(values, gap, found["lr"]))


def findings_of(metrics: Path) -> list[Finding]:
    """One for each measure."""
    found = table(metrics)
    counts = torch.unique(found["lr"], return_counts=True)[1]
    few = len(found["lr"]) < FEW or int(counts.min()) < FEW_WITHIN
    return [_finding(name, text, correlation(found, name), len(found["lr"]), few) for name, text in MEASURES.items()]


def _finding(name: str, text: str, c: Correlation, runs: int, few: bool) -> Finding:
    held = [abs(rho) > RHO and p < LEVEL for rho, p in c]
    opposed = c.across[0] * c.within[0] < 0
    unknown = few or any(math.isnan(rho) for rho, _ in c)
    return Finding(
        claim=f"The generalisation gap goes with the {text.partition(' (')[0]}",
        where="control, not in the paper",
        criterion=f"Spearman's |rho| above {RHO:g} with p below {LEVEL:g} by permutations, over all runs and, on "
        "average, within learning rates, of one sign; partly: one of them, or two signs "
        f"({FEW} runs at least, {FEW_WITHIN} of each learning rate)",
        numbers=f"rho {c.across[0]:.2f} (p = {c.across[1]:.2g}) over {runs} runs, {c.within[0]:.2f} (p = "
        f"{c.within[1]:.2g}) within learning rates",
        verdict="undecided" if unknown else ("not reproduced", "partly", "reproduced")[min(sum(held), 2 - opposed)],
    )


def figure_generalisation(metrics: Path, settings: Settings) -> Figure:
    """A panel for each measure."""
    import_numpy()
    from matplotlib.figure import Figure

    found = table(metrics)
    figure = Figure(figsize=(15, 8), layout="constrained", dpi=150)
    panels = list(figure.subplots(2, 4).flat)
    for ax, (name, text) in zip(panels, MEASURES.items(), strict=True):
        c = correlation(found, name)
        for members, look, own in _groups(found):
            label = own if ax is panels[0] else None
            ax.plot(
                found[name][members], found["gap"][members], linestyle="", markersize=5, alpha=0.8, label=label, **look
            )
        ax.set_xlabel(text)
        ax.set_ylabel("test loss - training loss")
        ax.grid(alpha=0.25, linewidth=0.5)
        ax.set_title(f"rho {c.across[0]:.2f}, within learning rates {c.within[0]:.2f}", loc="left", fontsize="small")
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=5, frameon=False, fontsize="small")
    s = settings
    figure.suptitle(f"{s.data}, {s.model} ({s.activation}), seeds {', '.join(map(str, s.seeds))}", fontsize="medium")
    return figure


def _groups(found: dict[str, Tensor]) -> Iterator[tuple[Tensor, dict[str, Any], str]]:
    """Members of each learning rate and batch size, colour and marker, and text."""
    for i, lr in enumerate(found["lr"].unique()):
        for j, n in enumerate(found["batch_size"].unique()):
            look = {"color": _COLORS[i % len(_COLORS)], "marker": _MARKERS[j % len(_MARKERS)]}
            yield (found["lr"] == lr) & (found["batch_size"] == n), look, f"lr {float(lr):g}, batch size {int(n)}"
