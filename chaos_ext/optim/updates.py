"""What a step writes: an ``Update`` for each parameter that it moves."""

from __future__ import annotations

from torch.optim import Optimizer

from .removal import Pruned, factors
from .sgd import Update, check_buffers
from .source import Resolved


def updates_of(opt: Optimizer, resolved: Resolved, pruned: Pruned | None) -> list[Update]:
    """The updates of this optimizer's parameters along a gradient, without what is taken out of it.

    Raises:
        ValueError: a momentum buffer that is not made like its parameter.
    """
    space, gradient = resolved.space, resolved.gradient
    if pruned is not None and pruned.base is not None:
        gradient = pruned.base
    removed = factors(space, pruned) if pruned is not None and pruned.count else [None] * len(space.params)
    groups = {p: g for g in opt.param_groups for p in g["params"]}
    check_buffers(space.names, space.params, [opt.state.get(p, {}) for p in space.params])
    parts = zip(space.params, space.views(gradient), removed, strict=True)
    return [
        Update(p, g, low_rank, groups[p], opt.state[p])
        for i, (p, g, low_rank) in enumerate(parts)
        if i not in resolved.unused
    ]
