"""The figure of ``chaos-ext reproduce random-walk``: walks with their law, and fits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..figures import COLORS, import_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOKS: dict[str, tuple[str, Any, str]] = {
    "constant": (COLORS["chaotic"], "-", "o"),
    "turning": (COLORS["positive"], (0, (6, 1.5)), "s"),
    "none": (COLORS["negative"], (0, (1, 1.2)), "^"),
}
Table = list[dict[str, str]]


def figure_walks(walks: Table, fits: Table, alpha: float) -> Figure:
    """Squared distances over steps; root mean square and mean in few dimensions; alpha of fits with intervals."""
    import_numpy()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained", dpi=150)
    left, middle, right = figure.subplots(1, 3)
    sizes = sorted({int(r["dimensions"]) for r in walks})
    _squares(left, walks, sizes[-1])
    _means(middle, walks, sizes[0])
    _fits(right, fits, alpha)
    for ax in (left, middle):
        ax.set_xlabel("step t")
    for ax in (left, middle, right):
        ax.grid(alpha=0.25, linewidth=0.5)
        ax.legend(frameon=False, fontsize="small")
    return figure


def _own(walks: Table, drift: str, size: int) -> Table:
    return [r for r in walks if r["drift"] == drift and int(r["dimensions"]) == size]


def _squares(ax: Any, walks: Table, size: int) -> None:
    for drift, (color, style, marker) in _LOOKS.items():
        rows = _own(walks, drift, size)
        t, squares, law = ([float(r[name]) for r in rows] for name in ("step", "square", "law"))
        look: dict[str, Any] = {"color": color, "markersize": 4, "markerfacecolor": "none"}
        ax.plot(t[::2], squares[::2], marker, label=f"drawn, drift {drift}", **look)
        if drift != "turning":
            ax.plot(t, law, color=color, linestyle=style, linewidth=1.2, label=f"law, drift {drift}")
    ax.set_ylabel("mean square distance")
    ax.set_title(f"{size} dimensions", fontsize="medium")


def _means(ax: Any, walks: Table, size: int) -> None:
    rows = _own(walks, "none", size)
    t = [int(r["step"]) for r in rows]
    ax.plot(t, [math.sqrt(float(r["law"])) for r in rows], color="0.3", linewidth=1.2, label="law")
    ax.plot(t, [math.sqrt(float(r["square"])) for r in rows], "o", color=COLORS["chaotic"], markersize=4,
        markerfacecolor="none", label="drawn: root mean square")  # fmt: skip
    ax.plot(t, [float(r["mean"]) for r in rows], "^", color=COLORS["negative"], markersize=4, label="drawn: mean")
    ax.set_ylabel("distance")
    ax.set_title(f"no drift, {size} dimensions", fontsize="medium")


def _fits(ax: Any, fits: Table, alpha: float) -> None:
    kinds = [(d, m) for d in ("constant", "none") for m in sorted({r["members"] for r in fits}, key=int)]
    for i, (drift, members) in enumerate(kinds):
        rows = [r for r in fits if (r["drift"], r["members"]) == (drift, members)]
        color, _, marker = _LOOKS[drift]
        for j, r in enumerate(rows):
            x = i + 0.8 * (j / max(len(rows), 1)) - 0.4
            ax.plot([x, x], [float(r["alpha_low"]), float(r["alpha_high"])], color=color, linewidth=0.7, alpha=0.7)
            ax.plot(x, float(r["alpha"]), marker, color=color, markersize=2)
    ax.axhline(alpha, color="0.3", linewidth=1.0, label="right with drift")
    ax.axhline(0, color="0.3", linewidth=1.0, linestyle=":", label="right without")
    ax.set_xticks(range(len(kinds)), [f"{d},\n{m} walk{'s' if m != '1' else ''}" for d, m in kinds])
    ax.set_xlabel("drift, walks of a fit")
    ax.set_ylabel("alpha of fits (distance$^2$ / step$^2$)")
