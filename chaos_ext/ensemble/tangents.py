"""Tangents of all members at once, under unit tangents at the outputs z^s of one Linear layer.

What ``curvature.sweep`` does of one model, with the k tangents in front of the samples: [b, k, N, ...], so that a
Linear layer is one batched product of [b, k N, I] with W^T [b, I, O].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rules.rule import NotLayerwise
from .layered import Layered, Record
from .layers import BatchedElementwise, BatchedLinear, Layer, SampleBySample

Tangents = list[Tensor | None]


class Swept(NamedTuple):
    """Under the O unit tangents of a layer.

    Attributes:
        dvalues: of each value its tangents [b, O, N, ...]; None: zero.
        dcotangents: of each cotangent.
    """

    dvalues: Tangents
    dcotangents: Tangents


def has_tangents(layer: Layer) -> bool:
    """Whether a layer is known here."""
    return isinstance(layer, (BatchedLinear, BatchedElementwise, SampleBySample))


def unit_sweep(layered: Layered, record: Record, s: int) -> Swept:
    """Enters at the units of node s.

    Raises:
        NotLayerwise: a loss whose curvature is not known.
    """
    program, z = layered.program, record.values[s + 1]
    if record.result.curvature is None:
        raise NotLayerwise("the loss has no batched curvature")
    dvalues: Tangents = [None] * len(record.values)
    b, n, units = z.shape
    dvalues[s + 1] = torch.eye(units, dtype=z.dtype, device=z.device).unsqueeze(1).expand(b, units, n, units)
    for i in range(s + 1, len(program.nodes)):
        dinputs = [dvalues[j] for j in program.nodes[i].inputs]
        if any(d is not None for d in dinputs):
            dvalues[i + 1] = _pushed(layered.layers[i], record.saved[i], dinputs)
    back: Tangents = [None] * len(record.values)
    dz = dvalues[program.output]
    back[program.output] = None if dz is None else record.result.curvature(dz)
    for i in reversed(range(s + 1, len(program.nodes))):
        delta, inputs = record.cotangents[i + 1], program.nodes[i].inputs
        dinputs = [dvalues[j] for j in inputs]
        if delta is None or (back[i + 1] is None and not any(d is not None for d in dinputs)):
            continue
        parts = _pulled(layered.layers[i], record.saved[i], delta, dinputs, back[i + 1])
        for j, part in zip(inputs, parts, strict=True):
            if part is not None and program.depends[j]:
                known = back[j]
                back[j] = part if known is None else known + part
    return Swept(dvalues, back)


def _pushed(layer: Layer, saved: Any, dinputs: Sequence[Tensor | None]) -> Tensor | None:
    if isinstance(layer, BatchedLinear):
        assert dinputs[0] is not None
        return _times(dinputs[0], saved[1].transpose(1, 2))
    if isinstance(layer, BatchedElementwise):
        assert dinputs[0] is not None
        return dinputs[0] * saved[0].unsqueeze(1)
    assert isinstance(layer, SampleBySample)
    inner, b = saved
    nothing = [None] * len(layer.rule.slots)
    return _front(layer.rule.tangent_forward(inner, [_last(d) for d in dinputs], nothing), b)


def _pulled(
    layer: Layer, saved: Any, delta: Tensor, dinputs: Sequence[Tensor | None], ddelta: Tensor | None
) -> Sequence[Tensor | None]:
    if isinstance(layer, BatchedLinear):
        return [None if ddelta is None else _times(ddelta, saved[1])]
    if isinstance(layer, BatchedElementwise):
        return [_through(saved, delta, dinputs[0], ddelta)]
    assert isinstance(layer, SampleBySample)
    inner, b = saved
    flat, nothing = [_last(d) for d in dinputs], [None] * len(layer.rule.slots)
    parts, _ = layer.rule.tangent_backward(inner, delta.flatten(0, 1), flat, nothing, _last(ddelta))
    return [_front(d, b) for d in parts]


def _through(saved: Any, delta: Tensor, dz: Tensor | None, ddelta: Tensor | None) -> Tensor | None:
    """d(delta_z) = phi'' dz delta_a + phi' d(delta_a)."""
    slope, bend = saved
    part = None if ddelta is None else ddelta * slope.unsqueeze(1)
    if bend is None or dz is None:
        return part
    curved = dz * (bend * delta).unsqueeze(1)
    return curved if part is None else part.add_(curved)


def _times(d: Tensor, W: Tensor) -> Tensor:
    """d [b, k, N, I] times W [b, I, O]."""
    return torch.bmm(d.flatten(1, 2), W).unflatten(1, d.shape[1:3])


def _last(d: Tensor | None) -> Tensor | None:
    """[b, k, N, ...] as samples of one model, with the tangents last: [b N, ..., k]."""
    return None if d is None else d.movedim(1, -1).flatten(0, 1)


def _front(d: Tensor | None, b: int) -> Tensor | None:
    return None if d is None else d.unflatten(0, (b, -1)).movedim(-1, 1)
