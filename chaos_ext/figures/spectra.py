"""Figures of spectra: local Lyapunov exponents, and densities of eigenvalues."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from ..chaos import local_lyapunov_exponents
from ..spectra.density import SpectralDensity
from ..spectra.spectrum import Spectrum
from .arguments import axes_or_new, learning_rate, real_numbers, say_missing
from .axes import COLORS, import_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_lle(eigenvalues: Any, lr: float, ax: Axes | None = None) -> Axes:
    """Draws local Lyapunov exponents ln|1 - lr lambda| against the eigenvalues lambda of the Hessian.

    Exponents above 0 (locally chaotic: lambda < 0 or lambda > 2/lr) have a marker and colour of their own. An exponent
    of -inf (lr lambda = 1) is left out, and so is one of NaN or inf, of an eigenvalue that is not finite; the legend
    says how many there are of each.

    Args:
        eigenvalues: [r], array or tensor, in any order.
        lr: learning rate of the map theta - lr g(theta), at least 0; a number, or a tensor of one element.
        ax: axes to draw on; None makes a new figure.

    Returns:
        The axes drawn on.

    Raises:
        ValueError: ``lr`` is negative or not finite, or rows of ``eigenvalues`` differ in length.
        TypeError: ``lr`` is no number, ``eigenvalues`` are no real numbers, or ``ax`` no axes.
    """
    np = import_numpy()
    rate, values = learning_rate(lr, positive=False), real_numbers("eigenvalues", eigenvalues)
    at = torch.tensor(values.tolist(), dtype=torch.float64, device="cpu")
    exponents = np.array(local_lyapunov_exponents(at, rate).tolist())
    ax = axes_or_new(ax)
    finite = np.isfinite(exponents)
    chaotic = finite & (exponents > 0)
    groups = (("stable", finite & ~chaotic, COLORS["negative"], "o"), ("chaotic", chaotic, COLORS["chaotic"], "^"))
    for name, mask, color, marker in groups:
        label = f"{name} ({int(mask.sum())})"
        ax.plot(values[mask], exponents[mask], marker, color=color, markersize=4, alpha=0.7, label=label)
    say_missing(ax, exponents, "exponent")
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
        lr: learning rate, a number or a tensor of one element; given, 2 / lr is drawn where it is within reach, and
            eigenvalues above it are told apart.

    Returns:
        The axes drawn on; the legend counts the eigenvalues of each sign, zeros included where they are known, and
        those that are not finite.

    Raises:
        TypeError: not a ``Spectrum``, no axes, or ``lr`` is no number.
        ValueError: ``lr`` is not above 0, or not finite.
    """
    if not isinstance(spec, Spectrum):
        raise TypeError(f"spec: expected a Spectrum, got {type(spec).__name__}")
    np = import_numpy()
    edge = math.inf if lr is None else 2 / learning_rate(lr, positive=True)
    values = np.array(spec.eigenvalues.double().cpu().tolist())[::-1]
    finite = np.isfinite(values)
    rank = np.arange(1, len(values) + 1)
    ax = axes_or_new(ax)
    groups = (
        ("above 2/lr", finite & (values > edge), COLORS["chaotic"], "^"),
        ("positive", finite & (values > 0) & (values <= edge), COLORS["positive"], "s"),
        ("negative", finite & (values < 0), COLORS["negative"], "o"),
    )
    for name, mask, color, marker in groups:
        if mask.any():
            label = f"{name} ({int(mask.sum())})"
            ax.plot(rank[mask], values[mask], marker, color=color, markersize=4, alpha=0.7, label=label)
    if spec.nullity is not None or not values.all():
        zeros = int((values == 0).sum()) + (spec.nullity or 0)
        ax.plot([], [], " ", label=f"zero, not drawn ({zeros})")
    say_missing(ax, values, "eigenvalue")
    if finite.any():
        size = np.abs(values[finite])
        ax.set_yscale("symlog", linthresh=float(np.median(size)) or 1.0)
        if edge < 10 * size.max():
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
        TypeError: not a ``SpectralDensity``, or no axes.
    """
    if not isinstance(density, SpectralDensity):
        raise TypeError(f"density: expected a SpectralDensity, got {type(density).__name__}")
    np = import_numpy()
    grid, mean, error = (np.array(t.tolist()) for t in (density.grid, density.density, density.standard_error))
    ax = axes_or_new(ax)
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
