"""What figures are given, looked at before anything is drawn: arrays of real numbers, learning rates and axes."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

from .axes import import_numpy, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray


def real_numbers(name: str, values: Any) -> NDArray[Any]:
    """An array, tensor, or list of such, as float64 of the same shape; NaN and infinity are left in it.

    Raises:
        TypeError: texts, booleans, complex numbers or other objects. ValueError: rows of different length.
    """
    np = import_numpy()
    try:
        found = np.asarray(_plain(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected an array of real numbers, got {type(values).__name__} ({error})") from None
    if found.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected real numbers, got {type(values).__name__} of {found.dtype}")
    as_float64: NDArray[Any] = found.astype(np.float64)
    return as_float64


def _plain(values: Any) -> Any:
    if isinstance(values, (list, tuple)):
        return [_plain(v) for v in values]
    return values.tolist() if hasattr(values, "tolist") else values


def learning_rate(lr: Any, *, positive: bool) -> float:
    """The number that a learning rate is, which may be a tensor of one element, as for an optimizer.

    Raises:
        TypeError: no number. ValueError: negative, or 0 where ``positive``, or not finite.
    """
    value = _one(lr)
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"lr: expected a number or a tensor of one element, got {_described(lr)}")
    found = float(value)
    if not 0 <= found < math.inf or (positive and found == 0):
        raise ValueError(f"lr: expected a number {'above 0' if positive else '>= 0'}, finite, got {lr}")
    return found


def _one(value: Any) -> Any:
    return value.item() if hasattr(value, "item") and math.prod(getattr(value, "shape", ())) == 1 else value


def _described(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"{type(value).__name__}{shape}" if shape else f"{type(value).__name__} {value!r}"


def axes_or_new(ax: Axes | None) -> Axes:
    """The axes that were given, or new ones.

    Raises:
        TypeError: something else was given.
    """
    if ax is None:
        return new_axes()
    import_numpy()
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise TypeError(f"ax: expected matplotlib axes or None, got {type(ax).__name__}")
    return ax


def say_missing(ax: Axes, values: Any, what: str) -> None:
    """Tells the legend how many of the values, of each kind that is not finite, cannot be drawn."""
    np = import_numpy()
    for kind, mask in (("NaN", np.isnan(values)), ("inf", np.isposinf(values)), ("-inf", np.isneginf(values))):
        if mask.any():
            ax.plot([], [], " ", label=f"{what} {kind}, not drawn ({int(mask.sum())})")
