"""Local chaos of a training step: which Hessian directions expand, how fast, and which of them to prune.

One step of gradient descent maps a small deviation along an eigenvector of H by the factor 1 - lr * lambda, so the
local Lyapunov exponent of that direction is ln|1 - lr lambda|: chaotic (positive) iff lambda < 0 or lambda > 2 / lr.
(Herrmann, Granz, Landgraf, "Chaotic Dynamics are Intrinsic to Neural Network Training with SGD", NeurIPS 2022, sec. 2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .base.arguments import require_int, require_number, require_numbers
from .base.html import table
from .base.parameters import Group
from .errors import UnsupportedError
from .spectra import dominant
from .spectra.sets import Rule, exponents, pick, require_seen
from .spectra.spectrum import Spectrum

PRUNE = (None, "chaotic", "negative", "positive", *dominant.SETS)
ORDER = ("top_abs", "random")


def local_lyapunov_exponents(eigenvalues: Tensor, lr: float) -> Tensor:
    """ln|1 - lr * lambda| in nats per step, float64, elementwise.

    Computed as log1p(-lr lambda) where lr lambda < 1 and as log(lr lambda - 1) elsewhere, which keeps every digit of
    exponents near zero; -inf at lr lambda = 1.

    Args:
        eigenvalues: of H, any shape.
        lr: learning rate >= 0.

    Returns:
        Of the same shape.

    Raises:
        ValueError: lr negative or not finite.

    Example:
        >>> ce.local_lyapunov_exponents(torch.tensor([-1.0, 1.0, 25.0]), lr=0.1)
        tensor([ 0.0953, -0.1054,  0.4055], dtype=torch.float64)
    """
    _check_lr(lr)
    return exponents(torch.as_tensor(eigenvalues), lr)


def select(
    spec: Spectrum,
    lr: float,
    prune: str | None = "chaotic",
    k: int | None = None,
    order: str = "top_abs",
    generator: torch.Generator | None = None,
    *,
    upper: float | None = None,
    sign: float = 1.0,
    shift: float = 0.0,
) -> Tensor:
    """The eigen-directions to prune, a bool mask [r].

    An eigenvalue counts as zero, and is never selected, if |lambda| <= zero_tol * max|lambda|. With kappa = sign *
    lambda + shift (the curvature that the optimizer steps on; plain SGD: kappa = lambda), "negative" selects kappa < 0,
    "positive" kappa > 0 and "chaotic" kappa < 0 or kappa > ``upper``. "dominant" selects the k algebraically largest
    eigenvalues of H, whatever sign and shift are.

    Args:
        spec: the spectrum. A partial one serves where it is certain to hold all that is selected, as
            ``spectrum(op, k=2 * k, which="both_ends")`` is for k directions by size.
        lr: learning rate, which sets the chaotic threshold 2 / lr.
        prune: "chaotic", "negative", "positive", "dominant" or None (nothing). "bulk", all but the dominant directions,
            is no set of columns, since H's null space belongs to it: select "dominant", keep ``spec.project(g, mask)``.
        k: at most this many directions; None: all of the set. "dominant" needs it, and takes exactly as many.
        order: which k: "top_abs", the largest |lambda| (of the chaotic set: the largest exponent ln|1 - lr lambda|),
            ties broken by the smaller index; "random", without replacement.
        generator: for "random".
        upper: chaotic threshold; default 2 / lr.
        sign: -1 where the optimizer maximises.
        shift: weight decay.

    Returns:
        The mask, on the spectrum's device.

    Raises:
        ValueError: an unknown string, a negative k, k > P, lr < 0; "bulk"; "dominant" without k, with another order, of
            fewer than k eigenvalues beyond the zero tolerance; a partial spectrum that may lack some of the selection.
        TypeError: no spectrum, a k that is no int.

    Example:
        >>> mask = ce.select(spec, lr=0.1, prune="chaotic")
        >>> pruned = op.gradient - spec.project(op.gradient, mask)  # what CGD steps along
    """
    if not hasattr(spec, "zero_threshold"):
        raise TypeError(f"spec: expected a Spectrum, got {type(spec).__name__}")
    check_selection(prune, k, order, spec.size)
    _check_lr(lr)
    require_numbers(sign=sign, shift=shift)
    if upper is not None:
        require_number("upper", upper, finite=False)
    if prune == "bulk":
        raise ValueError(
            "prune: 'bulk' holds the null space of H, which is no column of a spectrum; select 'dominant' and keep "
            "spec.project(g, mask) (CGD(..., prune='bulk') does)"
        )
    if prune == "dominant":
        assert k is not None
        return dominant.largest(spec, k)
    if prune is None or k == 0:
        return torch.zeros_like(spec.eigenvalues, dtype=torch.bool)
    rule = Rule(prune, lr, _upper(lr) if upper is None else upper, sign, shift)
    require_seen(spec, rule, k, order)
    return pick(spec, rule, k, order, generator)


def check_selection(prune: str | None, k: int | None, order: str, size: int | None = None) -> None:
    """Raises ValueError or TypeError for ``prune``, ``k`` and ``order`` that ``select`` would refuse.

    ``size`` is P, the most that k may be; None where it is not known yet.
    """
    if size is not None:
        require_int("size", size, 0)
    if prune not in PRUNE:
        raise ValueError(f"prune: expected one of {PRUNE}, got {prune!r}")
    if order not in ORDER:
        raise ValueError(f"order: expected one of {ORDER}, got {order!r}")
    if prune in dominant.SETS and not k:
        raise ValueError(f"k: expected the number of dominant directions, an int >= 1, with prune={prune!r}, got {k!r}")
    if prune in dominant.SETS and order != "top_abs":
        raise ValueError(
            f"order: prune={prune!r} goes by the k algebraically largest eigenvalues; leave order at its default, got "
            f"{order!r}"
        )
    if k is not None:
        if isinstance(k, bool) or not isinstance(k, int):
            raise TypeError(f"k: expected an int or None, got {k!r}")
        if k < 0 or (size is not None and k > size):
            raise ValueError(f"k: expected 0 <= k <= P = {size}, got {k}")


def _upper(lr: float) -> float:
    return 2 / lr if lr else float("inf")


def _check_lr(lr: float) -> None:
    require_number("lr", lr, finite=False)
    if not 0 <= lr < float("inf"):
        raise ValueError(f"lr: expected a finite value >= 0, got {lr!r}")


@dataclass(frozen=True)
class SpectralSummary:
    """Counts and gradient shares of the eigenspaces of H at one step.

    A share is ||V_set^T g||^2 / ||g||^2; that of zero also holds what lies outside the range of H. NaN if g = 0.

    Attributes:
        n_negative, n_zero, n_positive: eigenvalues below, within and above the zero tolerance; they add up to P.
        n_chaotic: lambda < 0 or lambda > 2 / lr, beyond the tolerance.
        lambda_min, lambda_max: extreme eigenvalues of H [P, P].
        share_negative, share_zero, share_positive, share_chaotic: of ||g||^2.
        n_near_threshold: eigenvalues whose |lambda| is within 10 % of the zero tolerance.
        share_near_threshold: their share.
    """

    n_negative: int
    n_zero: int
    n_positive: int
    n_chaotic: int
    lambda_min: float
    lambda_max: float
    share_negative: float
    share_zero: float
    share_positive: float
    share_chaotic: float
    n_near_threshold: int
    share_near_threshold: float

    def _repr_html_(self) -> str:
        return table("Spectral summary", asdict(self).items())


def spectral_summary(spec: Spectrum, lr: float) -> SpectralSummary:
    """Counts and gradient shares of a complete spectrum that carries its gradient.

    Args:
        spec: of ``spectrum(op)`` or ``directions(op)``.
        lr: learning rate, which sets the chaotic threshold 2 / lr.

    Raises:
        ValueError: a partial spectrum, or one without gradient; lr < 0.
    """
    _check_lr(lr)
    if spec.nullity is None:
        raise ValueError("spec: expected a complete spectrum, got a partial one; call spectrum(op) without k")
    squares = spec.gradient_coefficients().double() ** 2
    values, total = spec.eigenvalues.double(), float(spec.gradient_norm_squared)
    sets = {
        name: Rule(name, lr, _upper(lr)).members(values, spec.zero_threshold)
        for name in ("negative", "positive", "chaotic")
    }
    stacked = torch.stack(list(sets.values())).double()
    counts = stacked.sum(1).tolist()
    share = dict(zip(sets, ((stacked @ squares) / total).tolist() if total > 0 else [float("nan")] * 3, strict=True))
    low, high = (float(values[0]), float(values[-1])) if len(values) else (0.0, 0.0)
    if spec.nullity:
        low, high = min(low, 0.0), max(high, 0.0)
    near, near_square = spec.near_threshold
    n_negative, n_positive, n_chaotic = (int(c) for c in counts)
    return SpectralSummary(
        n_negative=n_negative,
        n_zero=spec.size - n_negative - n_positive,
        n_positive=n_positive,
        n_chaotic=n_chaotic,
        lambda_min=low,
        lambda_max=high,
        share_negative=share["negative"],
        share_zero=max(0.0, 1 - share["negative"] - share["positive"]),
        share_positive=share["positive"],
        share_chaotic=share["chaotic"],
        n_near_threshold=near,
        share_near_threshold=near_square / total if total > 0 else float("nan"),
    )


@dataclass(frozen=True)
class Threshold:
    """Which curvatures are chaotic: kappa < 0 or kappa > upper, kappa = sign * lambda + shift.

    Attributes:
        lr: learning rate, by which exponents of single directions are ranked.
        upper: the other threshold, 2 / lr of plain SGD.
        sign: -1 under ``maximize``.
        shift: weight decay, where the rule counts it.
    """

    lr: float
    upper: float
    sign: float = 1.0
    shift: float = 0.0


def chaotic_threshold(groups: Sequence[Group], rule: str) -> Threshold:
    """The threshold of the "paper" or of the "optimizer" (a companion root of the recurrence outside the unit circle).

    SGD: kappa < 0 or lr kappa > 2. Heavy ball: lr (1 - dampening) kappa > 2 (1 + mu). Nesterov:
    lr kappa > (2 + 2 mu) / (1 + 2 mu). Under ``maximize`` the step ascends and kappa = -lambda (+ weight decay).

    Args:
        groups: the optimizer's parameter groups, with the options of torch.optim.SGD.
        rule: "paper", 2 / lr whatever the momentum, or "optimizer".

    Raises:
        UnsupportedError: groups that differ in what the threshold needs.
    """
    names = ["lr", "maximize"]
    if rule == "optimizer":
        names += ["momentum", "dampening", "weight_decay", "nesterov"]
    for name in names:
        if len({float(g[name]) for g in groups}) > 1:
            raise UnsupportedError(
                f"prune='chaotic': parameter groups have different {name}, and one threshold cannot hold for the "
                "eigenvectors of H, which cross groups; use one value, or prune='negative' or 'positive'"
            )
    g = groups[0]
    lr, mu, sign = float(g["lr"]), float(g["momentum"]), -1.0 if g["maximize"] else 1.0
    if rule == "paper":
        return Threshold(lr, 2 / lr if lr else float("inf"), sign)
    factor = 2.0
    if mu and g["nesterov"]:
        factor = (2 + 2 * mu) / (1 + 2 * mu)
    elif mu:
        factor = 2 * (1 + mu) / (1 - g["dampening"]) if g["dampening"] < 1 else float("inf")
    return Threshold(lr, factor / lr if lr else float("inf"), sign, float(g["weight_decay"]))
