"""A smaller form of a compressed Hessian: without what the units of a first layer cannot see while they are off.

Where a first Linear layer is read by one activation alone, whose first and second derivative at sample n and unit j are
0 (a ReLU that is off), nothing depends on z_nj to second order, and the weights of unit j matter through the other
samples only. A direction e_j (x) u with u orthogonal to the inputs a_n of these lies in the kernel of H and is
orthogonal to the gradient: of R^O (x) span A there remains

    sum_j e_j (x) span {a_n : unit j is on at n}.

In the coordinates C = U_A^T A^T [r, R] these are the columns C_j of the samples at which j is on. The first columns W_j
of the Q of their QR decomposition span them, and with W = diag(W_j) H = (Q W) (W^T S W) (Q W)^T.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from ..base.tensors import unit_probe
from ..rules.elementwise import Elementwise
from .basis import Basis, LayerBasis
from .tape import Tape

_WORTH = 0.9  # of the coordinates of a layer: where as many remain, nothing is gained


def narrowed(tape: Tape, nodes: Mapping[int, LayerBasis], basis: Basis, S: Tensor) -> tuple[Basis, Tensor]:
    """The smaller form, or what was given where there is none.

    Args:
        tape: of H.
        nodes: first Linear layers with their bases, by the node through which alone each enters.
        basis: Q.
        S: exactly symmetric, on the CPU.
    """
    layers = list(basis.layers)
    for node, old in nodes.items():
        new = _turned(tape, node, old)
        if new is not None:
            at = next(i for i, b in enumerate(basis.layers) if b is old)  # those before it have moved it
            T = _smaller(S, layers[at], dataclasses.replace(new, start=layers[at].start))
            if T is not None:
                S, layers = T, _placed([*layers[:at], new, *layers[at + 1 :]])
    return Basis(tuple(layers), basis.rows), S


def _placed(layers: list[LayerBasis]) -> list[LayerBasis]:
    """The layers one after the other."""
    starts = itertools.accumulate((b.size for b in layers[:-1]), initial=0)
    return [dataclasses.replace(b, start=start) for b, start in zip(layers, starts, strict=True)]


def _smaller(S: Tensor, old: LayerBasis, new: LayerBasis) -> Tensor | None:
    """S with the coordinates of one layer narrowed; None where these do not hold all of it to rounding."""
    a, b = old.start, old.start + old.size
    if not _holds(S[a:b], new):
        return None
    half = new.narrow(S[a:b])
    m = len(half)
    T = S.new_empty(len(S) - old.size + m, len(S) - old.size + m)
    own = slice(a, a + m)
    others = [(slice(0, a), slice(0, a)), (slice(b, len(S)), slice(a + m, len(T)))]
    others = [(was, now) for was, now in others if was.stop > was.start]
    T[own, own] = new.narrow(half[:, a:b].T.contiguous())
    for was, now in others:
        T[own, now] = half[:, was]
        T[now, own] = half[:, was].T
        for was_too, now_too in others:
            T[now, now_too] = S[was, was_too]
    return T


def _holds(rows: Tensor, new: LayerBasis) -> bool:
    """Whether S w = W W^T S w in these rows of S, for a fixed pseudo-random w, to rounding."""
    image = torch.mv(rows, unit_probe(rows.shape[1], rows.dtype, rows.device)).unsqueeze(1)
    defect = image - new.widen(new.narrow(image)).flatten(0, 1)
    return bool(defect.norm() <= 200 * torch.finfo(rows.dtype).eps * rows.norm())


def _turned(tape: Tape, node: int, basis: LayerBasis) -> LayerBasis | None:
    """The basis of a first layer with directions for each unit, if these are fewer."""
    on = _on(tape, node)
    units, r = basis.x_shape
    if on is None or not r:
        return None
    counts = on.sum(0).clamp_(max=r)
    m = max(int(counts.max()), 1)
    kept = (torch.arange(m, device=on.device) < counts.unsqueeze(1)).flatten().nonzero().squeeze(1)
    if len(kept) > _WORTH * units * r:
        return None
    first = (~on).to(torch.uint8).argsort(dim=0, stable=True)[:m]  # [m, O]: samples that are on, then others
    C = basis.input_coordinates(tape.values[tape.program.nodes[node].inputs[0]])
    W = torch.linalg.qr(C.T[:, first].permute(2, 0, 1))[0]
    return dataclasses.replace(basis, turn=W, kept=kept)


def _on(tape: Tape, node: int) -> Tensor | None:
    """Of a Linear that one activation alone reads: where its output matters [R, O]; None of another."""
    value = node + 1
    readers = [j for j, n in enumerate(tape.program.nodes) if value in n.inputs]
    if tape.program.readers[value] != 1 or not readers:  # another node reads it too, or it is the output
        return None
    if not isinstance(tape.program.nodes[readers[0]].rule, Elementwise):
        return None
    d1, d2 = cast(tuple[Tensor, "Tensor | None"], tape.saved[readers[0]])
    on = d1 != 0 if d2 is None else (d1 != 0) | (d2 != 0)
    return on.reshape(-1, d1.shape[-1])
