"""Where the sharpness stands relative to the edge at which the optimizer would diverge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import SGD, Optimizer

from ..chaos import chaotic_threshold
from ..dynamics.projected import Projected
from ..errors import UnsupportedError
from ..spectra.spectrum import Spectrum


@dataclass(frozen=True)
class StabilityMargin:
    """Where the sharpness stands relative to the edge of stability.

    Attributes:
        sharpness: the largest curvature that the optimizer steps on: lambda_max, plus weight decay.
        threshold: above it a direction is unstable: 2 / lr for plain SGD.
        distance: threshold - sharpness; negative beyond the edge.
        ratio: sharpness / threshold.
    """

    sharpness: float
    threshold: float
    distance: float
    ratio: float


def distance_to_threshold(source: Spectrum | float, opt: Optimizer) -> StabilityMargin:
    """Distance of the sharpness to the threshold at which a quadratic would diverge under this optimizer.

    The threshold is where a companion root of the recurrence leaves the unit circle: lr kappa > 2 for SGD, lr (1 - d)
    kappa > 2 (1 + mu) for heavy ball with dampening d, lr kappa > (2 + 2 mu) / (1 + 2 mu) for Nesterov; kappa is the
    curvature plus weight decay, and minus the curvature under ``maximize``.

    Args:
        source: a spectrum that holds the largest eigenvalue (the smallest under ``maximize``), or that eigenvalue.
        opt: torch.optim.SGD or CGD.

    Raises:
        UnsupportedError: another optimizer; parameter groups that differ.
    """
    if type(opt) is not SGD and not isinstance(opt, Projected):
        raise UnsupportedError(f"distance_to_threshold: known for torch.optim.SGD and CGD, got {type(opt).__name__}")
    groups: Sequence[dict[str, Any]] = opt.param_groups
    t = chaotic_threshold(groups, "optimizer")
    values = (
        source.eigenvalues.double()
        if isinstance(source, Spectrum)
        else torch.tensor([float(source)], dtype=torch.float64, device="cpu")
    )
    kappa = t.sign * values
    if isinstance(source, Spectrum) and source.nullity:
        kappa = torch.cat([kappa, kappa.new_zeros(1)])
    if not len(kappa):
        raise ValueError("source: expected a spectrum with at least one eigenvalue")
    sharpness = float(kappa.max()) + t.shift
    return StabilityMargin(sharpness, t.upper, t.upper - sharpness, sharpness / t.upper)
