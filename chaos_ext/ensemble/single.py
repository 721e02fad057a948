"""One member after the other, each as a model of its own: what CGD does to it alone, of any model and every option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

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
        for view in out:
            view.zero_()
        for i in members.alive():
            try:
                self._one(i, members, pruner, (x[i], y[i]) if own else (x, y), losses, after, out)
            except FAILURES as e:
                failed[i] = e
        raise_together(failed)
        return losses, after

    def _one(
        self,
        i: int,
        members: State,
        pruner: Pruner,
        batch: tuple[Any, Any],
        losses: Tensor,
        after: dict[str, Tensor],
        out: Sequence[Tensor],
    ) -> None:
        op = self.operator(members, i, *batch)
        finder = Finder(pruner.options, op.space.params, members.steps)
        resolved = Resolved(op.space, op.gradient, op.loss, op.origin, partial(finder.of_operator, op))
        found = resolved.find()
        along = Along(resolved.gradient, resolved.coefficients(found), resolved.norm_squared(found), op.loss)
        pruned = pruner.pruned(i, members.steps, found.spec, along)
        for view, d in zip(out, _without(op.space, along.gradient, pruned), strict=True):
            view[i] = d
        losses[i] = op.loss
        commit_forward(op.origin.snapshot.tree, batch[0], op.origin.loss)
        for n, b in self.twin.buffers().items():
            after[n][i] = b

    def operator(self, members: State, i: int, x: Any, y: Any) -> HessianOperator:
        """Of member i, as long as the twin is not asked for another."""
        twin = self.twin
        for p, v in zip(twin.space.params, members.views(slice(i, i + 1)), strict=True):
            p.detach().copy_(v[0])
        for n, b in twin.buffers().items():
            b.copy_(members.buffers[n][i])
        return HessianOperator(twin.model, twin.scalar.loss_fn, x, y)

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
        return found


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
