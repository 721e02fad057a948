"""Figures as functions: each takes arrays or the CSV of an experiment and returns the matplotlib axes it drew on.

Without ``ax`` a function makes a ``matplotlib.figure.Figure`` of its own, free of pyplot and its global state, so it
works without a display; ``ax.figure.savefig(...)`` writes it. All raise ImportError where matplotlib is not installed.
"""

from ..data.sources import INSTALL_HINT
from .axes import COLORS, import_numpy, new_axes
from .dynamics import plot_divergence, plot_exponents
from .spectra import plot_lle, plot_spectral_density, plot_spectrum
from .training import LABELS, RUNS, figure_training, plot_training, read_metric, smooth

__all__ = [
    "COLORS",
    "INSTALL_HINT",
    "LABELS",
    "RUNS",
    "figure_training",
    "import_numpy",
    "new_axes",
    "plot_divergence",
    "plot_exponents",
    "plot_lle",
    "plot_spectral_density",
    "plot_spectrum",
    "plot_training",
    "read_metric",
    "smooth",
]
