"""The coordinates in which a Hessian is small: H = Q S Q^T exactly, Q of small Kronecker factors, never materialised.

A Linear layer acts on a batch through its inputs A [N, I] (bias as a constant input) and is seen by the loss through
its cotangents D [N, O]. A weight direction V with V a_n = 0 and V^T delta_n = 0 for every n changes neither the loss
nor, to first order, any gradient: it lies in the kernel of H and is orthogonal to the gradient. So, layer by layer,

    range(H) + span(g)  is in  (R^O (x) span A) + (span D (x) (span A)^perp),

without the second term for a layer whose input depends on no differentiated parameter. With orthonormal bases U_A,
U_perp of R^I and U_D of span D, a weight matrix in the range is V = X U_A^T + U_D Y U_perp^T, with coordinates X [O,
r_A] and Y [r_D, I - r_A]. Since V a_n = 0 for the Y part, it couples to upstream layers only, through d(delta_in) =
V^T delta.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Columns(Protocol):
    """Orthonormal columns Q [P, n] in which eigenvectors are expressed."""

    columns: int

    def coordinates(self, v: Tensor) -> Tensor: ...
    def lift(self, c: Tensor) -> Tensor: ...


class Coordinates:
    """Q = I: eigenvectors in theta itself."""

    def __init__(self, size: int) -> None:
        self.columns = size

    def coordinates(self, v: Tensor) -> Tensor:
        return v

    def lift(self, c: Tensor) -> Tensor:
        return c


@dataclass(frozen=True)
class LayerBasis:
    """The directions of one layer that H and the gradient can see.

    A parameter that enters through something else than a Linear has all of its own: units = its size, one input, one
    column in ``span``.

    Attributes:
        weight: start of the weight [O, I] in theta, -1 if it is not differentiated.
        bias: start of the bias [O] in theta, -1 if there is none.
        units: O.
        inputs: number of weight inputs, I, or 0 where the weight is not differentiated.
        span: U_A [I (+ 1), r_A].
        perp: U_perp [I (+ 1), I (+ 1) - r_A], with no columns where the second term is absent.
        seen: U_D [O, r_D], with no columns where the second term is absent.
        start: first coordinate of this layer in [n].
        turn: W [O, r_A, m] of a layer of which each unit has directions of its own (see ``narrowing``): X = sum_j e_j
            (W_j x_j)^T; None: R^O (x) span A.
        kept: which of the O m coordinates x there are, where ``turn`` is given.
    """

    weight: int
    bias: int
    units: int
    inputs: int
    span: Tensor
    perp: Tensor
    seen: Tensor
    start: int
    turn: Tensor | None = None
    kept: Tensor | None = None

    @property
    def x_shape(self) -> tuple[int, int]:
        return self.units, self.span.shape[1]

    @property
    def y_shape(self) -> tuple[int, int]:
        return self.seen.shape[1], self.perp.shape[1]

    @property
    def y_start(self) -> int:
        return self.start + (self.units * self.span.shape[1] if self.kept is None else len(self.kept))

    @property
    def size(self) -> int:
        return self.y_start - self.start + self.seen.shape[1] * self.perp.shape[1]

    def input_coordinates(self, a: Tensor) -> Tensor:
        """Inputs [..., I] of this layer, with the constant one of its bias, in ``span``: [R, r_A]."""
        A = a.reshape(-1, self.inputs)
        return (A if self.bias < 0 else torch.cat([A, A.new_ones(len(A), 1)], 1)) @ self.span

    def narrow(self, x: Tensor) -> Tensor:
        """W^T x for the coordinates x [O r_A, k] of R^O (x) span A."""
        if self.turn is None or self.kept is None:
            return x
        turned = torch.matmul(self.turn.mT, x.view(*self.x_shape, -1))
        return turned.flatten(0, 1).index_select(0, self.kept)

    def widen(self, x: Tensor) -> Tensor:
        """W x for x [m', k]: [O, r_A, k]."""
        if self.turn is None or self.kept is None:
            return x.view(*self.x_shape, x.shape[1])
        units, _, m = self.turn.shape
        turned = x.new_zeros(units * m, x.shape[1]).index_copy_(0, self.kept, x)
        return torch.matmul(self.turn, turned.view(units, m, -1))

    def coordinates(self, v: Tensor) -> Tensor:
        """Q_l^T v for v [P, k]: [n_l, k]."""
        k = v.shape[1]
        parts = []
        if self.weight >= 0:
            parts.append(v[self.weight : self.weight + self.units * self.inputs].view(self.units, self.inputs, k))
        if self.bias >= 0:
            parts.append(v[self.bias : self.bias + self.units].view(self.units, 1, k))
        V = torch.cat(parts, 1)
        x = self.narrow(torch.matmul(self.span.T, V).flatten(0, -2))
        if not self.seen.shape[1] or not self.perp.shape[1]:
            return x
        seen = (self.seen.T @ V.flatten(1)).unflatten(1, V.shape[1:])
        return torch.cat([x, torch.matmul(self.perp.T, seen).flatten(0, -2)])

    def factors(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Q_l c as a product L R, L [O, q] and R [q, I (+ 1)], for the coordinates c [n] of one vector."""
        x = self.widen(c[self.start : self.y_start].unsqueeze(1)).squeeze(2)
        if not self.seen.shape[1] or not self.perp.shape[1]:
            return x, self.span.T
        y = c[self.y_start : self.start + self.size].view(self.y_shape)
        return torch.cat([x, self.seen], 1), torch.cat([self.span.T, y @ self.perp.T])

    def lift_(self, c: Tensor, out: Tensor) -> None:
        """Writes Q_l c for c [n, k] into its rows of out [P, k]."""
        k = c.shape[1]
        V = torch.matmul(self.span, self.widen(c[self.start : self.y_start]))
        if self.seen.shape[1] and self.perp.shape[1]:
            y = c[self.y_start : self.start + self.size].view(*self.y_shape, k)
            lifted = torch.matmul(self.perp, y)
            V = V + (self.seen @ lifted.flatten(1)).view_as(V)
        if self.weight >= 0:
            out[self.weight : self.weight + self.units * self.inputs] = V[:, : self.inputs].flatten(0, -2)
        if self.bias >= 0:
            out[self.bias : self.bias + self.units] = V[:, -1]

    def to(self, dtype: torch.dtype) -> LayerBasis:
        fields = {**self.__dict__}
        given = ("span", "perp", "seen") if self.turn is None else ("span", "perp", "seen", "turn")
        fields.update({k: fields[k].to(dtype) for k in given})
        return LayerBasis(**fields)


class Basis:
    """Q [P, n], orthonormal columns, layer by layer."""

    def __init__(self, layers: tuple[LayerBasis, ...], size: int) -> None:
        self.layers, self.rows = layers, size
        self.columns = sum(b.size for b in layers)

    def coordinates(self, v: Tensor) -> Tensor:
        """Q^T v for v [P, k]."""
        return torch.cat([b.coordinates(v) for b in self.layers])

    def lift(self, c: Tensor) -> Tensor:
        """Q c for c [n, k]: [P, k]."""
        out = c.new_zeros(self.rows, c.shape[1])
        for b in self.layers:
            b.lift_(c, out)
        return out
