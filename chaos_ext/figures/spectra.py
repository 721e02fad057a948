"""Figures of spectra: local Lyapunov exponents, and densities of eigenvalues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..chaos import local_lyapunov_exponents
from ..spectra.density import SpectralDensity
from .axes import COLORS, import_numpy, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_lle(eigenvalues: Any, lr: float, ax: Axes | None = None) -> Axes:
    """Draws local Lyapunov exponents ln|1 - lr lambda| against the eigenvalues lambda of the Hessian.

    Exponents above 0 (locally chaotic: lambda < 0 or lambda > 2/lr) have a marker and colour of their own. An exponent
    of -inf (lr lambda = 1) is left out, and the legend says how many there are.

    Args:
        eigenvalues: [r], array or tensor, in any order.
        lr: learning rate of the map theta - lr g(theta), at least 0.
        ax: axes to draw on; None makes a new figure.

    Returns:
        The axes drawn on.

    Raises:
        ValueError: ``lr`` is negative or not finite.
    """
    np = import_numpy()
    values = torch.as_tensor(eigenvalues).detach().cpu().double()
    exponents = np.array(local_lyapunov_exponents(values, lr).tolist())
    values = np.array(values.tolist())
    ax = new_axes() if ax is None else ax
    finite, chaotic = np.isfinite(exponents), exponents > 0
    groups = (("stable", finite & ~chaotic, COLORS["negative"], "o"), ("chaotic", chaotic, COLORS["chaotic"], "^"))
    for name, mask, color, marker in groups:
        label = f"{name} ({int(mask.sum())})"
        ax.plot(values[mask], exponents[mask], marker, color=color, markersize=4, alpha=0.7, label=label)
    if not finite.all():
        ax.plot([], [], " ", label=f"exponent -inf, not drawn ({int((~finite).sum())})")
    ax.axhline(0, color="0.5", linewidth=0.8, zorder=0)
    ax.set_xlabel("Hessian eigenvalue")
    ax.set_ylabel("local Lyapunov exponent (nats per step)")
    ax.legend(frameon=False)
    return ax


def plot_spectral_density(
    density: SpectralDensity, ax: Axes | None = None, *, label: str | None = None, log: bool = True
) -> Axes:
    """Draws a spectral density in a band of two standard errors.

    Args:
        density: what ``spectral_density`` returned.
        ax: axes to draw on; None makes a new figure.
        label: its text in the legend; None: no legend.
        log: whether the density is on a logarithmic axis, where the band of a density below its error has no lower
            end. It ends where less than a tenth of an eigenvalue is expected over one width of the smoothing.

    Returns:
        The axes drawn on.

    Raises:
        TypeError: not a ``SpectralDensity``.
    """
    if not isinstance(density, SpectralDensity):
        raise TypeError(f"density: expected a SpectralDensity, got {type(density).__name__}")
    np = import_numpy()
    grid, mean, error = (np.array(t.tolist()) for t in (density.grid, density.density, density.standard_error))
    ax = new_axes() if ax is None else ax
    ax.fill_between(
        grid, np.maximum(mean - 2 * error, 0), mean + 2 * error, color=COLORS["negative"], alpha=0.2, linewidth=0
    )
    ax.plot(grid, mean, color=COLORS["negative"], linewidth=1.4, label=label)
    if log:
        ax.set_yscale("log")
        ax.set_ylim(bottom=0.1 / (density.size * density.width))
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("spectral density")
    ax.margins(x=0.01)
    ax.grid(alpha=0.25, linewidth=0.5)
    if label is not None:
        ax.legend(frameon=False)
    return ax
