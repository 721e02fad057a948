"""The steps of torch.optim.SGD, Adam and AdamW on all members at once, in place, a few passes over [B, S].

The recurrences are those of torch/optim/sgd.py and adam.py, with options that may differ from member to member. Adam's
denominator is taken together: lr / bc1 m / (sqrt(v / bc2) + eps) = lr sqrt(bc2) / bc1 m / (sqrt(v) + eps sqrt(bc2)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..base.torch_internals import EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ, MOMENTUM_BUFFER, STEP, fused_adam_
from ..errors import UnsupportedError
from .layout import Layout
from .options import Group, Number, groups_of, is_adam, places, with_options


def add_(t: Tensor, d: Tensor, factor: Number) -> None:
    """t += factor d."""
    if isinstance(factor, Tensor):
        t.addcmul_(d, factor)
    else:
        t.add_(d, alpha=factor)


def sgd_(t: Tensor, d: Tensor, buffers: Sequence[Tensor], group: Group, o: Mapping[str, Number], started: bool) -> None:
    """One step of rows t [b, n] along the gradient d, which is overwritten."""
    if group.flags["maximize"]:
        d.neg_()
    if _some(o["weight_decay"]):
        add_(d, t, o["weight_decay"])
    mu = o["momentum"]
    if buffers:
        v = buffers[0]
        if started:
            add_(v.mul_(mu), d, _weight_of_new(mu, o["dampening"]))
        else:
            v.copy_(d)
        if group.flags["nesterov"]:
            add_(d, v, mu)
        else:
            d = v
    add_(t, d, -o["lr"])


def _weight_of_new(mu: Number, dampening: Number) -> Number:
    """1 - dampening; torch ignores the dampening of a member without momentum."""
    if isinstance(mu, Tensor):
        return torch.where(mu == 0, torch.ones_like(mu), 1 - dampening)
    return 1 - dampening


def _some(value: Number) -> bool:
    return isinstance(value, Tensor) or value != 0


def adam_(t: Tensor, d: Tensor, buffers: Sequence[Tensor], group: Group, o: Mapping[str, Any], step: int) -> None:
    """One step of rows t [b, n] along the gradient d, which is overwritten; ``step`` counts from 1."""
    if t.is_contiguous() and t.device.type == "cpu" and not any(isinstance(v, Tensor) for v in o.values()):
        flags = {n: group.flags[n] for n in ("amsgrad", "maximize")}
        return fused_adam_(t, d, buffers, step, group.flags["decoupled_weight_decay"], **o, **flags)
    if group.flags["maximize"]:
        d.neg_()
    if _some(o["weight_decay"]):
        if group.flags["decoupled_weight_decay"]:
            t.mul_(1 - o["lr"] * o["weight_decay"])
        else:
            add_(d, t, o["weight_decay"])
    m, v = buffers[:2]
    m.lerp_(d, 1 - o["beta1"])
    v.mul_(o["beta2"])
    _add_square_(v, d, 1 - o["beta2"])
    if group.flags["amsgrad"]:
        v = torch.maximum(buffers[2], v, out=buffers[2])
    scale = (1 - o["beta2"] ** step) ** 0.5
    denominator = torch.sqrt(v, out=d).add_(o["eps"] * scale)
    return _add_quotient_(t, m, denominator, -(o["lr"] * scale / (1 - o["beta1"] ** step)))


def _add_square_(v: Tensor, d: Tensor, factor: Number) -> None:
    if isinstance(factor, Tensor):
        v.add_((d * d).mul_(factor))
    else:
        v.addcmul_(d, d, value=factor)


def _add_quotient_(t: Tensor, m: Tensor, denominator: Tensor, factor: Number) -> None:
    if isinstance(factor, Tensor):
        t.addcmul_(torch.div(m, denominator, out=denominator), factor)
    else:
        t.addcdiv_(m, denominator, value=factor)


@dataclass(frozen=True)
class Segment:
    """Neighbouring parameters that are stepped alike."""

    columns: slice
    group: Group
    steps: int
    started: bool


class Recurrence:
    """An optimizer of all members.

    Attributes:
        groups: the options of each parameter group.
        buffers: by torch's names, each [B, S].
        steps, started: of each parameter, how many steps it has had, and whether it has a momentum buffer.
    """

    def __init__(self, opt: Optimizer, layout: Layout, members: int, options: Mapping[str, Any]) -> None:
        space = layout.space
        self.adam, self.layout, self.members = is_adam(opt), layout, members
        self.groups = with_options(groups_of(opt), options, members, space)
        self.places = places(opt, space)
        states = [opt.state.get(p, {}) for p in space.params]
        self.steps = [int(s.get(STEP, 0)) for s in states]
        self.started = [s.get(MOMENTUM_BUFFER) is not None for s in states]
        self.buffers: dict[str, Tensor] = {}
        self._segments: list[Segment] | None = None
        for name in self._names():
            self._adopt(name, [s.get(name) for s in states])
        for i, (state, place) in enumerate(zip(states, self.places, strict=True)):
            if self.adam and place is not None and STEP in state and EXP_AVG not in state:
                raise ValueError(f"opt: the state of {space.names[i]!r} has a step but no moments; load a whole one")
        self._padding = self.layout.padding() if self.adam else None

    def _names(self) -> tuple[str, ...]:
        if self.adam:
            most = any(g.flags["amsgrad"] for g in self.groups)
            return (EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ) if most else (EXP_AVG, EXP_AVG_SQ)
        needed = any(self.started) or any(_some(g.numbers["momentum"]) for g in self.groups)
        return (MOMENTUM_BUFFER,) if needed else ()

    def _adopt(self, name: str, given: Sequence[Tensor | None]) -> None:
        """Every member takes over the buffers that the optimizer has."""
        self.buffers[name] = self.layout.zeros(self.members)
        space = self.layout.space
        for p, view, b in zip(space.names, self.layout.views(self.buffers[name]), given, strict=True):
            if b is None:
                continue
            if not isinstance(b, Tensor) or b.shape != view.shape[1:]:
                got = tuple(b.shape) if isinstance(b, Tensor) else type(b).__name__
                raise ValueError(f"opt: expected a {name} of {p!r} of shape {tuple(view.shape[1:])}, got {got}")
            view.copy_(b.detach().expand_as(view))

    def exclude(self, unused: frozenset[int]) -> None:
        """Parameters that the loss does not depend on are left alone, as torch leaves those without gradient."""
        self.places = [None if i in unused else g for i, g in enumerate(self.places)]
        self._segments = None

    def set_options(self, given: Mapping[str, Any]) -> None:
        """Replaces options; see ``with_options``. After an exception they are as they were."""
        groups = with_options(self.groups, given, self.members, self.layout.space)
        if not self.adam:
            self._require_steady_momentum(groups)
        self.groups, self._segments = groups, None
        for name in self._names():
            if name not in self.buffers:
                self.buffers[name] = self.layout.zeros(self.members)

    def _require_steady_momentum(self, groups: Sequence[Group]) -> None:
        """A member without momentum among others with it has no buffer of its own that could begin later."""
        for old, new in zip(self.groups, groups, strict=True):
            was, now = (torch.as_tensor(g.numbers["momentum"]) for g in (old, new))
            if was.dim() and any(self.started) and bool(((was == 0) & (now != 0)).any()):
                raise UnsupportedError("momentum: a member that had none while others had it cannot get it later")

    def segments(self) -> list[Segment]:
        """Neighbours with the same group, step count and state, merged."""
        if self._segments is None:
            found: list[tuple[int, int, tuple[Any, ...]]] = []
            for i, place in enumerate(self.places):
                key = (place, self.steps[i], self.started[i])
                if found and found[-1][2] == key:
                    found[-1] = (found[-1][0], i + 1, key)
                else:
                    found.append((i, i + 1, key))
            starts = self.layout.starts
            self._segments = [
                Segment(slice(starts[a], starts[b]), self.groups[place], steps, started)
                for a, b, (place, steps, started) in found
                if place is not None
            ]
        return self._segments

    def update_(self, rows: slice, theta: Tensor, gradient: Tensor) -> None:
        """One step of these members: theta [b, S] along the gradient [b, S], which is overwritten.

        Several calls, one for each part of the members, make a step; then ``commit``.
        """
        for s in self.segments():
            o = s.group.of(rows)
            buffers = [b[rows] for b in self.buffers.values()]
            t, d = theta, gradient
            if s.columns != slice(0, self.layout.width):
                t, d = t[:, s.columns], d[:, s.columns]
                buffers = [b[:, s.columns] for b in buffers]
            if self.adam:
                adam_(t, d, buffers, s.group, o, s.steps + 1)
            else:
                sgd_(t, d, buffers if _some(o["momentum"]) else (), s.group, o, s.started)
        if self._padding is not None and len(self._padding):  # Adam leaves eps there, or 0 / 0
            theta.index_fill_(1, self._padding, 0.0)
            gradient.index_fill_(1, self._padding, 0.0)

    def commit(self) -> None:
        """Counts the step."""
        for i, place in enumerate(self.places):
            if place is not None:
                self.steps[i] += int(self.adam)
                self.started[i] |= not self.adam and _some(self.groups[place].numbers["momentum"])
        self._advance()

    def _advance(self) -> None:
        if self._segments is None:
            return
        if self.adam:
            self._segments = [replace(s, steps=s.steps + 1) for s in self._segments]
        elif any(not s.started and _some(s.group.numbers["momentum"]) for s in self._segments):
            self._segments = None

    def like_member(self, i: int) -> Recurrence:
        """A copy in which every member has the options and the state of one."""
        twin = object.__new__(Recurrence)
        own = {
            "groups": [g.like_member(i, self.members) for g in self.groups],
            "buffers": self.each(lambda b: b[i : i + 1].expand_as(b).clone()),
            "steps": list(self.steps),
            "started": list(self.started),
            "_segments": None,
        }
        vars(twin).update({**vars(self), **own})
        return twin

    def restore(
        self, groups: list[Group], buffers: dict[str, Tensor], steps: Sequence[int], started: Sequence[bool]
    ) -> None:
        """Takes over what another one had."""
        self.groups, self.buffers, self._segments = groups, buffers, None
        self.steps, self.started = list(steps), list(started)

    def each(self, take: Callable[[Tensor], Any]) -> dict[str, Any]:
        """What ``take`` makes of each buffer."""
        return {name: take(b) for name, b in self.buffers.items()}
