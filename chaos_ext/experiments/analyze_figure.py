"""The figure of ``chaos-ext analyze``: a panel for the loss and for each kind of record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..figures import COLORS, import_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Title and unit of a panel, and which parts of a record it shows, each with a colour and a dash pattern.
_PANELS = {
    "lle": ("local exponents (nats per step)", {"largest": ("chaotic", "-"), "smallest": ("negative", "--")}),
    "spectrum": (
        "eigenvalues of the mini-batch Hessian",
        {"largest": ("positive", "--"), "smallest": ("negative", "-")},
    ),
    "stability": (
        "edge of stability",
        {"sharpness": ("positive", "-"), "threshold": ("sgd", ":"), "batch_sharpness": ("chaotic", "--")},
    ),
}


def figure_analysis(records: Sequence[dict[str, Any]], title: str) -> Figure:
    """Of the records of a ``Recorder``, in their order."""
    import_numpy()
    from matplotlib.figure import Figure

    shown = {name.partition("/")[0] for name in records[-1]}
    kinds = [k for k in ("lle", "spectrum", "exponents", "stability") if k in shown]
    figure = Figure(figsize=(3.9 * (len(kinds) + 1), 3.8), layout="constrained", dpi=150)
    axes = figure.subplots(1, len(kinds) + 1, squeeze=False)[0]
    _lines(axes[0], records, {"loss": ("loss", COLORS["sgd"], "-")}, "loss of the mini-batch")
    for ax, kind in zip(axes[1:], kinds, strict=True):
        if kind == "exponents":
            names = [n for n in records[-1] if n.startswith("exponents/") and n.rpartition("/")[2].isdigit()]
            greys = [str(0.75 * i / max(len(names) - 1, 1)) for i in range(len(names))]
            looks = {n: (n.rpartition("/")[2], grey, "-") for n, grey in zip(names, greys, strict=True)}
            _lines(ax, records, looks, "exponents of training (nats per step)")
        else:
            label, parts = _PANELS[kind]
            looks = {f"{kind}/{n}": (n.replace("_", " "), COLORS[c], style) for n, (c, style) in parts.items()}
            _lines(ax, records, looks, label)
    figure.suptitle(title, fontsize="medium")
    return figure


def _lines(ax: Any, records: Sequence[dict[str, Any]], looks: dict[str, tuple[str, str, Any]], label: str) -> None:
    for name, (text, color, style) in looks.items():
        shown = [(r["step"], r[name]) for r in records if name in r]
        ax.plot(*zip(*shown, strict=True), color=color, linestyle=style, linewidth=1.3, label=text)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel(label)
    ax.grid(alpha=0.25, linewidth=0.5)
    if len(looks) <= 8:
        ax.legend(frameon=False, fontsize="small")
