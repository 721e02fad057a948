"""One step of a recurrence without its matrix products, with the derivatives of both directions.

A step has u, the input's part of the pre-activations, q = W h + b, the state's part, and the state (h, c). It gives m,
which is the new h (or what a projection makes it of), and the new c. Everything is elementwise, so a leading axis of
columns broadcasts. A leading d marks tangents; D and E are the cotangents of m and of the new c.

    RNN    m = phi(u + q)
    LSTM   i, f, g, o = gates of u + q,  c' = f c + i g,  m = o tanh(c')
    GRU    r, z = gates of u + q,  n = tanh(u_n + r q_n),  m = n + z (h - n)
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

State = tuple[Tensor, Tensor | None]  # h and c


class Cotangents(NamedTuple):
    """Of u, q, what of h does not come through q (None: nothing), and c."""

    u: Tensor
    q: Tensor
    h: Tensor | None
    c: Tensor | None


class Cell(Protocol):
    """A kind of step. ``gates``: how many times the size of h the pre-activations have."""

    gates: int

    def forward(self, u: Tensor, q: Tensor, state: State) -> tuple[State, Any]:
        """m and the new c, and what the other methods need."""

    def backward(self, saved: Any, D: Tensor, E: Tensor | None) -> tuple[Cotangents, Any]:
        """The cotangents, and what ``tangent_backward`` needs of them."""

    def tangent_forward(self, saved: Any, du: Tensor, dq: Tensor, state: State) -> tuple[State, Any]:
        """The tangents of m and of the new c, and what ``tangent_backward`` needs."""

    def tangent_backward(self, saved: Any, back: Any, tangents: Any, dD: Tensor, dE: Tensor | None) -> Cotangents:
        """The tangents of what ``backward`` gives."""


class Plain:
    """m = tanh(u + q), or relu."""

    gates = 1

    def __init__(self, relu: bool) -> None:
        self.relu = relu

    def forward(self, u: Tensor, q: Tensor, state: State) -> tuple[State, Any]:
        if self.relu:
            m = torch.relu(u + q)
            return (m, None), ((m > 0).to(m.dtype), None)
        m = torch.tanh(u + q)
        d1 = 1 - m.square()
        return (m, None), (d1, -2 * m * d1)

    def backward(self, saved: Any, D: Tensor, E: Tensor | None) -> tuple[Cotangents, Any]:
        delta = D * saved[0]
        return Cotangents(delta, delta, None, None), None if saved[1] is None else D * saved[1]

    def tangent_forward(self, saved: Any, du: Tensor, dq: Tensor, state: State) -> tuple[State, Any]:
        dp = du + dq
        return (dp * saved[0], None), dp

    def tangent_backward(self, saved: Any, back: Any, tangents: Any, dD: Tensor, dE: Tensor | None) -> Cotangents:
        moved = dD * saved[0]
        moved = moved if back is None else moved.addcmul_(tangents, back)
        return Cotangents(moved, moved, None, None)


class Lstm:
    """Gates i, f, g, o in this order, as in torch."""

    gates = 4

    def forward(self, u: Tensor, q: Tensor, state: State) -> tuple[State, Any]:
        i, f, g, o = (u + q).chunk(4, -1)
        c, a = state[1], torch.cat([torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)], -1)
        i, f, g, o = a.chunk(4, -1)
        g1 = 1 - g.square()
        d1 = torch.cat([i * (1 - i), f * (1 - f), g1, o * (1 - o)], -1)
        d2 = d1 * torch.cat([1 - 2 * i, 1 - 2 * f, -2 * g, 1 - 2 * o], -1)
        assert c is not None
        new = f * c + i * g
        t = torch.tanh(new)
        return (o * t, new), (a, d1, d2, c, t, 1 - t.square())

    def backward(self, saved: Any, D: Tensor, E: Tensor | None) -> tuple[Cotangents, Any]:
        a, d1, d2, c, t, s = saved
        i, f, g, o = a.chunk(4, -1)
        inside = D * o
        total = inside * s if E is None else E + inside * s
        gates = torch.cat([total * g, total * c, total * i, D * t], -1)
        delta = gates * d1
        return Cotangents(delta, delta, None, total * f), (D, inside * t * (-2), total, gates * d2)

    def tangent_forward(self, saved: Any, du: Tensor, dq: Tensor, state: State) -> tuple[State, Any]:
        a, d1, _, c, t, s = saved
        i, f, g, o = a.chunk(4, -1)
        dp = du + dq
        da = dp * d1
        di, df, dg, do = da.chunk(4, -1)
        new = (df * c).addcmul_(di, g).addcmul_(dg, i)
        new = new if state[1] is None else new.addcmul_(state[1], f)
        dt = new * s
        return ((do * t).addcmul_(dt, o), new), (dp, da, dt, state[1])

    def tangent_backward(self, saved: Any, back: Any, tangents: Any, dD: Tensor, dE: Tensor | None) -> Cotangents:
        (a, d1, _, c, t, s), (D, bent, total, curved), (dp, da, dt, dc) = saved, back, tangents
        i, f, g, o = a.chunk(4, -1)
        di, df, dg, do = da.chunk(4, -1)
        inside = (dD * o).addcmul_(do, D)
        dtotal = (inside * s).addcmul_(dt, bent)
        dtotal = dtotal if dE is None else dtotal.add_(dE)
        old = dtotal * c if dc is None else (dtotal * c).addcmul_(dc, total)
        parts = [(dtotal * g).addcmul_(dg, total), old, (dtotal * i).addcmul_(di, total), (dD * t).addcmul_(dt, D)]
        moved = torch.cat(parts, -1).mul_(d1).addcmul_(dp, curved)
        return Cotangents(moved, moved, None, (dtotal * f).addcmul_(df, total))


class Gru:
    """Gates r, z, n in this order, as in torch."""

    gates = 3

    def forward(self, u: Tensor, q: Tensor, state: State) -> tuple[State, Any]:
        h, size = state[0], state[0].shape[-1]
        own, qn = u[..., 2 * size :], q[..., 2 * size :]
        a = torch.sigmoid(u[..., : 2 * size] + q[..., : 2 * size])
        r, z = a.chunk(2, -1)
        n = torch.tanh(own + r * qn)
        d1, n1 = a * (1 - a), 1 - n.square()
        return (n + z * (h - n), None), (a, d1, d1 * (1 - 2 * a), n, n1, qn, h - n)

    def backward(self, saved: Any, D: Tensor, E: Tensor | None) -> tuple[Cotangents, Any]:
        a, d1, d2, n, n1, qn, apart = saved
        r, z = a.chunk(2, -1)
        before = D * (1 - z)
        inner = before * n1
        gates = torch.cat([inner * qn, D * apart], -1)
        delta = gates * d1
        cotangents = Cotangents(torch.cat([delta, inner], -1), torch.cat([delta, inner * r], -1), D * z, None)
        return cotangents, (D, before * n1 * n * (-2), inner, gates * d2)

    def tangent_forward(self, saved: Any, du: Tensor, dq: Tensor, state: State) -> tuple[State, Any]:
        a, d1, _, n, n1, qn, apart = saved
        r, z = a.chunk(2, -1)
        both, size, dh = 2 * n.shape[-1], n.shape[-1], state[0]
        dp, dqn = du[..., :both] + dq[..., :both], dq[..., both:]
        da = dp * d1
        dr, dz = da.split(size, -1)
        dpn = torch.addcmul(du[..., both:], dqn, r).addcmul_(dr, qn)
        dn = dpn * n1
        new = torch.addcmul(dn, dz, apart).addcmul_(dh - dn, z)
        return (new, None), (dp, dr, dz, dqn, dpn, dh - dn)

    def tangent_backward(self, saved: Any, back: Any, tangents: Any, dD: Tensor, dE: Tensor | None) -> Cotangents:
        (a, d1, _, _, n1, qn, apart), (D, bent, inner, curved) = saved, back
        dp, dr, dz, dqn, dpn, dapart = tangents
        r, z = a.chunk(2, -1)
        dinner = (dD * (1 - z)).addcmul_(dz, D, value=-1).mul_(n1).addcmul_(dpn, bent)
        gates = torch.cat([(dinner * qn).addcmul_(dqn, inner), (dD * apart).addcmul_(dapart, D)], -1)
        moved = gates.mul_(d1).addcmul_(dp, curved)
        own = (dinner * r).addcmul_(dr, inner)
        direct = (dD * z).addcmul_(dz, D)
        return Cotangents(torch.cat([moved, dinner], -1), torch.cat([moved, own], -1), direct, None)
