"""What follows from a Lyapunov spectrum: its statistical error, dimension, sum of positive exponents, and signs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.arguments import require_int, require_number

BATCHES = 20


def block_errors(ends: Tensor, growth: Tensor, start: int) -> Tensor:
    """One standard error of the mean growth per step, by batch means over up to 20 stretches of the run, float64 [k].

    Stretches far longer than the correlation time are independent, so their scatter gives the error. NaN for fewer
    than four blocks.

    Args:
        ends: step after each block, [m], ascending.
        growth: logarithmic growth in each block, [m, k].
        start: step at which the first block begins.
    """
    m, k = growth.shape
    if m < 4:
        return torch.full((k,), float("nan"), dtype=torch.float64, device=growth.device)
    total = int(ends[-1]) - start
    batch = ((ends - start - 1) * min(BATCHES, m) // total).to(growth.device)
    batch = torch.unique(batch, return_inverse=True)[1]
    count = int(batch.max()) + 1
    lengths = torch.diff(ends, prepend=torch.tensor([start], device=ends.device)).double().to(growth.device)
    weights = torch.zeros(count, dtype=torch.float64, device=growth.device).index_add_(0, batch, lengths)
    sums = torch.zeros(count, k, dtype=torch.float64, device=growth.device).index_add_(0, batch, growth)
    mean = growth.sum(0) / total
    # Batches differ in length: the variance of a ratio estimate, sum_b (sum_b - n_b mean)^2.
    scatter = (sums - weights.unsqueeze(1) * mean).square().sum(0)
    return (scatter * count / max(count - 1, 1)).sqrt() / total


def kaplan_yorke_dimension(exponents: Tensor, size: int | None = None) -> float:
    """D = j + (l_1 + ... + l_j) / |l_(j + 1)|, with j the largest number of leading exponents whose sum is >= 0.

    (Kaplan and Yorke, 1979.) 0 if the largest is negative; the dimension of the space if the sum of all is >= 0.

    Args:
        exponents: the leading ones, any order.
        size: dimension of the space; default: the exponents are all there are.

    Raises:
        ValueError: the leading exponents are too few to tell: their sum is not yet negative.
    """
    if size is not None:
        require_int("size", size, 0)
    values = exponents.double().sort(descending=True).values
    sums = values.cumsum(0)
    if len(values) == 0 or bool(torch.isnan(sums).any()):
        return float("nan")
    below = (sums < 0).nonzero()
    if len(below):
        j = int(below[0])
        return float(j + (float(sums[j - 1]) if j else 0.0) / float(values[j].abs()))
    if size is not None and len(values) < size:
        raise ValueError(
            f"exponents: the sum of the {len(values)} leading ones is not negative, so the dimension is at least "
            f"{len(values)} and needs more of them"
        )
    return float(len(values))


def sum_of_positive_exponents(exponents: Tensor) -> float:
    """The sum of the positive exponents in nats per step, an upper bound of the entropy rate (Ruelle 1978; Pesin 1977:
    equality for smooth invariant measures)."""
    return float(exponents.double().clamp_min(0).sum())


@dataclass(frozen=True)
class Signs:
    """How many exponents are of which kind.

    Attributes:
        chaotic: above zero by more than the tolerance.
        neutral: within the tolerance of zero.
        stable: below zero by more than it.
    """

    chaotic: int
    neutral: int
    stable: int


def count_signs(exponents: Tensor, steps: int = 1, tol: float = 1e-8) -> Signs:
    """Counts exponents by sign; those with |lambda t| <= tol are neutral: neither chaotic nor stable.

    Args:
        exponents: in nats per step.
        steps: t, the number of steps that they are means of (1 for local exponents).
        tol: tolerance of the total growth lambda t; about the rounding error of t steps.

    Raises:
        ValueError: NaN exponents, steps < 1, a negative tolerance.
    """
    require_int("steps", steps, 1)
    require_number("tol", tol)
    if tol < 0:
        raise ValueError(f"tol: expected a tolerance >= 0, got {tol!r}")
    growth = exponents.double() * steps
    if bool(torch.isnan(growth).any()):
        raise ValueError("exponents: expected numbers, got NaN")
    chaotic, stable = int((growth > tol).sum()), int((growth < -tol).sum())
    return Signs(chaotic, growth.numel() - chaotic - stable, stable)
