"""The directions of one step, drawn once: whoever looks at them, or repeats the step, gets the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..base.parameters import Group
from ..spectra.spectrum import Spectrum
from .pruning import Pruning

Key = tuple[int, Pruning, str]  # the step, its pruning options, the options of its parameter groups


@dataclass(frozen=True)
class Draw:
    """What has been selected for a step.

    Attributes:
        key: what decides it besides the spectrum and the generator.
        spec: the spectrum that it was selected of; None in a copy of the optimizer.
        mask: bool [r].
        generator: that the directions were drawn with, None: torch's global one.
        before, after: its state; None where nothing was drawn.
    """

    key: Key
    spec: Spectrum | None
    mask: Tensor
    generator: torch.Generator | None = None
    before: Tensor | None = None
    after: Tensor | None = None

    def forgotten(self) -> Draw:
        """Without the spectrum: what follows draws anew, and gets the same."""
        return replace(self, spec=None)

    def is_last_of(self, generator: torch.Generator | None) -> bool:
        """Whether nobody has drawn from the generator since."""
        return self.after is not None and self.generator is generator and torch.equal(_state(generator), self.after)

    def follows(self, key: Key, generator: torch.Generator | None) -> bool:
        """Whether another draw with this key is for the same step."""
        return self.before is not None and self.key[0] == key[0] and self.generator is generator


def draw(
    known: Draw | None,
    key: Key,
    spec: Spectrum,
    options: Pruning,
    groups: Sequence[Group],
    generator: torch.Generator | None,
) -> Draw:
    """The directions of the step of this key, as ``known`` has them, or drawn from where the step began.

    A second draw for the same step (of the spectrum of a new operator, say, after an interruption) repeats the first.
    The generator is left as if only the second had been, unless somebody else has drawn from it since.
    """
    if known is not None and known.key == key and known.spec is spec:
        return known
    first = None if known is None or not known.follows(key, generator) else known
    if not options.draws_directions:
        mask = options.select(spec, groups, generator)
        return Draw(key, spec, mask) if first is None else replace(first, key=key, spec=spec, mask=mask)
    now = _state(generator)
    before: Tensor = now
    after: Tensor | None = now
    if first is not None and first.before is not None:
        before, after = first.before, first.after
    apart = torch.Generator("cpu" if generator is None else generator.device)
    apart.set_state(before)
    mask = options.select(spec, groups, apart)
    if after is not None and (torch.equal(now, after) or torch.equal(now, before)):
        after = apart.get_state()
        _set_state(generator, after)
    return Draw(key, spec, mask, generator, before, after)


def state_before(known: Draw | None, step: int, generator: torch.Generator) -> Tensor:
    """The state of the generator, without what has been drawn for a step that is still to be done."""
    if known is not None and known.before is not None and known.key[0] == step and known.is_last_of(generator):
        return known.before
    return generator.get_state()


def _state(generator: torch.Generator | None) -> Tensor:
    return torch.get_rng_state() if generator is None else generator.get_state()


def _set_state(generator: torch.Generator | None, state: Tensor) -> None:
    torch.set_rng_state(state) if generator is None else generator.set_state(state)
