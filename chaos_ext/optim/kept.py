"""What CGD keeps from step to step beside SGD's buffers: directions, and whether pruning has been switched on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..base.contents import number, refusing, require
from .pruning import Pruning
from .tracked import Tracked, parts_in, restored, told

PART = "chaos_ext_directions"  # in the state of each parameter
_ROUNDING = 1e-3  # of a share in float32, with directions that are orthonormal to as much


@dataclass(frozen=True)
class Kept:
    """Replaced as a whole by a step.

    Attributes:
        tracked: directions, with ``refresh_every``.
        running: decaying average of the dominant share, with ``switch_share``; None before the first.
        on: whether it has passed ``switch_share``.
    """

    tracked: Tracked | None = None
    running: float | None = None
    on: bool = False

    def after(self, share: float, options: Pruning) -> Kept:
        """With the share of a further step, that of a zero gradient (NaN) left out."""
        if options.switch_share is None or math.isnan(share):
            return self
        decay = options.switch_decay
        running = share if self.running is None else decay * self.running + (1 - decay) * share
        return replace(self, running=running, on=self.on or running > options.switch_share)

    def text(self) -> str:
        """All but vectors; floats come back bit for bit."""
        directions = None if self.tracked is None else told(self.tracked)
        return json.dumps({"directions": directions, "running": self.running, "on": self.on})

    def parts(self, params: Sequence[Tensor], options: Pruning) -> dict[int, Tensor]:
        """What the states of trained parameters hold, by the parameter's index; nothing without ``refresh_every``."""
        if self.tracked is None and (options.refresh_every is None or options.prune is None):
            return {}
        index = [i for i, p in enumerate(params) if p.requires_grad]
        return dict(zip(index, parts_in(self.tracked, [params[i] for i in index], options), strict=True))


def taken(text: str | None, steps: int, states: Mapping[Tensor, dict[str, Any]], trained: Sequence[Tensor]) -> Kept:
    """What ``text`` and ``parts`` gave after so many steps, taken out of the states; nothing of a state without.

    Raises:
        CheckpointError: damaged.
    """
    parts = [states[p].pop(PART, None) if p in states else None for p in trained]
    if text is None:
        return Kept()
    with refusing("state_dict"):
        try:
            own = json.loads(text)
        except (ValueError, TypeError):
            own = None
        whole = isinstance(own, dict) and {"directions", "running", "on"} <= set(own)
        require(whole and isinstance(own["on"], bool), "chaos_ext.kept", "what CGD keeps", text)
        _check_switch(own["running"], own["on"], steps)
        directions, lost = own["directions"], all(part is None for part in parts)  # then they are found anew
        tracked = None if directions is None or lost else restored(directions, parts, trained)
        if tracked is not None:
            require(tracked.step < steps, "directions.step", f"a step before steps = {steps}", tracked.step)
        return Kept(tracked, own["running"], own["on"])


def _check_switch(running: Any, on: bool, steps: int) -> None:
    """The average of shares, which rounding may leave above 1; there is one as soon as there was a step to switch."""
    if running is None:
        require(not on, "chaos_ext.kept.running", "the share that switched pruning on", running)
        return
    number("chaos_ext.kept.running", running)
    require(running <= 1 + _ROUNDING, "chaos_ext.kept.running", "a share of at most 1", running)
    require(steps > 0, "steps", "at least 1 with a running share", steps)
