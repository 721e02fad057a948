"""Which eigenvalues a selection takes, and whether a partial spectrum holds all of these."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .spectrum import Spectrum

_FAR = 1e300  # stands for infinity: 0 * it is a number
_TIE = 1e-12  # exponents of one number may differ by this when vectors of other lengths are computed


class Rule(NamedTuple):
    """A set of eigenvalues, and the order in which k of them are taken; ``select`` says what the fields mean.

    Attributes:
        prune: "negative", "positive" or "chaotic".
        lr, upper, sign, shift: as of ``select``.
    """

    prune: str
    lr: float
    upper: float
    sign: float = 1.0
    shift: float = 0.0

    def members(self, values: Tensor, zero: float) -> Tensor:
        """Which eigenvalues belong to the set, a bool mask; ``zero`` is the absolute tolerance."""
        kappa = self._kappa(values)
        counted = values.abs() > zero
        if self.prune == "negative":
            return counted & (kappa < 0)
        if self.prune == "positive":
            return counted & (kappa > 0)
        return counted & ((kappa < 0) | (kappa > self.upper))

    def rank(self, values: Tensor) -> Tensor:
        """By what the first k are told, in float64: the larger, the earlier."""
        kappa = self._kappa(values)
        return exponents(kappa, self.lr) if self.prune == "chaotic" else kappa.abs()

    def _kappa(self, values: Tensor) -> Tensor:
        return self.sign * values.double() + self.shift


def exponents(eigenvalues: Tensor, lr: float) -> Tensor:
    """ln|1 - lr * lambda| as ``local_lyapunov_exponents`` defines it."""
    x = lr * eigenvalues.double()
    safe_low = torch.where(x < 1, x, torch.zeros_like(x))
    safe_high = torch.where(x < 1, torch.full_like(x, 2.0), x)
    return torch.where(x < 1, torch.log1p(-safe_low), torch.log(safe_high - 1))


def pick(spec: Spectrum, rule: Rule, k: int | None, order: str, generator: torch.Generator | None) -> Tensor:
    """What a rule takes of the eigenvalues that a spectrum lists, a bool mask [r]; arguments as of ``select``."""
    values = spec.eigenvalues
    mask = rule.members(values, spec.zero_threshold)
    if k is None or k >= int(mask.sum()):
        return mask
    members = mask.nonzero().squeeze(1)
    if order == "random":
        device = "cpu" if generator is None else generator.device
        shuffled = torch.randperm(len(members), generator=generator, device=device)
        chosen = members[shuffled[:k].to(members.device)]
    else:
        chosen = members[rule.rank(values[members]).argsort(descending=True, stable=True)[:k]]
    return torch.zeros_like(mask).index_fill_(0, chosen, True)


def require_seen(spec: Spectrum, rule: Rule, k: int | None, order: str) -> None:
    """Refuses a partial spectrum that may lack an eigenvalue which ``pick`` would take of the complete one.

    Raises:
        ValueError: an eigenvalue that it does not list may be in the set, and (with k, by size) among the first k.
    """
    values = spec.eigenvalues
    if spec.nullity is not None or len(values) == spec.size:
        return
    rest = _unseen(spec, values.tolist())
    best = math.inf if rest is None else _best_unseen(rule, rest, spec.zero_threshold)
    if best == -math.inf:
        return
    if k is not None and order == "top_abs" and rest is not None:
        ranks = rule.rank(values[rule.members(values, spec.zero_threshold)]).sort(descending=True).values
        if len(ranks) >= k and best <= float(ranks[k - 1]) + _TIE * abs(best):
            return
    raise ValueError(_refusal(spec, rule, k, order, rest))


def _unseen(spec: Spectrum, values: list[float]) -> tuple[float, float] | None:
    """The interval of the eigenvalues that a spectrum does not list, None where it is not known."""
    if spec.unseen is not None or spec.ends is None:
        return spec.unseen
    low, high = spec.ends
    return values[low - 1] if low else -math.inf, values[-high] if high else math.inf


def _best_unseen(rule: Rule, rest: tuple[float, float], zero: float) -> float:
    """The supremum of the rank over what the set has in an interval, -inf where it has nothing there.

    Between 0, the thresholds and the ends of the interval the set has all or nothing, and the rank no inner maximum;
    what begins at a threshold of the set goes on outwards, to an end of the interval or to the zero tolerance.
    """
    a, b = (min(max(end, -_FAR), _FAR) for end in rest)
    threshold = rule.sign * (min(rule.upper, _FAR) - rule.shift)  # matters where it is below 1 / lr
    inner = [math.nextafter(t, side) for t in (-zero, zero, threshold) for side in (-math.inf, math.inf)]
    points = [a, b, *(t for t in inner if a <= t <= b)]
    edges = torch.tensor(points, dtype=torch.float64, device="cpu")
    ranks = rule.rank(edges[rule.members(edges, zero)])
    return float(ranks.max()) if len(ranks) else -math.inf


def _refusal(spec: Spectrum, rule: Rule, k: int | None, order: str, rest: tuple[float, float] | None) -> str:
    asked = "all directions of this set" if k is None else f"k = {k} directions of this set, order={order!r},"
    ends = "" if spec.ends is None else f", the {spec.ends[0]} smallest and {spec.ends[1]} largest"
    where = "anywhere" if rest is None else f"in [{rest[0]:.3g}, {rest[1]:.3g}]"
    few = "k=2 * k" if k is None else f"k={min(2 * k, spec.size)}"
    return (
        f"prune={rule.prune!r}: {asked} may be more than this partial spectrum holds: it has {len(spec.eigenvalues)} "
        f"of P = {spec.size} eigenvalues{ends}, and the others lie {where}; take a complete spectrum, spectrum(op), "
        f"or, with k given and order='top_abs', spectrum(op, {few}, which='both_ends')"
    )
