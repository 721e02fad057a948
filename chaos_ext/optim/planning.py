"""What a step is about to take out of its gradient, and what it will leave for the steps that follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..spectra.spectrum import Spectrum
from .finding import Found
from .kept import Kept
from .pruning import Pruning, StepInfo
from .removal import Pruned
from .source import Resolved


class Look(NamedTuple):
    """The directions of a step.

    Attributes:
        found: to choose from.
        mask: the chosen ones [r].
        kept: by the steps that follow.
        acts: whether this step prunes.
    """

    found: Found
    mask: Tensor
    kept: Kept
    acts: bool


def look(resolved: Resolved, select: Callable[[Spectrum], Tensor], options: Pruning, kept: Kept) -> Look:
    """Finds the directions, selects among them, and counts the share of the gradient that they hold."""
    found = resolved.find()
    mask = select(found.spec)
    if found.tracked is not None:
        kept = replace(kept, tracked=found.tracked)
    if options.switch_share is not None:
        inside = (resolved.coefficients(found) * mask).double().square().sum()
        kept = kept.after(float(inside / resolved.norm_squared(found)), options)
    return Look(found, mask, kept, options.switch_share is None or kept.on)


def pruned_of(
    resolved: Resolved, seen: Look | None, options: Pruning, generator: torch.Generator | None
) -> Pruned | None:
    """What is taken out of the gradient; draws the noise."""
    if seen is None or not seen.acts:
        return None
    spec, c, norm_squared = seen.found.spec, resolved.coefficients(seen.found), resolved.norm_squared(seen.found)
    return Pruned.of(spec, seen.mask, c, resolved.gradient, norm_squared, options.how, generator)


def info_of(step: int, resolved: Resolved, seen: Look | None, pruned: Pruned | None) -> StepInfo:
    """What ``last_step`` will say."""
    info = StepInfo.of(step, resolved.loss, pruned)
    if seen is None:
        return info
    t = seen.found.tracked
    if t is not None:
        info = replace(info, age=step - t.step, residual=t.residual, products=t.products)
    return replace(info, running_share=seen.kept.running)
