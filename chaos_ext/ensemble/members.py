"""The state of all members, and how a step takes it to the next one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..base.signals import Deferred
from .compressed import Compressed
from .functional import Functional
from .layered import Layered
from .layout import Layout
from .pruner import Pruner
from .recurrence import Recurrence
from .single import Single

Engine = Layered | Functional
Directed = Compressed | Single
Parts = Sequence[slice]


class Members:
    """Parameters, buffers and optimizer state of B members.

    Attributes:
        theta: rows [B, S], see ``Layout``.
        buffers: of the model, by name, each [B, ...].
        recurrence: the optimizer.
        pruner: what it takes out of gradients, of a CGD that prunes.
        steps: done so far.
        diverged: int64 [B], the step after which a member's loss or parameters were not finite; -1: none so far.
        torn: whether a step was broken off while it wrote.
        before_writing: called once in each step, when all that can fail is done and nothing is written; it may raise.
    """

    def __init__(
        self,
        layout: Layout,
        theta: Tensor,
        buffers: dict[str, Tensor],
        recurrence: Recurrence,
        pruner: Pruner | None = None,
    ) -> None:
        self.layout, self.theta, self.buffers, self.recurrence = layout, theta, buffers, recurrence
        self.pruner = pruner
        self.steps, self.torn = 0, False
        self.before_writing: Callable[[], object] | None = None
        self.diverged = torch.full((len(theta),), -1, dtype=torch.int64, device="cpu")
        self._finite = theta.new_zeros(len(theta))
        self._gradient = theta.new_zeros(0, theta.shape[1])
        self._cut: dict[tuple[bool, int, int], list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.theta)

    def alive(self) -> list[int]:
        """Those that have not diverged."""
        return (self.diverged < 0).nonzero().squeeze(1).tolist()

    def has_equals(self) -> bool:
        """Whether two members have the same parameters."""
        return len(torch.unique(self.theta, dim=0)) < len(self)

    def copies_of(self, i: int) -> Members:
        """As many members as here, all of them this one."""
        theta = self.theta[i : i + 1].expand_as(self.theta).clone()
        buffers = {n: b[i : i + 1].expand_as(b).clone() for n, b in self.buffers.items()}
        recurrence = self.recurrence.like_member(i)
        pruner = None if self.pruner is None else self.pruner.like_member(i, recurrence)
        equals = Members(self.layout, theta, buffers, recurrence, pruner)
        equals.steps = self.steps
        return equals

    def advance(self, engine: Engine | Directed, parts: Parts, x: Tensor, y: Tensor, own: bool) -> Tensor:
        """One step of every member; returns the losses [B] before it.

        Args:
            engine: where gradients come from.
            parts: which members at a time.
            x, y: [N, ...] of all members, or [B, N, ...].
            own: which of the two.
        """
        if isinstance(engine, Layered) and not own and self.pruner is None:
            return self._in_parts(engine, parts, x, y)
        if self.pruner is None:
            assert not isinstance(engine, Directed)
            return self._written(parts, self._all_gradients(engine, parts, x, y, own))
        with self.pruner.unchanged_on_failure():
            if isinstance(engine, Directed):
                self._room(len(self))
                out = self._views(False, slice(0, len(self)))
                found = engine.pruned(self, self.pruner, parts, x, y, own, out)
            else:
                found = self._all_gradients(engine, parts, x, y, own)
                self.pruner.did_not_prune(self.steps, found[0], self.alive())
            with self._without_dead(found[0]):
                return self._written(parts, found)

    def _written(self, parts: Parts, found: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
        """The step along the gradients in the room; returns the losses."""
        losses, after = found
        if self.before_writing is not None:
            self.before_writing()
        with Deferred():
            self.torn = True
            for rows in parts:
                self._update_(rows, self._gradient[rows])
            for n, b in after.items():
                self.buffers[n].copy_(b)
            self._commit(losses)
        return losses

    @contextlib.contextmanager
    def _without_dead(self, losses: Tensor) -> Iterator[None]:
        """Members that are left out stay where they are."""
        dead = (self.diverged >= 0).nonzero().squeeze(1).to(self.theta.device)
        if not len(dead):
            yield
            return
        losses[dead] = torch.nan
        moving = (self.theta, *self.recurrence.buffers.values(), *self.buffers.values())
        kept = [(t, t[dead]) for t in moving]
        with Deferred():
            yield
            for t, values in kept:
                t[dead] = values

    def views(self, rows: slice) -> list[Tensor]:
        """The parameters of these members, each [b, *shape]."""
        return self._views(True, rows)

    def _views(self, of_theta: bool, rows: slice) -> list[Tensor]:
        """Of theta or of the gradient's room, both of which stay where they are."""
        key = (of_theta, rows.start, rows.stop)
        if key not in self._cut:
            self._cut[key] = self.layout.views((self.theta if of_theta else self._gradient)[rows])
        return self._cut[key]

    def _room(self, members: int) -> Tensor:
        if len(self._gradient) < members:
            self._gradient = self.layout.zeros(members)
            self._cut.clear()
        return self._gradient

    def _in_parts(self, engine: Layered, parts: Parts, x: Tensor, y: Tensor) -> Tensor:
        """Part by part, while its numbers are in the cache. What can fail, fails in the first one, before any write."""
        gradient = self._room(parts[0].stop - parts[0].start)
        losses = self.theta.new_empty(len(self))
        shared = engine.prepared(x, self.theta[0])

        def found(rows: slice) -> Tensor:
            room = slice(0, rows.stop - rows.start)
            losses[rows] = engine.gradients(self.views(rows), x, y, False, shared, self._views(False, room))
            return gradient[room]

        ready: list[Tensor] = []
        if self.before_writing is not None:  # which may wait, and Ctrl-C not until it has
            ready.append(found(parts[0]))
            self.before_writing()
        with Deferred():
            for rows in parts:
                d = ready.pop() if ready else found(rows)
                self.torn = True
                self._update_(rows, d)
            self._commit(losses)
        return losses

    def _all_gradients(
        self, engine: Engine, parts: Parts, x: Tensor, y: Tensor, own: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self._room(len(self))
        shared = engine.prepared(x, self.theta[0]) if isinstance(engine, Layered) and not own else ()
        losses: list[Tensor] = []
        after: dict[str, list[Tensor]] = {n: [] for n in self.buffers}
        for rows in parts:
            mine = (x[rows], y[rows]) if own else (x, y)
            theta, out = self.views(rows), self._views(False, rows)
            if isinstance(engine, Layered):
                losses.append(engine.gradients(theta, *mine, own, shared, out))
                continue
            buffers = {n: b[rows] for n, b in self.buffers.items()}
            found, moved = engine.gradients(theta, buffers, *mine, own, out)
            losses.append(found)
            for n, b in moved.items():
                after[n].append(b)
        return torch.cat(losses), {n: torch.cat(b) for n, b in after.items() if b}

    def _update_(self, rows: slice, gradient: Tensor) -> None:
        theta = self.theta[rows]
        self.recurrence.update_(rows, theta, gradient)
        torch.sum(theta, 1, out=self._finite[rows])

    def _commit(self, losses: Tensor) -> None:
        self.recurrence.commit()
        self.steps += 1
        # One number to look at: a finite sum has finite terms.
        if not torch.isfinite((self._finite + losses).sum()):
            finite = torch.isfinite(losses) & torch.isfinite(self.theta).all(1)
            self.diverged[~finite.cpu() & (self.diverged < 0)] = self.steps
        self.torn = False
