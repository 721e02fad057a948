"""Exact tests, and one by permutations, without assumptions on distributions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .series import ranks


def sign_test(up: int, down: int) -> float:
    """Two-sided p-value of so many changes each way, were both as likely; 1 where there are none.

    Args:
        up, down: how many.
    """
    n = up + down
    tail = sum(math.comb(n, i) for i in range(max(up, down), n + 1)) / 2**n
    return min(1.0, 2 * tail)


def fisher_test(hits: int, of: int, others: int, of_others: int) -> float:
    """Two-sided p-value of two shares, hits / of and others / of_others, were they draws of one (Fisher's exact test).

    Args:
        hits, of: of the first group.
        others, of_others: of the second.
    """
    both = hits + others
    ways = [math.comb(of, i) * math.comb(of_others, both - i) if both >= i else 0 for i in range(of + 1)]
    # Of tables of integers: as likely means equal.
    return min(1.0, sum(w for w in ways if w <= ways[hits]) / sum(ways))


def permuted_rho(
    a: Tensor, b: Tensor, groups: Tensor | None = None, draws: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Spearman's rho of a and b, with a two-sided p-value by permutations of b: (1 + as extreme ones) / (1 + draws).

    Args:
        a, b: [n].
        groups: the mean of rho over groups of equal values of this, permuted within them [n]; None: of all.
        draws: permutations.
        seed: of these.

    Returns:
        rho and p. Groups in which a or b is constant do not count; NaN where none is left.
    """
    groups = torch.zeros(len(a), device="cpu") if groups is None else groups
    x, y = (torch.zeros(len(a), dtype=torch.float64, device="cpu") for _ in range(2))
    counted = 0
    for members in (groups == g for g in groups.unique()):
        u, v = (scores(values[members]) for values in (a, b))
        if u is not None and v is not None:
            x[members], y[members] = u, v
            counted += 1
    if not counted:
        return math.nan, math.nan
    own = float(x @ y)
    keys = torch.rand(draws, len(a), generator=_generator(seed), dtype=torch.float64, device="cpu")
    order = torch.unique(groups, return_inverse=True)[1].double()
    shuffled = (keys + 2 * order).argsort(1)  # group after group, each in an order of its own
    sorted_ = order.argsort(stable=True)
    extreme = ((y[shuffled] @ x[sorted_]).abs() >= abs(own) - 1e-12).sum()
    return own / counted, (1 + int(extreme)) / (1 + draws)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scores(values: Tensor) -> Tensor | None:
    """Ranks less their mean, of length one, so that products are rho; None of a constant."""
    centred = ranks(values) - (len(values) + 1) / 2
    length = centred.norm()
    return centred / length if float(length) else None
