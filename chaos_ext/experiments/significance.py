"""Exact tests, and one by permutations, without assumptions on distributions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .series import rank_correlation


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


def permutation_test(a: Tensor, b: Tensor, groups: Tensor | None = None, draws: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value of Spearman's rho of a and b, by permutations of b: (1 + as extreme ones) / (1 + draws).

    Args:
        a, b: [n].
        groups: permute within equal values of this only [n]; None: all.
        draws: permutations.
        seed: of these.
    """
    generator = torch.Generator().manual_seed(seed)
    own = abs(rank_correlation(a, b)) - 1e-12
    extreme = sum(abs(rank_correlation(a, b[_shuffled(len(b), groups, generator)])) >= own for _ in range(draws))
    return (1 + extreme) / (1 + draws)


def _shuffled(n: int, groups: Tensor | None, generator: torch.Generator) -> Tensor:
    keys = torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")
    if groups is None:
        return keys.argsort()
    found = torch.empty(n, dtype=torch.long, device="cpu")
    for g in groups.unique():
        members = (groups == g).nonzero().squeeze(1)
        found[members] = members[keys[members].argsort()]
    return found
