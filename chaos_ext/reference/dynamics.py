"""Twins of the sweeps over tangent columns and of the projected step."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _ops
from .losses import cross_entropy_tangent


def projected_sgd_(
    param: Tensor,
    grad: Tensor,
    L: Tensor,
    R: Tensor,
    buf: Tensor | None,
    first: bool,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    d = grad - (L @ R).reshape(grad.shape)
    d = -d if maximize else d
    d = d + weight_decay * param
    if buf is not None:
        buf.copy_(d if first else momentum * buf + (1 - dampening) * d)
        d = d + momentum * buf if nesterov else buf
    param.sub_(lr * d)


def tangent_product(
    Y: Tensor, operands: list[Tensor], values: list[int], nodes: list[int], factors: list[float]
) -> Tensor:
    """Every node's four formulas as they stand, on whole matrices."""
    steps = _nodes(operands, nodes, factors)
    d: dict[int, Tensor] = {}  # tangent of each value [rows, k]
    e = {i: Y.new_zeros(n, Y.shape[1]) for i, n in enumerate(values)}  # tangent of its cotangent
    for step in steps:
        step.forward(Y, d, e)
    out = torch.zeros_like(Y)
    for step in reversed(steps):
        step.backward(Y, d, e, out)
    return out


class _SweepNode:
    """One node of a tangent sweep, with its operands as matrices."""

    def __init__(self, record: _ops.NodeRecord, operands: list[Tensor], factors: _ops.FactorRecord) -> None:
        self.kind, self.a, self.b, self.out, self.row_w, self.row_b = record
        self.operands, (self.alpha, self.beta) = operands, factors

    def _theta(self, Y: Tensor) -> tuple[Tensor, Tensor]:
        """Tangents of W [O, I, k] and of b [O, k]."""
        O, I = self.operands[1].shape
        k = Y.shape[1]
        V = Y[self.row_w : self.row_w + O * I].view(O, I, k) if self.row_w >= 0 else Y.new_zeros(O, I, k)
        return V, Y[self.row_b : self.row_b + O] if self.row_b >= 0 else Y.new_zeros(O, k)

    def forward(self, Y: Tensor, d: dict[int, Tensor], e: dict[int, Tensor]) -> None:
        k = Y.shape[1]
        first, second = (d.get(i, torch.zeros((), dtype=Y.dtype)) for i in (self.a, self.b))
        if self.kind == _ops.LINEAR:
            a, W, _ = self.operands
            V, c = self._theta(Y)
            dz = torch.einsum("ri,oik->rok", a, V) + c
            if self.a >= 0:
                dz = dz + torch.einsum("oi,rik->rok", W, first.view(*a.shape, k))
            d[self.out] = dz.reshape(-1, k)
        elif self.kind == _ops.SCALE:
            d[self.out] = self.operands[0].reshape(-1, 1) * first
        elif self.kind == _ops.SUM:
            d[self.out] = self.alpha * first + self.beta * second
        elif self.kind == _ops.NORM:
            d[self.out] = self._norm_forward(Y, first)
        elif self.kind == _ops.SOFTMAX:
            p, s = self.operands
            e[self.a] += cross_entropy_tangent(p, s, first.view(*p.shape, k)).reshape(-1, k)
        else:
            curvature = self.operands[0].reshape(-1, 1)
            e[self.a] += (curvature if curvature.numel() else self.alpha) * first

    def backward(self, Y: Tensor, d: dict[int, Tensor], e: dict[int, Tensor], out: Tensor) -> None:
        if self.kind == _ops.LINEAR:
            self._linear_backward(Y, d, e, out)
        elif self.kind == _ops.SCALE:
            d1, curved = (t.reshape(-1, 1) for t in self.operands)
            e[self.a] += d1 * e[self.out] + (curved * d[self.a] if curved.numel() else 0)
        elif self.kind == _ops.SUM:
            for value, factor in ((self.a, self.alpha), (self.b, self.beta)):
                if value >= 0:
                    e[value] += factor * e[self.out]
        elif self.kind == _ops.NORM:
            self._norm_backward(Y, d, e, out)

    def _mean(self, t: Tensor) -> Tensor:
        """Over each group of t [B, G, M, ...]; nothing where statistics are constants."""
        return self.alpha * t.mean((0, 2), keepdim=True)

    def _by_parameter(self, t: Tensor) -> Tensor:
        """Rows of parameters [C, ...] for every number [B, G, M, ...]."""
        xh = self.operands[0]
        where = torch.arange(xh.numel()) // int(self.beta) % len(t)
        return t[where].view(*xh.shape, *t.shape[1:])

    def _norm_theta(self, Y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """gamma, and the tangents of gamma and beta, for every number."""
        xh, gamma = self.operands[0], self.operands[2]
        zero = Y.new_zeros(*xh.shape, Y.shape[1])
        rows = (self.row_w, self.row_b)
        dgamma, dbeta = (self._by_parameter(Y[r : r + len(gamma)]) if r >= 0 else zero for r in rows)
        return (self._by_parameter(gamma) if len(gamma) else torch.ones_like(xh)).unsqueeze(-1), dgamma, dbeta

    def _dxh(self, dx: Tensor) -> Tensor:
        xh, r = self.operands[0].unsqueeze(-1), self.operands[1].view(1, -1, 1, 1)
        dx = dx.expand(xh.numel(), dx.shape[-1]).view(*xh.shape[:-1], -1) if dx.dim() else dx.expand(xh.shape)
        return r * (dx - self._mean(dx) - xh * self._mean(xh * dx))

    def _norm_forward(self, Y: Tensor, dx: Tensor) -> Tensor:
        gamma, dgamma, dbeta = self._norm_theta(Y)
        return (gamma * self._dxh(dx) + dgamma * self.operands[0].unsqueeze(-1) + dbeta).reshape(-1, Y.shape[1])

    def _norm_backward(self, Y: Tensor, d: dict[int, Tensor], e: dict[int, Tensor], out: Tensor) -> None:
        xh, delta = (self.operands[i].unsqueeze(-1) for i in (0, 3))
        r, k = self.operands[1].view(1, -1, 1, 1), Y.shape[1]
        gamma, dgamma, _ = self._norm_theta(Y)
        dx = d[self.a] if self.a >= 0 else Y.new_zeros(xh.numel(), k)
        own, dxh = e[self.out].view(*xh.shape[:-1], k), self._dxh(dx)
        u, du = gamma * delta, gamma * own + dgamma * delta
        q, dq = self._mean(xh * u), self._mean(dxh * u + xh * du)
        if self.a >= 0:
            back = r * (u - self._mean(u) - xh * q)
            stretch = r * self._mean(xh * dx.view_as(own))
            e[self.a] += (r * (du - self._mean(du) - dxh * q - xh * dq) - stretch * back).reshape(-1, k)
        C = len(self.operands[2])
        for row, h in ((self.row_w, xh * own + delta * dxh), (self.row_b, own)):
            if row >= 0:
                out[row : row + C] = h.reshape(-1, C, int(self.beta), k).sum((0, 2))

    def _linear_backward(self, Y: Tensor, d: dict[int, Tensor], e: dict[int, Tensor], out: Tensor) -> None:
        a, W, delta = self.operands
        k = Y.shape[1]
        V, _ = self._theta(Y)
        own = e[self.out].view(*delta.shape, k)
        h = torch.einsum("rok,ri->oik", own, a)
        if self.a >= 0:
            h = h + torch.einsum("ro,rik->oik", delta, d[self.a].view(*a.shape, k))
            back = torch.einsum("oi,rok->rik", W, own) + torch.einsum("ro,oik->rik", delta, V)
            e[self.a] += back.reshape(-1, k)
        if self.row_w >= 0:
            out[self.row_w : self.row_w + W.numel()] = h.reshape(-1, k)
        if self.row_b >= 0:
            out[self.row_b : self.row_b + len(W)] = own.sum(0)


def _nodes(operands: list[Tensor], nodes: list[int], factors: list[float]) -> list[_SweepNode]:
    steps, start = [], 0
    pairs = zip(_ops.records(_ops.NodeRecord, nodes), _ops.records(_ops.FactorRecord, factors), strict=True)
    for record, own in pairs:
        end = start + _ops.OPERANDS[record.kind]
        steps.append(_SweepNode(record, operands[start:end], own))
        start = end
    return steps


def tangent_update_(
    Y: Tensor,
    HY: Tensor | None,
    operands: list[Tensor],
    values: list[int],
    nodes: list[int],
    factors: list[float],
    vectors: list[Tensor],
    slots: list[int],
    coefficients: list[float],
) -> Tensor:
    """The product as a matrix, then one slot after the other; returns the sums of squares of all slots' rows [1, k]."""
    own = _ops.records(_ops.SlotRecord, slots)
    P = sum(slot.rows for slot in own)
    HY = tangent_product(Y[:P], operands, values, nodes, factors) if HY is None else HY
    rest = list(vectors)
    squares = Y.new_zeros(1, Y.shape[1])
    for slot, numbers in zip(own, _ops.records(_ops.CoefficientRecord, coefficients), strict=True):
        (kind, first, size, *buffers), (decay, mu, c1, e1, e2, b2, keep) = slot, numbers
        rows = [slice(b, b + size) for b in (first, *buffers)][: 1 + _ops.BUFFERS[kind]]
        d = Y[rows[0]].clone()
        K = HY[rows[0]] + decay * d
        if kind == _ops.PLAIN:
            Y[rows[0]] = d - e1 * K
        else:
            Y[rows[1]] = mu * Y[rows[1]] + c1 * K
        if kind == _ops.MOMENTUM:
            Y[rows[0]] = d - e1 * K - e2 * Y[rows[1]]
        if kind == _ops.ADAM:
            q, A, B = (rest.pop(0).unsqueeze(1) for _ in range(3))
            Y[rows[2]] = b2 * Y[rows[2]] + q * K
            Y[rows[0]] = keep * d - A * Y[rows[1]] + B * Y[rows[2]]
        squares += sum(Y[r].square().sum(0) for r in rows)
    return squares
