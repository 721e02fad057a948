"""The rule of one layer and direction of a recurrence: h_t = R m_t with (m_t, c_t) a step of a cell from h_{t-1}.

With Q_t = W h_{t-1} + b, the pre-activations U of the input, and D the cotangent at m_t,

    dQ_t = W dh_{t-1} + (V h_{t-1} + db),          dh_t = R dm_t + (S m_t)                      forward in time,
    d(delta h_{t-1}) = W^T d(delta Q_t) + (V^T delta Q_t) + ...,   dD = R^T d(delta h_t) + (S^T delta h_t)   backward,
    (H v)_W = sum_t d(delta Q_t) h_{t-1}^T + delta Q_t dh_{t-1}^T,   (H v)_R likewise with delta h_t and m_t.

What is in brackets and the last line is one product for all times. Columns are in front inside, [T, k, N, ...].
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..base.torch_internals import version
from .cells import Cell, State
from .rule import Leaf, Tangent, add


@dataclass
class _Saved:
    """The steps of one forward, time first: h before each, m after each, what cells keep; W, R; and what is kept of
    the last run backward and of the last tangents."""

    steps: list[Any]
    before: Tensor
    after: Tensor
    W: Tensor
    R: Tensor | None
    shapes: list[torch.Size]
    run: tuple[Tensor, _Run] | None = None
    pushed: tuple[list[Any], _Pushed] | None = field(default=None, repr=False)


@dataclass
class _Run:
    """Backward in time: cotangents of U, Q, h [T, (k,) N, ...], of the first state, and what cells keep."""

    u: Tensor
    q: Tensor
    h: Tensor
    first: State
    backs: list[Any]


@dataclass
class _Pushed:
    """Tangents of h before and of m after each step, of the output, and what cells keep."""

    before: Tensor
    after: Tensor
    out: Tensor
    steps: list[Any]


class Recurrence:
    """Inputs: U [T, N, gates H], or [N, T, gates H], and the first h, and of an LSTM the first c (or neither).

    Args:
        cell: its step.
        weight, bias, projection: leaves of W [gates H, H'], b, and R [H', H] (their values may be None but for W).
        batch_first: whether samples come before times.
        reverse: whether time runs backward.
    """

    path = "layer rule"

    def __init__(
        self, cell: Cell, weight: Leaf, bias: Leaf, projection: Leaf, batch_first: bool, reverse: bool
    ) -> None:
        self.cell, self.weight, self.bias, self.projection = cell, weight, bias, projection
        self.rowwise, self.reverse = batch_first, reverse
        self.slots: tuple[int | None, ...] = (weight.slot, bias.slot, projection.slot)

    def _timed(self, t: Tensor) -> Tensor:
        """A value [N, T, ...] or [T, N, ...] in the order of the steps, and back."""
        t = t.transpose(0, 1) if self.rowwise else t
        return t.flip(0) if self.reverse else t

    def _placed(self, t: Tensor) -> Tensor:
        t = t.flip(0) if self.reverse else t
        return t.transpose(0, 1) if self.rowwise else t

    def _front(self, t: Tangent) -> Tangent:
        """A tangent [.., .., F, k] as [T, k, N, F]."""
        return None if t is None else self._timed(t).permute(0, 3, 1, 2).contiguous()

    def _back(self, t: Tensor) -> Tensor:
        return self._placed(t.permute(0, 2, 3, 1))

    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, _Saved]:
        U, W, b, R = self._timed(inputs[0]), self.weight(theta), self.bias(theta), self.projection(theta)
        assert W is not None
        state = self._first(inputs, U, W)
        befores, afters, steps, out = [], [], [], []
        for u in U:
            befores.append(state[0])
            q = state[0] @ W.T
            (m, c), kept = self.cell.forward(u, q if b is None else q + b, state)
            state = (m if R is None else m @ R.T, c)
            steps.append(kept)
            afters.append(m)
            out.append(state[0])
        shapes = [t.shape for t in inputs]
        return self._placed(torch.stack(out)), _Saved(steps, torch.stack(befores), torch.stack(afters), W, R, shapes)

    def _first(self, inputs: Sequence[Tensor], U: Tensor, W: Tensor) -> State:
        h = inputs[1] if len(inputs) > 1 else U.new_zeros(U.shape[1], W.shape[1])
        if self.cell.gates != 4:
            return h, None
        return h, inputs[2] if len(inputs) > 2 else U.new_zeros(U.shape[1], len(W) // 4)

    def backward(self, saved: _Saved, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        run = self._run(saved, delta)
        flat = run.q.flatten(0, 1)
        w, b, r = self.slots
        gradients = [
            None if w is None else flat.T @ saved.before.flatten(0, 1),
            None if b is None else flat.sum(0),
            None if r is None else run.h.flatten(0, 1).T @ saved.after.flatten(0, 1),
        ]
        return [self._placed(run.u), *run.first[: len(saved.shapes) - 1]], gradients

    def _run(self, saved: _Saved, delta: Tensor) -> _Run:
        """Backward in time from delta, which is that of the tape nearly always."""
        if saved.run is None or saved.run[0] is not delta:
            saved.run = delta, self._backward_in_time(saved, self._timed(delta), None, None)
        return saved.run[1]

    def _backward_in_time(self, saved: _Saved, delta: Tensor, run: _Run | None, moved: _Moved | None) -> _Run:
        """Cotangents from those of the output, or with a run the tangents of these from theirs and others."""
        R, carried, c = saved.R, None, None
        us, qs, hs, backs = [], [], [], []
        for t in reversed(range(len(saved.steps))):
            h = delta[t] if carried is None else delta[t] + carried
            D = h if R is None else h @ R
            if run is None or moved is None:
                parts, back = self.cell.backward(saved.steps[t], D, c)
                backs.append(back)
            else:
                D = D if moved.after is None else D + moved.after[t]
                parts = self.cell.tangent_backward(saved.steps[t], run.backs[t], moved.steps[t], D, c)
            carried, c = parts.q @ saved.W, parts.c
            carried = carried if moved is None or moved.before is None else carried + moved.before[t]
            carried = carried if parts.h is None else carried + parts.h
            us.append(parts.u)
            qs.append(parts.q)
            hs.append(h)
        assert carried is not None
        u, q, whole = (torch.stack(p[::-1]) for p in (us, qs, hs))
        return _Run(u, q, whole, (carried, c), backs[::-1])

    def _pushed(self, saved: _Saved, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> _Pushed:
        """Tangents forward in time; those of the last call, if it was with the same."""
        given = [*dinputs, *dtheta]
        if saved.pushed is not None and all(map(_is, saved.pushed[0], given)):
            return saved.pushed[1]
        found = self._forward_in_time(saved, dinputs, dtheta)
        saved.pushed = [None if t is None else (weakref.ref(t), version(t)) for t in given], found
        return found

    def _forward_in_time(self, saved: _Saved, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> _Pushed:
        V, db, S = (None if t is None else t.movedim(-1, 0) for t in dtheta)
        k = next(t.shape[-1] for t in (*dinputs, *dtheta) if t is not None)
        T, N = saved.after.shape[:2]
        U = self._front(dinputs[0])
        U = saved.W.new_zeros(1, k, N, len(saved.W)).expand(T, -1, -1, -1) if U is None else U
        q, moved = _added(saved.before, V, db), _added(saved.after, S, None)
        state = self._first_tangents(dinputs, saved, k)
        befores, afters, steps, out = [], [], [], []
        for t in range(T):
            befores.append(state[0])
            dq = state[0] @ saved.W.T
            (m, c), kept = self.cell.tangent_forward(saved.steps[t], U[t], dq if q is None else dq + q[t], state)
            h = m if saved.R is None else m @ saved.R.T
            state = (h if moved is None else h + moved[t], c)
            steps.append(kept)
            afters.append(m)
            out.append(state[0])
        return _Pushed(torch.stack(befores), torch.stack(afters), torch.stack(out), steps)

    def _first_tangents(self, dinputs: Sequence[Tangent], saved: _Saved, k: int) -> State:
        h, c = ([*dinputs[1:], None, None])[:2]
        first = saved.before.new_zeros(k, *saved.before.shape[1:]) if h is None else h.movedim(-1, 0)
        return first, None if c is None else c.movedim(-1, 0)

    def tangent_forward(self, saved: _Saved, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        if all(t is None for t in (*dinputs, *dtheta)):
            return None
        return self._back(self._pushed(saved, dinputs, dtheta).out)

    def tangent_backward(
        self, saved: _Saved, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        given = next((t for t in (*dinputs, *dtheta, ddelta) if t is not None), None)
        if given is None:
            return [None] * len(dinputs), [None] * 3
        run, back = self._run(saved, delta), self._front(ddelta)
        if back is None:
            back = run.h.new_zeros(1, given.shape[-1], *run.h.shape[1:]).expand(len(run.h), -1, -1, -1)
        if all(t is None for t in (*dinputs, *dtheta)):
            found, pushed = self._backward_in_time(saved, back, None, None), None
        else:
            pushed, saved.pushed = self._pushed(saved, dinputs, dtheta), None
            V, S = (None if t is None else t.movedim(-1, 0) for t in (dtheta[0], dtheta[2]))
            moved = _Moved(_added(run.q, V, None, True), _added(run.h, S, None, True), pushed.steps)
            found = self._backward_in_time(saved, back, run, moved)
        first = [None if t is None else t.movedim(0, -1) for t in found.first[: len(saved.shapes) - 1]]
        return [self._back(found.u), *first], self._products(saved, run, found, pushed)

    def _products(self, saved: _Saved, run: _Run, found: _Run, pushed: _Pushed | None) -> list[Tangent]:
        """This node's part of H v."""
        w, b, r = self.slots
        before, after = (None, None) if pushed is None else (pushed.before, pushed.after)
        return [
            None if w is None else _outer(found.q, saved.before, run.q, before),
            None if b is None else found.q.sum((0, 2)).T,
            None if r is None else _outer(found.h, saved.after, run.h, after),
        ]


@dataclass
class _Moved:
    """What tangents of W and R add to the cotangents of h before, and of m after each step, and what cells keep."""

    before: Tensor | None
    after: Tensor | None
    steps: list[Any]


def _is(known: Any, given: Tangent) -> bool:
    if known is None or given is None:
        return known is given
    return known[0]() is given and known[1] == version(given)


def _added(values: Tensor, V: Tangent, b: Tangent, transposed: bool = False) -> Tangent:
    """V x (or V^T x) + b for values x [T, N, F], columns V [k, G, F] and b [k, G]: [T, k, N, G]."""
    product: Tangent = None
    if V is not None:
        rows = torch.matmul(values.flatten(0, 1), V if transposed else V.transpose(1, 2))  # [k, T N, G]
        product = rows.unflatten(1, values.shape[:2]).transpose(0, 1)
    return product if b is None else add(product, b.unsqueeze(1).expand(len(values), -1, -1, -1))


def _outer(cotangents: Tensor, values: Tensor, plain: Tensor, tangents: Tangent) -> Tensor:
    """sum over times and samples of d(delta) x^T + delta dx^T: [G, F, k]."""
    d = cotangents.transpose(1, 2).flatten(0, 1)  # [T N, k, G]
    out = torch.matmul(d.permute(1, 2, 0), values.flatten(0, 1))
    if tangents is not None:
        out = out + torch.matmul(plain.flatten(0, 1).T, tangents.transpose(1, 2).flatten(0, 1).transpose(0, 1))
    return out.movedim(0, -1)
