"""Figures of spectra: local Lyapunov exponents, and densities of eigenvalues."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from ..chaos import local_lyapunov_exponents
from ..spectra.density import SpectralDensity
from ..spectra.spectrum import Spectrum
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


def plot_spectrum(spec: Spectrum, ax: Axes | None = None, *, lr: float | None = None) -> Axes:
    """Draws the eigenvalues of a spectrum by rank, the largest first, on an axis with decades on both sides of zero.

    Args:
        spec: a complete or partial spectrum.
        ax: axes to draw on; None makes a new figure.
        lr: learning rate; given, 2 / lr is drawn where it is within reach, and eigenvalues above it are told apart.

    Returns:
        The axes drawn on; the legend counts the eigenvalues of each sign, zeros included where they are known.

    Raises:
        TypeError: not a ``Spectrum``.
        ValueError: ``lr`` is not above 0.
    """
    if not isinstance(spec, Spectrum):
        raise TypeError(f"spec: expected a Spectrum, got {type(spec).__name__}")
    if lr is not None and not 0 < lr < math.inf:
        raise ValueError(f"lr: expected a number above 0, got {lr}")
    np = import_numpy()
    values = np.array(spec.eigenvalues.double().cpu().tolist())[::-1]
    edge = math.inf if lr is None else 2 / lr
    rank = np.arange(1, len(values) + 1)
    ax = new_axes() if ax is None else ax
    groups = (
        ("above 2/lr", values > edge, COLORS["chaotic"], "^"),
        ("positive", (values > 0) & (values <= edge), COLORS["positive"], "s"),
        ("negative", values < 0, COLORS["negative"], "o"),
    )
    for name, mask, color, marker in groups:
        if mask.any():
            label = f"{name} ({int(mask.sum())})"
            ax.plot(rank[mask], values[mask], marker, color=color, markersize=4, alpha=0.7, label=label)
    if spec.nullity is not None:
        ax.plot([], [], " ", label=f"zero, not drawn ({spec.nullity})")
    if len(values):
        ax.set_yscale("symlog", linthresh=float(np.median(np.abs(values))) or 1.0)
        if edge < 10 * np.abs(values).max():
            ax.axhline(edge, color="0.3", linewidth=0.9, linestyle=(0, (4, 3)), label=f"2/lr = {edge:.4g}")
    ax.axhline(0, color="0.5", linewidth=0.8, zorder=0)
    ax.set_xlabel("rank")
    ax.set_ylabel("Hessian eigenvalue")
    ax.grid(alpha=0.25, linewidth=0.5)
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
