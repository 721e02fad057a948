"""The compressed Hessians H = Q S Q^T of all members at once, of the same size n for every member and batch.

As ``curvature.basis``, ``compressed`` and ``narrowing`` have them of one model, with bases that are not cut by rank:
of the inputs A^T = Q R [I, N] of a layer, min(N, I) columns of Q are its span, and R are the inputs in it, whatever
their rank; a column too many is exact, too. Of a first layer before an activation each unit has directions W_j of its
own, those of the samples at which it is on first; what comes after them is 0 in S, and is left out of the eigenproblem
(``kept``), whose size alone is that of the member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.parameters import ParameterSpace
from ..curvature.basis import Basis, LayerBasis
from ..rules.rule import NotLayerwise
from .layered import Layered, Record
from .layers import BatchedElementwise, BatchedLinear
from .tangents import has_tangents, unit_sweep


@dataclass(frozen=True)
class Place:
    """A Linear layer of the program.

    Attributes:
        node: of the program.
        slots: of its weight, and of its bias or None.
        source: the value that it reads.
        first: whether that depends on no parameter.
        reader: the activation that alone reads its output, of a first layer; else None.
    """

    node: int
    slots: tuple[int, int | None]
    source: int
    first: bool
    reader: int | None


def places_of(layered: Layered) -> list[Place]:
    """Of all layers with parameters.

    Raises:
        NotLayerwise: one that is no Linear, or a layer whose tangents are not known.
    """
    program, found = layered.program, []
    for t, (node, layer) in enumerate(zip(program.nodes, layered.layers, strict=True)):
        if not has_tangents(layer):
            raise NotLayerwise(f"{type(layer).__name__} has no batched tangents")
        if program.depends[t + 1] and not node.rule.rowwise:
            raise NotLayerwise("samples interact")
        if isinstance(layer, BatchedLinear):
            first = not program.depends[node.inputs[0]]
            w, c = layer.rule.slots
            assert w is not None
            found.append(Place(t, (w, c), node.inputs[0], first, _reader(layered, t) if first else None))
    return found


def _reader(layered: Layered, t: int) -> int | None:
    program = layered.program
    readers = [j for j, n in enumerate(program.nodes) if t + 1 in n.inputs]
    alone = program.readers[t + 1] == 1 and len(readers) == 1
    return readers[0] if alone and isinstance(layered.layers[readers[0]], BatchedElementwise) else None


@dataclass(frozen=True)
class LayerForm:
    """The coordinates of one layer: V = X span^T + seen Y perp^T, X [O, r] (of unit j: W_j x_j), Y [q, p].

    Attributes:
        place: which layer.
        inputs: I, without the constant one of the bias.
        span: [b, I', r].
        perp: [b, I', p], and seen [b, O, q]: without columns of a first layer.
        turn: W [b, O, r, r], or None.
        kept: of the coordinates X those that are not 0 in S [b, O, r]; None: all.
        X: the inputs in them [b, O or 1, r, N].
        D: cotangents [b, O, N].
        start: its first coordinate.
    """

    place: Place
    inputs: int
    span: Tensor
    perp: Tensor
    seen: Tensor
    turn: Tensor | None
    kept: Tensor | None
    X: Tensor
    D: Tensor
    start: int

    @property
    def x_size(self) -> int:
        return self.D.shape[1] * self.span.shape[2]

    @property
    def size(self) -> int:
        return self.x_size + self.seen.shape[2] * self.perp.shape[2]

    def gradient(self) -> Tensor:
        """The gradient in these coordinates [b, size]; its Y part is 0."""
        x = (self.X * self.D.unsqueeze(2)).sum(3).flatten(1)
        return torch.nn.functional.pad(x, (0, self.size - self.x_size))

    def subtract_(self, c: Tensor, grads: Sequence[Tensor]) -> None:
        """grads of this layer's parameters -= Q c for c [b, n]."""
        b, units, r = len(c), self.D.shape[1], self.span.shape[2]
        x = c[:, self.start : self.start + self.x_size].reshape(b, units, r)
        if self.turn is not None:
            x = torch.matmul(self.turn, x.unsqueeze(3)).squeeze(3)
        w, bias = self.place.slots
        parts = [(x, self.span.transpose(1, 2))]
        if self.size > self.x_size:
            y = c[:, self.start + self.x_size : self.start + self.size]
            y = y.reshape(b, self.seen.shape[2], self.perp.shape[2])
            parts.append((self.seen, torch.bmm(y, self.perp.transpose(1, 2))))
        for left, right in parts:
            grads[w].baddbmm_(left, right[:, :, : self.inputs], alpha=-1)
            if bias is not None:
                grads[bias].sub_(torch.bmm(left, right[:, :, self.inputs :]).squeeze(2))

    def basis(self, j: int, space: ParameterSpace, start: int, kept: Tensor | None) -> LayerBasis:
        """Of one member; ``kept``: the indices of the coordinates X that there are, where units have their own."""
        w, bias = self.place.slots
        offset, other = space.offsets[w], -1 if bias is None else space.offsets[bias]
        span, perp, seen = (t[j].clone() for t in (self.span, self.perp, self.seen))
        turn = None if self.turn is None else self.turn[j].clone()
        return LayerBasis(offset, other, self.D.shape[1], self.inputs, span, perp, seen, start, turn, kept)


def layer_form(layered: Layered, record: Record, place: Place, start: int, narrow: bool) -> LayerForm:
    """The coordinates of a layer, and its inputs in them."""
    a, delta = record.values[place.source], record.cotangents[place.node + 1]
    assert delta is not None
    if a.dim() != 3:
        raise NotLayerwise("rows of a Linear are positions within samples")
    members, n, inputs = a.shape
    mine = a[:1] if a.stride(0) == 0 else a  # shared
    if place.slots[1] is not None:
        mine = torch.cat([mine, mine.new_ones(1, 1, 1).expand(len(mine), n, 1)], 2)
    r = min(n, mine.shape[2])
    Q, R = torch.linalg.qr(mine.transpose(1, 2), mode="reduced" if place.first else "complete")
    D = delta.transpose(1, 2)
    span, perp, C = (t.expand(members, *t.shape[1:]) for t in (Q[:, :, :r], Q[:, :, r:], R[:, :r]))
    seen = D[:, :, :0] if not perp.shape[2] else torch.linalg.qr(D)[0]
    turn = kept = None
    if narrow and place.reader is not None:
        turn, kept = _turned(C, record.saved[place.reader])
    X = C.unsqueeze(1) if turn is None else torch.matmul(turn.transpose(2, 3), C.unsqueeze(1))
    return LayerForm(place, inputs, span, perp, seen, turn, kept, X, D, start)


_WORTH = 0.9  # of the coordinates of a layer: where as many remain, nothing is gained


def _turned(C: Tensor, saved: Sequence[Tensor | None]) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """W and which of its columns matter, of units that are off at some samples; nothing where that gains nothing."""
    slope, bend = saved
    assert slope is not None
    if bend is not None and not slope.is_cpu:  # smooth: on everywhere; a look would make the host wait
        return None, None
    on = ((slope != 0) if bend is None else (slope != 0) | (bend != 0)).transpose(1, 2)  # [b, O, N]
    r = C.shape[1]
    counts = on.sum(2).clamp_(max=r)
    if slope.is_cpu and int(counts.sum()) > _WORTH * counts.numel() * r:
        return None, None
    first = (~on).to(torch.uint8).argsort(dim=2, stable=True)[:, :, :r]
    index = first.unsqueeze(2).expand(-1, -1, r, -1)
    W = torch.linalg.qr(C.unsqueeze(1).expand(-1, on.shape[1], -1, -1).gather(3, index))[0]
    return W, torch.arange(r, device=C.device) < counts.unsqueeze(2)


class Form:
    """Q, S and Q^T g of some members.

    Attributes:
        layers: Q, layer by layer.
        S: [b, n, n], symmetric to rounding; from ``room``, and overwritten by the next.
        gradient: Q^T g [b, n].
    """

    def __init__(self, layered: Layered, record: Record, places: Sequence[Place], room: Rooms, narrow: bool) -> None:
        self.layers: list[LayerForm] = []
        start = 0
        for place in places:
            if record.cotangents[place.node + 1] is not None:
                self.layers.append(layer_form(layered, record, place, start, narrow))
                start += self.layers[-1].size
        self.S = room.take(len(record.result.losses), start, record.result.losses)
        self.gradient = torch.cat([layer.gradient() for layer in self.layers], 1)
        for row in self.layers:
            _fill_rows(layered, record, row, self.layers, self.S)

    def kept(self) -> Tensor | None:
        """Which coordinates are not 0 in S [b, n]; None: all."""
        if all(layer.kept is None for layer in self.layers):
            return None
        mask = torch.ones(self.gradient.shape, dtype=torch.bool, device=self.gradient.device)
        for layer in self.layers:
            if layer.kept is not None:
                mask[:, layer.start : layer.start + layer.x_size] = layer.kept.flatten(1)
        return mask

    def subtract_(self, c: Tensor, grads: Sequence[Tensor]) -> None:
        """grads, each [b, *shape], -= Q c for c [b, n]."""
        for layer in self.layers:
            layer.subtract_(c, grads)

    def basis(self, j: int, space: ParameterSpace, kept: Tensor | None) -> Basis:
        """Q of member j, restricted to the coordinates ``kept`` [n] (None: all)."""
        made: list[LayerBasis] = []
        start = 0
        for layer in self.layers:
            own = None
            if layer.turn is not None:
                mask = torch.ones(layer.x_size, dtype=torch.bool, device=layer.span.device)
                mask = mask if kept is None else kept[layer.start : layer.start + layer.x_size].to(mask.device)
                own = mask.nonzero().squeeze(1)
            made.append(layer.basis(j, space, start, own))
            start += made[-1].size
        return Basis(tuple(made), space.size)


class Rooms:
    """Memory of S, kept from step to step: what is 0 in it stays so."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], Tensor] = {}

    def take(self, b: int, n: int, like: Tensor) -> Tensor:
        """[b, n, n], zeros at first."""
        if (b, n) not in self._kept:
            while len(self._kept) >= 2:
                self._kept.pop(next(iter(self._kept)))
            with torch.inference_mode(False):
                self._kept[b, n] = torch.zeros(b, n, n, dtype=like.dtype, device=like.device)
        return self._kept[b, n]


def _fill_rows(layered: Layered, record: Record, row: LayerForm, layers: Sequence[LayerForm], S: Tensor) -> None:
    """The blocks of a layer with itself and those after it, and their transposes."""
    swept = unit_sweep(layered, record, row.place.node)
    for column in layers:
        K = swept.dcotangents[column.place.node + 1]
        if column.place.node < row.place.node or K is None:
            continue
        J = None if column is row else swept.dvalues[column.place.source]
        _fill(S, row, column.start, _block(row, column, K, J))
        if J is not None and column.size > column.x_size:
            DU = torch.bmm(column.D.transpose(1, 2), column.seen)
            _fill(S, row, column.start + column.x_size, _through_inputs(row, DU, J, column.perp))


def _block(row: LayerForm, column: LayerForm, K: Tensor, J: Tensor | None) -> Tensor:
    """sum_n X^s[i,a,n] (K_n[i,k] X^t[k,l,n] + delta_nk J_n[i,l]), [b, (i a), (k l)].

    K [b, i, N, k], J [b, i, N, I].
    """
    b, units, r = len(K), row.D.shape[1], row.span.shape[2]
    K = K.transpose(2, 3)
    if column.turn is None:
        left = row.X.unsqueeze(3) * K.unsqueeze(2)  # [b, i, a, k, n]
        G = torch.bmm(left.flatten(1, 3), column.X.squeeze(1).transpose(1, 2)).view(b, units * r, -1)
    else:
        left = row.X.unsqueeze(1) * K.transpose(1, 2).unsqueeze(3)  # [b, k, i, a, n]
        G = torch.matmul(left.flatten(2, 3), column.X.transpose(2, 3))  # [b, k, (i a), l]
        G = G.transpose(1, 2).reshape(b, units * r, -1)
    return G if J is None else G.add_(_through_inputs(row, column.D.transpose(1, 2), J, column.span))


def _through_inputs(row: LayerForm, D: Tensor, J: Tensor, U: Tensor) -> Tensor:
    """sum_n X^s[i,a,n] D[n,k] (J_n[i] U)[l], [b, (i a), (k l)]; the constant input has no tangent."""
    b, units, n, inputs = J.shape
    projected = torch.bmm(J.reshape(b, units * n, inputs), U[:, :inputs]).view(b, units, n, 1, -1)
    right = (D.view(b, 1, n, -1, 1) * projected).flatten(3)
    return torch.matmul(row.X.expand(-1, units, -1, -1), right).flatten(1, 2)


def _fill(S: Tensor, row: LayerForm, start: int, G: Tensor) -> None:
    rows, columns = slice(row.start, row.start + G.shape[1]), slice(start, start + G.shape[2])
    S[:, rows, columns] = G
    if start != row.start:
        S[:, columns, rows] = G.transpose(1, 2)
