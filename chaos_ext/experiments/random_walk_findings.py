"""What walks and fits say of the law by which twins part."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .findings import Finding
from .random_walk_law import RandomWalkSettings

_ERRORS = 4.0  # standard errors
_COVERED = (0.90, 0.99)  # of intervals at 95 %

Table = list[dict[str, str]]


def findings_of(walks: Table, fits: Table, s: RandomWalkSettings) -> list[Finding]:
    """The law, what is easily left out of it, and fits."""
    return [_law(walks), _errata(walks, s), *(_coverage(fits, drift, s) for drift in ("none", "constant"))]


def _off(walks: Iterable[dict[str, str]], name: str, value: str = "square") -> float:
    """How far drawn values are from a law at worst, in standard errors; without scatter a difference counts fully."""
    worst = 0.0
    for r in walks:
        gap, error = float(r[value]) - float(r[name]), float(r[f"{value}_error"])
        rounding = 1e-12 * abs(float(r[name]))
        worst = max(worst, abs(gap) / error if error > rounding else 0.0 if abs(gap) <= 10 * rounding else math.inf)
    return worst


def _law(walks: Table) -> Finding:
    kinds = {(r["drift"], r["dimensions"]) for r in walks if r["drift"] != "turning"}
    off = {k: _off((r for r in walks if (r["drift"], r["dimensions"]) == k), "law") for k in sorted(kinds)}
    worst = max(off.values())
    return Finding(
        claim="Root mean square distances of a random walk with drift are sqrt(eps^2 + alpha t^2 + beta t)",
        where="appendix A.10",
        criterion=f"mean square distances of drawn walks within {_ERRORS:g} standard errors of it at every reading, "
        "with drift and without, in few dimensions and many",
        numbers="; ".join(f"{d} drift, {p} dimensions: {o:.2g} standard errors" for (d, p), o in off.items()),
        verdict="reproduced" if worst <= _ERRORS else "not reproduced",
    )


def _errata(walks: Table, s: RandomWalkSettings) -> Finding:
    few = min(int(r["dimensions"]) for r in walks)
    own = [r for r in walks if r["drift"] == "constant"]
    turning = [r for r in walks if r["drift"] == "turning"]
    mean = [{**r, "other": repr(math.sqrt(float(r["law"])))} for r in own if int(r["dimensions"]) == few]
    rate = [{**r, "other": repr(s.eps**2 + (float(r["law"]) - s.eps**2) / s.lr)} for r in own]
    start = [{**r, "other": repr(float(r["law"]) - s.eps**2)} for r in own if r["step"] != "0"]
    off = {
        f"the mean for the root mean square ({few} dimensions)": _off(mean, "other", "mean"),
        "lr for lr^2": _off(rate, "other"),
        "no eps^2": _off(start, "other"),
        "a drift that turns": _off(turning, "law"),
    }
    return Finding(
        claim="The law needs the root mean square, lr^2, the initial eps^2 and a drift that keeps its direction",
        where="appendix A.10, errata",
        criterion=f"with each of them replaced the law is off by more than {_ERRORS:g} standard errors at some reading",
        numbers="; ".join(f"{name}: {o:.3g} standard errors" for name, o in off.items()),
        verdict="reproduced" if min(off.values()) > _ERRORS else "not reproduced",
    )


def coverage(fits: Table, drift: str, members: str, alpha: float) -> tuple[int, int, float]:
    """Draws that have an interval of alpha, all draws, and the share of these intervals that hold the right one."""
    own = [r for r in fits if (r["drift"], r["members"]) == (drift, members)]
    known = [r for r in own if not math.isnan(float(r["alpha_low"]))]
    hit = sum(float(r["alpha_low"]) <= alpha <= float(r["alpha_high"]) for r in known)
    return len(known), len(own), hit / len(known) if known else math.nan


def _coverage(fits: Table, drift: str, s: RandomWalkSettings) -> Finding:
    alpha = s.alpha if drift == "constant" else 0.0
    texts, shares = [], []
    for members in sorted({r["members"] for r in fits}, key=int):
        known, count, share = coverage(fits, drift, members, alpha)
        shares.append(share)
        what = "one walk" if members == "1" else f"{members} walks"
        texts.append(
            f"{what}: {known} of {count} fits have an interval" + (f", {share:.0%} of them hold" if known else "")
        )
    low, high = _COVERED
    held = [low <= x <= high if alpha else x >= low for x in shares if not math.isnan(x)]
    whole = all(held) and len(held) == len(shares)
    wanted = f"{low:.0%} to {high:.0%}" if alpha else f"{low:.0%} or more"
    return Finding(
        claim=f"Fits find the right alpha = {alpha:.3g} of walks {'with' if alpha else 'without'} drift",
        where="fit_divergence, appendix A.10",
        criterion=f"intervals at 95 % hold it in {wanted} of draws, of single walks (neighbouring readings depend on "
        "each other: blocks are resampled, or no interval is given) and of several (walks are); partly: of one kind",
        numbers="; ".join(texts),
        verdict="reproduced" if whole else "partly" if any(held) else "not reproduced",
    )
