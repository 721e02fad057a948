"""What all figures share: matplotlib when it is needed, axes that belong to nobody else, and the palette."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..data.sources import INSTALL_HINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart with every common form of colour blindness, and in print.
COLORS = {"sgd": "#000000", "chaotic": "#D55E00", "negative": "#0072B2", "positive": "#009E73"}


def import_numpy() -> Any:
    """numpy, after making sure that matplotlib is there, too; both wait until a figure is drawn.

    Raises:
        ImportError: with the command that installs them.
    """
    try:
        import matplotlib  # noqa: F401
        import numpy
    except ImportError as error:
        raise ImportError(f"figures need matplotlib: {INSTALL_HINT}") from error
    return numpy


def new_axes(figsize: tuple[float, float] = (6.4, 4.2)) -> Axes:
    """Axes on a new figure that belongs to nobody else.

    Args:
        figsize: width and height in inches.
    """
    import_numpy()
    from matplotlib.figure import Figure

    return Figure(figsize=figsize, layout="constrained").subplots()
