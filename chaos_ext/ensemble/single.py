"""One member after the other, each as a model of its own: what CGD does to it alone, of any model and every option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..base.guards import commit_forward
from ..base.parameters import ParameterSpace
from ..curvature.hessian import HessianOperator
from ..errors import ChaosExtError
from ..optim.finding import Finder
from ..optim.removal import Pruned, factors
from ..optim.source import Resolved
from ..spectra.decompose import directions, spectrum
from ..spectra.spectrum import Spectrum
from .pruner import FAILURES, Along, Pruner, raise_together
from .twin import Twin


class State(Protocol):
    """What ``Members`` hold of B members."""

    theta: Tensor
    buffers: dict[str, Tensor]
    steps: int

    def __len__(self) -> int: ...
    def alive(self) -> list[int]: ...
    def views(self, rows: slice) -> list[Tensor]: ...


class Single:
    """Pruned gradients and spectra of members, by operators of the twin."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self._seen: Seen | None = None

    def forget(self) -> None:
        """Other members than those whose spectra were found."""
        self._seen = None

    def pruned(
        self, members: State, pruner: Pruner, parts: object, x: Any, y: Any, own: bool, out: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [B] and the buffers after this step; the pruned gradients go to out, zeros of members left out.

        Raises:
            NonFiniteError, NotConvergedError: of members, which are named.
        """
        losses = members.theta.new_full((len(members),), torch.nan)
        after = {n: b.clone() for n, b in members.buffers.items()}
        failed: dict[int, ChaosExtError] = {}
        seen, options = self._seen, pruner.options
        found = {"zero_tol": options.zero_tol, "spectrum_dtype": options.spectrum_dtype}
        fits = seen is not None and options.spectrum is None and seen.is_of(members.steps, found, x, y, own)
        for view in out:
            view.zero_()
        for i in members.alive():
            try:
                known = seen.specs[i] if seen is not None and fits else None
                self._one(i, known, members, pruner, (x[i], y[i]) if own else (x, y), losses, after, out)
            except FAILURES as e:
                failed[i] = e
        raise_together(failed)
        self._seen = None
        return losses, after

    def _one(
        self,
        i: int,
        known: Spectrum | None,
        members: State,
        pruner: Pruner,
        batch: tuple[Any, Any],
        losses: Tensor,
        after: dict[str, Tensor],
        out: Sequence[Tensor],
    ) -> None:
        if known is None:
            spec, along = self._found(self.operator(members, i, *batch), pruner, members.steps)
        else:
            self._load(members, i)
            assert known.gradient is not None
            assert known.loss is not None
            spec = known
            along = Along(known.gradient, known.gradient_coefficients(), known.gradient_norm_squared, known.loss)
        pruned = pruner.pruned(i, members.steps, spec, along)
        for view, d in zip(out, _without(self.twin.space, along.gradient, pruned), strict=True):
            view[i] = d
        losses[i] = along.loss
        commit_forward(self.twin.tree, batch[0])
        for n, b in self.twin.buffers().items():
            after[n][i] = b

    def _found(self, op: HessianOperator, pruner: Pruner, steps: int) -> tuple[Spectrum, Along]:
        """As a step of CGD finds it."""
        finder = Finder(pruner.options, op.space.params, steps)
        resolved = Resolved(op.space, op.gradient, op.loss, op.origin, partial(finder.of_operator, op))
        found = resolved.find()
        coefficients, norm_squared = resolved.coefficients(found), resolved.norm_squared(found)
        return found.spec, Along(resolved.gradient, coefficients, norm_squared, op.loss)

    def operator(self, members: State, i: int, x: Any, y: Any) -> HessianOperator:
        """Of member i, as long as the twin is not asked for another."""
        self._load(members, i)
        return HessianOperator(self.twin.model, self.twin.scalar.loss_fn, x, y)

    def _load(self, members: State, i: int) -> None:
        """The twin is member i."""
        twin = self.twin
        for p, v in zip(twin.space.params, members.views(slice(i, i + 1)), strict=True):
            p.detach().copy_(v[0])
        for n, b in twin.buffers().items():
            b.copy_(members.buffers[n][i])

    def spectra(
        self, members: State, x: Any, y: Any, own: bool, form: bool, options: Mapping[str, Any]
    ) -> list[Spectrum | None]:
        """The spectrum of each member, None of those left out."""
        found: list[Spectrum | None] = [None] * len(members)
        failed: dict[int, ChaosExtError] = {}
        for i in members.alive():
            try:
                op = self.operator(members, i, *((x[i], y[i]) if own else (x, y)))
                found[i] = (spectrum if form else directions)(op, **options)
            except FAILURES as e:
                failed[i] = e
        raise_together(failed)
        for spec in found:
            if spec is not None:  # the twin is another member next
                spec.origin, spec.shapes = None, [tuple(s) for s in self.twin.space.shapes]
        if not form and isinstance(x, Tensor) and isinstance(y, Tensor):
            self._seen = Seen(members.steps, dict(options), x.clone(), y.clone(), own, found)
        return found


class Seen(NamedTuple):
    """What ``directions`` has found, for the step that may follow on the same batch.

    Attributes:
        steps: done before.
        options: of the spectra.
        x, y, own: copies of the batch.
        specs: of each member, None of those left out.
    """

    steps: int
    options: dict[str, Any]
    x: Tensor
    y: Tensor
    own: bool
    specs: list[Spectrum | None]

    def is_of(self, steps: int, options: dict[str, Any], x: Any, y: Any, own: bool) -> bool:
        """Whether that step is this one."""
        same = (steps, options, own) == (self.steps, self.options, self.own)
        return same and same_bits(x, self.x) and same_bits(y, self.y)


def same_bits(a: Any, b: Tensor) -> bool:
    """Whether a batch is the one that was copied."""
    like = isinstance(a, Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape)
    return like and torch.equal(a, b)


def _without(space: ParameterSpace, gradient: Tensor, pruned: Pruned) -> list[Tensor]:
    """The gradient of each parameter without what is taken out, as a step of CGD has it."""
    if not pruned.count:
        return space.views(gradient)
    base = space.views(gradient if pruned.base is None else pruned.base)
    removed = factors(space, pruned)
    return [
        g if low_rank is None else g - (low_rank[0] @ low_rank[1]).view(g.shape)
        for g, low_rank in zip(base, removed, strict=True)
    ]
