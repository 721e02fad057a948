"""What panels of studies' figures have in common."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def finish(ax: Any, y: str, x: str = "optimizer step", title: str | None = None) -> None:
    """Labels, a grid, and a legend where there is something to say in it.

    Args:
        ax: matplotlib axes with all their lines.
        y, x: labels, with units.
        title: of the legend.
    """
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(alpha=0.25, linewidth=0.5)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small", title=title)


def signed_log(ax: Any, values: Tensor) -> None:
    """Decades on both sides of zero, linear up to the decade that half of the values reach: signs can be seen.

    Args:
        ax: matplotlib axes.
        values: that are drawn.
    """
    middle = max(float(values.abs().median()), 1e-12)
    ax.set_yscale("symlog", linthresh=10.0 ** math.floor(math.log10(middle)))
    ax.axhline(0, color="0.4", linewidth=0.9, zorder=0)
