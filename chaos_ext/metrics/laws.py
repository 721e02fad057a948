"""Laws of a distance that grows with time, fitted by least squares: roots of polynomials, a power, a saturation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .root_law import fit_root

Curve = Callable[[Tensor], Tensor]
Fit = Callable[[Tensor, Tensor, bool], tuple[dict[str, float], Curve]]
_GRID = 60
_POWERS = (0.0, 6.0)


@dataclass(frozen=True)
class Kind:
    """A law as it is fitted.

    Attributes:
        name, formula: for people.
        free: number of parameters.
        fit: (t, d, relative) -> its parameters and the fitted curve.
    """

    name: str
    formula: str
    free: int
    fit: Fit


def powers(t: Tensor, exponents: tuple[int, ...]) -> Tensor:
    """t^n for each exponent [m, p]."""
    return torch.stack([t**n for n in exponents], 1)


def _root(names: tuple[str, ...], exponents: tuple[int, ...]) -> Fit:
    def fit(t: Tensor, d: Tensor, relative: bool) -> tuple[dict[str, float], Curve]:
        used = t > 0 if 0 not in exponents else t >= 0
        ones = torch.ones(1, int(used.sum()), dtype=torch.float64, device="cpu")
        c = fit_root(powers(t[used], exponents), d[used], ones, relative)[0]
        values = {n: math.sqrt(v) if n in ("eps", "v") else v for n, v in zip(names, c.tolist(), strict=True)}
        return values, lambda at: (powers(at, exponents) @ c).sqrt()

    return fit


def _amplitude(shape: Tensor, d: Tensor, relative: bool) -> tuple[float, float]:
    """The factor of a shape that fits best, and the sum of squares that is left."""
    if relative:
        logs = (d / shape).log()
        return float(logs.mean().exp()), float((logs - logs.mean()).square().sum())
    square = float(shape @ shape)
    factor = float(shape @ d) / square if square else 0.0
    return factor, float((d - factor * shape).square().sum())


def _shaped(names: tuple[str, str], shape: Callable[[Tensor, float], Tensor], grid: Callable[[Tensor], Tensor]) -> Fit:
    """A law that is a factor times a shape with one parameter, which is searched: on a grid, then next to its best."""

    def fit(t: Tensor, d: Tensor, relative: bool) -> tuple[dict[str, float], Curve]:
        optimize = import_optimize()
        t, d = t[t > 0], d[t > 0]
        tries = grid(t).tolist()
        left = [_amplitude(shape(t, p), d, relative)[1] for p in tries]
        best = min(range(len(tries)), key=left.__getitem__)
        low, high = tries[max(best - 1, 0)], tries[min(best + 1, len(tries) - 1)]
        found = optimize.minimize_scalar(
            lambda p: _amplitude(shape(t, p), d, relative)[1],
            bounds=(low, high),
            method="bounded",
            options={"xatol": 1e-10 * high},
        )
        p = float(found.x) if found.fun < left[best] else tries[best]
        factor = _amplitude(shape(t, p), d, relative)[0]
        return dict(zip(names, (factor, p), strict=True)), lambda at: factor * shape(at, p)

    return fit


def _powers_grid(t: Tensor) -> Tensor:
    return torch.linspace(*_POWERS, _GRID, dtype=torch.float64, device="cpu")


def _times_grid(t: Tensor) -> Tensor:
    """From faster than the first point to so slow that it is a straight line."""
    low, high = math.log10(0.1 * float(t[0])), math.log10(1e3 * float(t[-1]))
    return torch.logspace(low, high, _GRID, dtype=torch.float64, device="cpu")


PLAIN = Kind("ballistic + diffusive", "sqrt(alpha t^2 + beta t)", 2, _root(("alpha", "beta"), (2, 1)))
OFFSET = Kind(
    "ballistic + diffusive + offset",
    "sqrt(alpha t^2 + beta t + eps^2)",
    3,
    _root(("alpha", "beta", "eps"), (2, 1, 0)),
)
KINDS = (
    PLAIN,
    OFFSET,
    Kind("linear", "v t", 1, _root(("v",), (2,))),
    Kind("random walk", "sqrt(beta t)", 1, _root(("beta",), (1,))),
    Kind("power law", "c t^p", 2, _shaped(("c", "p"), lambda t, p: t**p, _powers_grid)),
    Kind("saturation", "d (1 - exp(-t / tau))", 2, _shaped(("d", "tau"), lambda t, p: -(-t / p).expm1(), _times_grid)),
)


def import_optimize() -> Any:
    """scipy.optimize, which waits until it is needed.

    Raises:
        ImportError: with the command that installs it.
    """
    try:
        from scipy import optimize
    except ImportError as error:
        raise ImportError("fit_divergence needs scipy: pip install scipy") from error
    return optimize
