"""All members' gradients by batched rules: the model's program, with a batched form of every rule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..curvature.scalar import ForwardError, describe, first_line
from ..errors import ChaosExtError
from ..graph.program import Program
from ..rules.rule import NotLayerwise
from .layers import layer_of
from .losses import Result, loss_of
from .scratch import Scratch

_KEPT = 3  # shapes of batches whose memory is kept: a loader has two, and evaluation is not done here


Views = Sequence[Tensor]  # of each parameter, for some members


class Record(NamedTuple):
    """One forward and one backward pass of members.

    Attributes:
        values: x and the output of each node, each [b, N, ...].
        saved: what each node's layer keeps.
        cotangents: of each value; None where the loss does not depend on it, or nothing on theta.
        result: at the output.
    """

    values: list[Tensor]
    saved: list[Any]
    cotangents: list[Tensor | None]
    result: Result


class Layered:
    """Losses and gradients of members, none of whose numbers depend on who else is there.

    Attributes:
        interleaved: nothing of the user's runs inside, so members may be stepped one part after the other.

    Raises:
        NotLayerwise: a layer has no batched rule, or a parameter is used twice.
    """

    interleaved = True

    def __init__(self, program: Program, loss_fn: Callable[..., Tensor]) -> None:
        if any(len(nodes) > 1 for nodes in program.uses.values()):
            raise NotLayerwise("a parameter is used twice")
        self.program = program
        self.layers = [layer_of(n.rule) for n in program.nodes]
        self.loss = loss_of(loss_fn)
        self._scratch: dict[tuple[int, ...], Scratch] = {}

    def _memory(self, x: Tensor) -> Scratch:
        key = tuple(x.shape)
        if key not in self._scratch:
            while len(self._scratch) >= _KEPT:
                self._scratch.pop(next(iter(self._scratch)))
            self._scratch[key] = Scratch()
        return self._scratch[key]

    def with_fresh_memory(self) -> Layered:
        """The same, with nothing kept from other batches."""
        other = copy.copy(self)
        vars(other)["_scratch"] = {}
        return other

    def memory_bytes(self, x: Tensor) -> int:
        """What batches like x have taken so far."""
        return self._memory(x).bytes()

    def prepared(self, x: Tensor, like: Tensor) -> list[Tensor | None]:
        """The values that do not depend on parameters, of a batch [N, ...] that all members share; like: any one."""
        scratch, values = self._memory(x), [x, *[None] * len(self.layers)]
        for i, node in enumerate(self.program.nodes):
            if not self.program.depends[i + 1]:
                inputs = [values[j] for j in node.inputs]
                values[i + 1], _ = node.rule.forward(inputs, [like])  # type: ignore[arg-type]
        return [None if v is None else scratch.aligned(v.unsqueeze(0), i) for i, v in enumerate(values)]

    def gradients(
        self, theta: Views, x: Tensor, y: Tensor, own: bool, shared: Sequence[Tensor | None], out: Views
    ) -> Tensor:
        """Losses [b] of members; their gradients go to out.

        Args:
            theta: the parameters, each [b, *shape]; see ``Layout.views``.
            x, y: [N, ...] of all members, or [b, N, ...].
            own: which of the two.
            shared: ``prepared(x)`` of a shared batch.
            out: as theta; parameters that the loss does not read are left as they are.
        """
        return self.record(theta, x, y, own, shared, out).result.losses

    def record(
        self, theta: Views, x: Tensor, y: Tensor, own: bool, shared: Sequence[Tensor | None], out: Views
    ) -> Record:
        """The same with all that was computed on the way, which holds until the next call."""
        b, scratch = len(theta[0]), self._memory(x[0] if own else x)
        values: list[Any] = [None if v is None else v.expand(b, *v.shape[1:]) for v in shared]
        if own:
            values = [scratch.copy(x, "x"), *[None] * len(self.layers)]
        saved: list[Any] = [None] * len(self.layers)
        for i, (node, layer) in enumerate(zip(self.program.nodes, self.layers, strict=True)):
            if values[i + 1] is None:
                values[i + 1], saved[i] = layer.forward([values[j] for j in node.inputs], theta, scratch)
        result = self._at_output(values[self.program.output], y, own, scratch)
        return Record(values, saved, self._backward(saved, result.delta, out, scratch), result)

    def _at_output(self, z: Tensor, y: Tensor, own: bool, scratch: Scratch) -> Result:
        try:
            return self.loss(z, y, own, scratch)
        except (torch.OutOfMemoryError, ChaosExtError):
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as e:
            raise ForwardError(
                f"y: loss_fn failed on outputs {describe(z[0])} and y {describe(y)}: {first_line(e)}"
            ) from e

    def _backward(self, saved: Sequence[Any], delta: Tensor, grads: Views, scratch: Scratch) -> list[Tensor | None]:
        cotangents: list[Tensor | None] = [None] * (len(self.layers) + 1)
        cotangents[self.program.output] = delta
        depends = self.program.depends
        for i in reversed(range(len(self.layers))):
            inputs, own = self.program.nodes[i].inputs, cotangents[i + 1]
            if own is None or not depends[i + 1]:
                continue
            need = [bool(depends[j]) for j in inputs]
            for j, d in zip(inputs, self.layers[i].backward(saved[i], own, grads, need, scratch), strict=True):
                if d is not None and depends[j]:
                    known = cotangents[j]
                    cotangents[j] = d if known is None else torch.add(known, d)
        return cotangents
