"""The state of all members, and how a step takes it to the next one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base.signals import Deferred
from .functional import Functional
from .layered import Layered
from .layout import Layout
from .recurrence import Recurrence

Engine = Layered | Functional
Parts = Sequence[slice]


class Members:
    """Parameters, buffers and optimizer state of B members.

    Attributes:
        theta: rows [B, S], see ``Layout``.
        buffers: of the model, by name, each [B, ...].
        recurrence: the optimizer.
        steps: done so far.
        diverged: int64 [B], the step after which a member's loss or parameters were not finite; -1: none so far.
        torn: whether a step was broken off while it wrote.
    """

    def __init__(self, layout: Layout, theta: Tensor, buffers: dict[str, Tensor], recurrence: Recurrence) -> None:
        self.layout, self.theta, self.buffers, self.recurrence = layout, theta, buffers, recurrence
        self.steps, self.torn = 0, False
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
        return Members(self.layout, theta, buffers, self.recurrence.like_member(i))

    def advance(self, engine: Engine, parts: Parts, x: Tensor, y: Tensor, own: bool) -> Tensor:
        """One step of every member; returns the losses [B] before it.

        Args:
            engine: where gradients come from.
            parts: which members at a time.
            x, y: [N, ...] of all members, or [B, N, ...].
            own: which of the two.
        """
        if isinstance(engine, Layered) and not own:
            return self._in_parts(engine, parts, x, y)
        gradient = self._room(len(self))
        losses, after = self._all_gradients(engine, parts, x, y, own)
        with Deferred():
            self.torn = True
            for rows in parts:
                self._update_(rows, gradient[rows])
            for n, b in after.items():
                self.buffers[n].copy_(b)
            self._commit(losses)
        return losses

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
        with Deferred():
            for rows in parts:
                room = slice(0, rows.stop - rows.start)
                losses[rows] = engine.gradients(self.views(rows), x, y, False, shared, self._views(False, room))
                self.torn = True
                self._update_(rows, gradient[room])
            self._commit(losses)
        return losses

    def _all_gradients(
        self, engine: Engine, parts: Parts, x: Tensor, y: Tensor, own: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses: list[Tensor] = []
        after: dict[str, list[Tensor]] = {n: [] for n in self.buffers}
        for rows in parts:
            mine = (x[rows], y[rows]) if own else (x, y)
            theta, out = self.views(rows), self._views(False, rows)
            if isinstance(engine, Layered):
                losses.append(engine.gradients(theta, *mine, own, (), out))
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
