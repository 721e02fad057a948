"""How twins part: the ballistic and the diffusive part of a distance, how sure they are, and which law predicts."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base.arguments import require_int, require_seed
from .divergence_fit import Coefficients, DivergenceFit, DivergenceLaw
from .intervals import Estimate, block_counts, block_length, check_level, count, percentile_interval
from .laws import KINDS, OFFSET, PLAIN, Curve, Kind, import_optimize, powers
from .root_law import fit_root

ERRORS = ("absolute", "relative")
FEWEST = 12  # points: four in the last third
_MEMBERS = 8  # from that many on, they are resampled
_BLOCKS = 4
_EXACT = 1e-10  # of the distances: scatter that is rounding
_TIE = 1e-9  # of prediction errors, of the size of the distances
_NAN = float("nan")
_log = logging.getLogger("chaos_ext")


def fit_divergence(
    t: Any,
    distance: Any,
    *,
    errors: str = "absolute",
    level: float = 0.95,
    resamples: int = 1000,
    block: int | None = None,
    seed: int = 0,
) -> DivergenceFit:
    """Fits d(t) = sqrt(alpha t^2 + beta t (+ eps^2)), alpha, beta >= 0, to the distance of twins; compares other laws.

    Least squares; in distances the problem is convex, so the fit is the best one. Of several members the root mean
    square distance is fitted, for which the law is exact where each is a drift plus a random walk.

    Intervals are percentiles of bootstrap fits, widened for small numbers. With at least 8 members these are resampled,
    which assumes nothing about time. Otherwise blocks of consecutive points are (moving blocks, three times as long as
    Politis and White's rule says for the residuals), which assumes that the scatter about the law forgets itself within
    a fraction of the run. A single random walk does not: where fewer than 4 blocks fit, or the scatter is correlated
    over longer than the rule can see, intervals are NaN and a warning is logged; give members, or ``block``.

    All laws are also fitted to the first two thirds of the points, and predict the others: "ballistic + diffusive"
    without and with offset, "linear" v t, "random walk" sqrt(beta t), "power law" c t^p and "saturation"
    d (1 - exp(-t / tau)).

    Args:
        t: steps [m], ascending, >= 0, at least 12 (array, tensor or list). A point at t = 0 is left to laws that do not
            vanish there.
        distance: [m], or of several twins [m, members], >= 0.
        errors: "absolute": least squares of the distance, where scatter does not grow with it; "relative": of its
            logarithm, where it does; needs positive distances.
        level: of the intervals.
        resamples: number of bootstrap fits (1000 of 36,480 points took 10 CPU-seconds).
        block: points a block; default: by the rule.
        seed: of the resampling.

    Raises:
        ValueError: NaN, negative or too few numbers, t that does not ascend, shapes that do not fit, options out of
            range. ImportError: scipy is missing.

    Example:
        >>> t = torch.arange(1.0, 201.0)
        >>> fit = ce.fit_divergence(t, (0.01 * t**2 + 4 * t).sqrt(), resamples=100)
        >>> round(fit.alpha.value, 4), round(fit.beta.value, 4), round(fit.plain.crossover.value)
        (0.01, 4.0, 400)
        >>> fit.best.name
        'ballistic + diffusive'
    """
    import_optimize()
    level = check_level(level)
    _check_options(errors, resamples, block)
    require_seed("seed", seed)
    t, each = _data(t, distance, errors)
    d, relative = each.square().mean(1).sqrt(), errors == "relative"
    draws = _Draws(each, resamples, block, level, seed, relative)
    laws = tuple(sorted((_law(kind, t, d, relative) for kind in KINDS), key=lambda law: law[0]))
    return DivergenceFit(
        plain=_coefficients(PLAIN, t, d, draws),
        offset=_coefficients(OFFSET, t, d, draws),
        laws=tuple(law for _, law in laws),
        points=len(t),
        members=each.shape[1],
        resampled="members" if draws.of_members else "blocks",
        errors=errors,
        level=level,
        resamples=resamples,
    )


def _check_options(errors: str, resamples: int, block: int | None) -> None:
    if errors not in ERRORS:
        raise ValueError(f"errors: expected one of {ERRORS}, got {errors!r}")
    require_int("resamples", resamples, 20)
    if block is not None:
        require_int("block", block, 1)


def _array(name: str, values: Any) -> Tensor:
    try:
        found = torch.as_tensor(values, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected real numbers, got {type(values).__name__} ({error})") from None
    if found.is_complex() or found.dtype == torch.bool:
        raise ValueError(f"{name}: expected real numbers, got {found.dtype}")
    found = found.to(torch.float64)
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    if bool((found < 0).any()):
        raise ValueError(f"{name}: expected numbers >= 0, got {float(found.min()):g}")
    return found


def _data(t: Any, distance: Any, errors: str) -> tuple[Tensor, Tensor]:
    """Times [m] and distances [m, members], float64."""
    t, d = _array("t", t), _array("distance", distance)
    if t.dim() != 1 or d.dim() not in (1, 2) or len(d) != len(t) or not d.numel():
        shapes = f"{tuple(t.shape)} and {tuple(d.shape)}"
        raise ValueError(f"t, distance: expected shapes [m] and [m] or [m, members], got {shapes}")
    if len(t) < FEWEST:
        raise ValueError(f"t: expected at least {FEWEST} points, of which the last third is predicted, got {len(t)}")
    if bool((t.diff() <= 0).any()):
        at = int((t.diff() <= 0).nonzero()[0])
        raise ValueError(f"t: expected ascending steps, got {float(t[at]):g} before {float(t[at + 1]):g}; sort both")
    if errors == "relative" and bool((d == 0).any()):
        raise ValueError("distance: expected positive numbers with errors='relative', got 0; leave those points out")
    if not bool((d[t > 0] > 0).any()):
        raise ValueError("distance: expected some numbers > 0, got zeros: the twins have not parted")
    return t, d.unsqueeze(1) if d.dim() == 1 else d


@dataclass(frozen=True)
class _Draws:
    """Bootstrap samples: of members, or of blocks of points.

    Attributes:
        each: distances [m, members].
        resamples, block, level, seed, relative: as of ``fit_divergence``.
    """

    each: Tensor
    resamples: int
    block: int | None
    level: float
    seed: int
    relative: bool

    @property
    def of_members(self) -> bool:
        return self.each.shape[1] >= _MEMBERS and self.block is None

    def fits(self, A: Tensor, used: Tensor, length: int | None, near: Tensor) -> Tensor:
        """Coefficients [B, p] of all samples, with blocks of this length, or of members, which are near [p]."""
        generator, (m, n) = torch.Generator().manual_seed(self.seed), self.each.shape
        if length is not None:
            W = block_counts(m, length, self.resamples, generator)[:, used]
            return fit_root(A, self.each.square().mean(1).sqrt()[used], W, self.relative, near)
        chosen = torch.randint(n, (self.resamples, n), generator=generator, device="cpu")
        D = (count(chosen, n) @ self.each[used].square().T / n).sqrt()
        return fit_root(A, D, torch.ones_like(D), self.relative, near)


def _coefficients(kind: Kind, t: Tensor, d: Tensor, draws: _Draws) -> Coefficients:
    exponents = (2, 1, 0)[: kind.free]
    used = t >= 0 if kind is OFFSET else t > 0
    A = powers(t[used], exponents)
    ones = torch.ones(1, len(A), dtype=torch.float64, device="cpu")
    found = fit_root(A, d[used], ones, draws.relative)
    gap = _gap(d[used], (A @ found[0]).sqrt(), draws.relative)
    samples, block, parts = _samples(kind.name, A, used, gap, found[0], draws)

    def estimate(of: Any) -> Estimate:
        ends = (_NAN, _NAN) if samples is None else percentile_interval(of(samples), draws.level, parts)
        return Estimate(float(of(found)), *ends)

    eps = estimate(lambda c: c[:, 2].sqrt()) if kind is OFFSET else None
    return Coefficients(
        estimate(lambda c: c[:, 0]), estimate(lambda c: c[:, 1]), eps, estimate(lambda c: c[:, 1] / c[:, 0]), block
    )


def _samples(
    name: str, A: Tensor, used: Tensor, gap: Tensor, found: Tensor, draws: _Draws
) -> tuple[Tensor | None, int | None, int]:
    """Bootstrap coefficients or None, points a block, and the number of independent parts."""
    if draws.of_members:
        return draws.fits(A, used, None, found), None, draws.each.shape[1]
    exact = float(gap.abs().max()) <= _EXACT * (1.0 if draws.relative else float(draws.each.max()))
    length = draws.block or (1 if exact else block_length(gap))
    parts = 0 if length is None else len(used) // length
    if length is None or parts < _BLOCKS:
        _log.warning(
            "fit_divergence: no intervals of %s: the scatter about it is correlated over too much of the run (%s) for "
            "blocks of it to be independent; give the distances of %d or more members, or a shorter block",
            name,
            "longer than can be told" if length is None else f"blocks of {length} of {len(used)} points",
            _MEMBERS,
        )
        return None, length, parts
    return draws.fits(A, used, length, found), length, parts


def _gap(d: Tensor, fitted: Tensor, relative: bool) -> Tensor:
    return d.log() - fitted.log() if relative else d - fitted


def _rms(t: Tensor, d: Tensor, curve: Curve, relative: bool) -> float:
    used = t > 0 if relative else t >= 0  # laws that vanish at 0 have no logarithm there
    return float(_gap(d[used], curve(t[used]), relative).square().mean().sqrt())


def _law(kind: Kind, t: Tensor, d: Tensor, relative: bool) -> tuple[tuple[float, int], DivergenceLaw]:
    """A law, behind what it is ranked by: the error, equal where it differs by rounding, and the parameters."""
    early = len(t) - len(t) // 3
    predicted = kind.fit(t[:early], d[:early], relative)[1]
    parameters, curve = kind.fit(t, d, relative)
    error = _rms(t[early:], d[early:], predicted, relative)
    law = DivergenceLaw(kind.name, kind.formula, parameters, _rms(t, d, curve, relative), error)
    unit = _TIE * (1.0 if relative else float(d.max()))
    return (math.floor(error / unit), kind.free), law
