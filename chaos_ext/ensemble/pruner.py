"""What CGD takes out of the gradient of each member: its options, the members' generators, and what was done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..base.contents import count, require
from ..base.parameters import Group
from ..errors import ChaosExtError, NonFiniteError, NotConvergedError, UnsupportedError
from ..optim.cgd import CGD
from ..optim.pruning import Pruning, StepInfo
from ..optim.removal import Pruned
from ..spectra.spectrum import Spectrum
from .recurrence import Recurrence

FAILURES = (NonFiniteError, NotConvergedError)  # of one member, which the others do not share
_OF_RUN = ("prune", "k", "order", "start", "stop", "mix", "noise", "zero_tol", "threshold")


class Along(NamedTuple):
    """The gradient of a member.

    Attributes:
        gradient: [P].
        coefficients: V^T g [r].
        norm_squared: ||g||^2 in float64.
        loss: a scalar.
    """

    gradient: Tensor
    coefficients: Tensor
    norm_squared: Tensor
    loss: Tensor


class Pruner:
    """The part of CGD that SGD does not have, for B members.

    Attributes:
        options: of CGD; the same for all members.
        generators: one for each member, or none where nothing is drawn.
        first: the optimizer's number of the first step.
        infos: of each member, what the last step did; None of one that was left out, or before the first step.
        number: of the first of these members, for messages.
    """

    def __init__(
        self, options: Pruning, recurrence: Recurrence, generators: Sequence[torch.Generator], first: int
    ) -> None:
        self.options, self.generators, self.first = options, list(generators), first
        self.infos: list[StepInfo | None] = [None] * recurrence.members
        self.number = 0
        self._recurrence, self._groups = recurrence, _Groups()

    def acts_at(self, steps: int) -> bool:
        """Whether the step after so many prunes."""
        return self.options.acts_at(self.first + steps)

    def pruned(self, i: int, steps: int, spec: Spectrum, along: Along) -> Pruned:
        """What is taken out of the gradient of member i with this spectrum; noted in ``infos``."""
        generator = self.generators[i] if self.generators else None
        try:
            mask = self.options.select(spec, self._groups.of(self._recurrence, i), generator)
        except ValueError as e:
            raise ValueError(f"member {self.number + i}: {e}") from e
        how = self.options.how
        pruned = Pruned.of(spec, mask, along.coefficients, along.gradient, along.norm_squared, how, generator)
        self.infos[i] = StepInfo.of(self.first + steps, along.loss, pruned)
        return pruned

    def did_not_prune(self, steps: int, losses: Tensor, alive: Sequence[int]) -> None:
        """Notes a step of plain SGD."""
        for i, loss in zip(alive, losses.cpu()[list(alive)], strict=True):
            self.infos[i] = StepInfo.of(self.first + steps, loss, None)

    @contextlib.contextmanager
    def unchanged_on_failure(self) -> Iterator[None]:
        """Around the making of a step: what was drawn and noted is undone if the code inside raises."""
        states, infos = [g.get_state() for g in self.generators], list(self.infos)
        self.infos = [None] * len(infos)
        try:
            yield
        except BaseException:
            self.infos = infos
            for g, state in zip(self.generators, states, strict=True):
                g.set_state(state)
            raise

    def like_member(self, i: int, recurrence: Recurrence) -> Pruner:
        """Of members that are all this one."""
        copies = [_copy(self.generators[i]) for _ in self.generators]
        return Pruner(self.options, recurrence, copies, self.first)

    def fingerprint(self) -> dict[str, Any]:
        """The options that a run is told by; fixed directions, as of CGD, are no part of a state."""
        return {name: getattr(self.options, name) for name in _OF_RUN}

    def state(self) -> dict[str, Any]:
        """What the next step depends on beside theta and the recurrence."""
        return {"first": self.first, "generators": [g.get_state() for g in self.generators]}

    def check(self, state: Any) -> None:
        """Raises UnfitError unless that is a ``state`` of as many generators."""
        require(isinstance(state, dict) and set(state) == {"first", "generators"}, "pruning", "its parts", state)
        count("pruning.first", state["first"])
        given = state["generators"]
        whole = isinstance(given, list) and len(given) == len(self.generators)
        require(whole, "pruning.generators", f"{len(self.generators)} states", given)
        for own, t in zip(self.generators, given, strict=True):
            fits = isinstance(t, Tensor) and t.dtype == torch.uint8 and t.shape == own.get_state().shape
            require(fits, "pruning.generators", "the state of a generator", t)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a state that fits."""
        self.first = state["first"]
        self.infos = [None] * len(self.infos)
        for g, kept in zip(self.generators, state["generators"], strict=True):
            g.set_state(kept.cpu())


class _Groups:
    """The parameter groups of single members, made anew when options change."""

    def __init__(self) -> None:
        self._made: dict[int, list[Group]] = {}
        self._of: object = None

    def of(self, recurrence: Recurrence, i: int) -> list[Group]:
        if self._of is not recurrence.groups:
            self._made, self._of = {}, recurrence.groups
        if i not in self._made:
            self._made[i] = [_group_of(g, i) for g in recurrence.groups]
        return self._made[i]


def _group_of(group: Any, i: int) -> Group:
    numbers = {n: float(v[i]) if isinstance(v, Tensor) else v for n, v in group.numbers.items()}
    return {**numbers, **group.flags}


def _copy(generator: torch.Generator) -> torch.Generator:
    made = torch.Generator(generator.device)
    made.set_state(generator.get_state())
    return made


def pruner_of(opt: Optimizer, recurrence: Recurrence, generators: object) -> Pruner | None:
    """Of a CGD that prunes; None of every other optimizer.

    Raises:
        UnsupportedError: what would have to be kept for each member from step to step; an optimizer of a part of theta.
        ValueError: not one generator for each member; none where CGD draws, or some where nothing draws.
    """
    if type(opt) is not CGD or opt.prune is None:
        if generators is not None:
            raise ValueError("generators: expected None: only a CGD that prunes draws numbers")
        return None
    options = opt.pruning
    for name in ("refresh_every", "switch_share"):
        if getattr(options, name) is not None:
            raise UnsupportedError(
                f"opt: CGD with {name}={getattr(options, name)!r} keeps more from step to step than an ensemble holds "
                f"of each member; expected {name}=None"
            )
    space = recurrence.layout.space
    missing = [n for n, place in zip(space.names, recurrence.places, strict=True) if place is None]
    if missing:
        raise UnsupportedError(
            f"opt: CGD lacks {', '.join(missing)}, with which H has eigenvectors; give it all parameters, or set "
            "requires_grad=False on what is not trained"
        )
    return Pruner(options, recurrence, generators_of(opt, recurrence.members, generators), opt.steps)


def generators_of(opt: CGD, members: int, given: Any) -> list[torch.Generator]:
    """Copies, one for each member, or none; errors as of ``pruner_of``."""
    if given is None:
        if not opt.pruning.is_random:
            return []
        if opt.generator is None:
            raise ValueError(
                "generators: expected one for each member, since CGD draws (noise, or order='random'); or give CGD a "
                "generator, of which every member gets a copy"
            )
        return [_copy(opt.generator) for _ in range(members)]
    whole = isinstance(given, (list, tuple)) and all(isinstance(g, torch.Generator) for g in given)
    if not whole or len({id(g) for g in given}) != members:
        raise ValueError(f"generators: expected {members} torch.Generators, one for each member, got {given!r:.80}")
    return [_copy(g) for g in given]


def raise_together(failed: Mapping[int, ChaosExtError]) -> None:
    """Raises what a member's failure was, with the names of all that failed; nothing where none did."""
    if not failed:
        return
    first, error = next(iter(failed.items()))
    names = ", ".join(map(str, failed))
    message = f"member{'s' if len(failed) > 1 else ''} {names}: no step was done; leave_out({list(failed)}) goes on "
    message += f"without. Of member {first}: {error}"
    residuals = error.residuals if isinstance(error, NotConvergedError) else None
    whole = NonFiniteError(message) if isinstance(error, NonFiniteError) else NotConvergedError(message, residuals)
    whole.members = dict(failed)
    raise whole from error
