"""The rule of anything else: made from torch's own derivatives of the node's function.

With phi(a, theta, delta) = <delta, f(a, theta)>, the gradient G = (phi_a, phi_theta) is linear in delta, and

    tangent_forward   f_a da + f_theta dtheta = d/d(delta) <G, (da, dtheta)>,
    tangent_backward  d/d(a, theta) <G, (da, dtheta)>  +  G at d(delta).

So one graph of G, differentiated once more, gives everything: double backward of this node alone. Forward-mode
derivatives are not needed, and reverse mode is never the inner transform of another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.guards import twice_differentiable
from ..base.signals import Deferred
from ..base.torch_internals import entered
from ..base.twice import Twice
from ..errors import UnsupportedError
from .rule import Leaf, Tangent


@dataclass
class _Graph:
    """The node's function recorded on copies of its inputs, with the graph of its gradient."""

    inputs: list[Tensor]
    leaves: list[Tensor | None]
    out: Tensor
    delta: Tensor | None
    gradient: list[Tensor]

    @property
    def active(self) -> list[Tensor]:
        return [t for t in (*self.inputs, *self.leaves) if t is not None and t.requires_grad]


class AutoRule:
    """z = function(inputs, leaves), differentiated by torch.

    Args:
        function: of the list of inputs and the list of leaf values.
        leaves: the parameters and buffers that it reads.
        why: why there is no rule of its own.
    """

    path, rowwise = "torch's derivatives of this layer", False

    def __init__(
        self, function: Callable[[list[Tensor], list[Tensor | None]], Tensor], leaves: Sequence[Leaf], why: str
    ) -> None:
        self.function, self.leaves, self.why = function, tuple(leaves), why
        self.slots: tuple[int | None, ...] = tuple(leaf.slot for leaf in leaves)

    @twice_differentiable
    def forward(self, inputs: Sequence[Tensor], theta: Sequence[Tensor]) -> tuple[Tensor, _Graph]:
        own = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
        leaves = [leaf(theta) for leaf in self.leaves]
        leaves = [
            t if t is None else t.detach().clone().requires_grad_(leaf.slot is not None)
            for t, leaf in zip(leaves, self.leaves, strict=True)
        ]
        mode = entered(Twice())
        with mode, mode:
            # Clones: a function may write to its input in place, which a leaf of the graph forbids.
            out = self.function([t.clone() for t in own], [None if t is None else t.clone() for t in leaves])
        graph = _Graph(own, leaves, out, None, [])
        if out.requires_grad:
            self._record(graph)
        return out.detach(), graph

    def _record(self, graph: _Graph) -> None:
        graph.delta = torch.zeros_like(graph.out).requires_grad_()
        try:
            parts = torch.autograd.grad(graph.out, graph.active, graph.delta, create_graph=True, allow_unused=True)
        except RuntimeError as e:
            raise UnsupportedError(f"model: autograd cannot differentiate {self.why}: {e}") from e
        graph.gradient = [torch.zeros_like(t) if g is None else g for g, t in zip(parts, graph.active, strict=True)]

    def _spread(self, graph: _Graph, parts: Sequence[Tangent]) -> tuple[list[Tangent], list[Tangent]]:
        """Results for the active tensors, in their places among inputs and leaves."""
        following = iter(parts)
        all_parts = [
            next(following) if t is not None and t.requires_grad else None for t in (*graph.inputs, *graph.leaves)
        ]
        return all_parts[: len(graph.inputs)], all_parts[len(graph.inputs) :]

    @twice_differentiable
    def backward(self, saved: _Graph, delta: Tensor) -> tuple[list[Tangent], list[Tangent]]:
        if saved.delta is None:
            return self._spread(saved, [None] * len(saved.active))
        parts = torch.autograd.grad(saved.out, saved.active, delta, retain_graph=True, allow_unused=True)
        return self._spread(saved, parts)

    def tangent_forward(self, saved: _Graph, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> Tangent:
        tangents = self._tangents(saved, dinputs, dtheta)
        if saved.delta is None or not tangents:
            return None
        (dz,) = self._columns([saved.gradient[i] for i in tangents], [saved.delta], list(tangents.values()))
        return dz

    def _tangents(self, saved: _Graph, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent]) -> dict[int, Tensor]:
        """By place among the parts of the gradient's graph, the tangents [k, *shape]; what depends on nothing left out.

        Two parts may be one tensor: those of w1 and w2 in tanh(w1 + w2).
        """
        d = dict(zip((id(t) for t in (*saved.inputs, *saved.leaves)), (*dinputs, *dtheta), strict=True))
        pairs = zip(saved.gradient, saved.active, strict=True) if saved.delta is not None else ()
        return {
            i: torch.movedim(d[id(t)], -1, 0).contiguous()  # type: ignore[arg-type]
            for i, (g, t) in enumerate(pairs)
            if g.requires_grad and d[id(t)] is not None
        }

    def tangent_backward(
        self, saved: _Graph, delta: Tensor, dinputs: Sequence[Tangent], dtheta: Sequence[Tangent], ddelta: Tangent
    ) -> tuple[list[Tangent], list[Tangent]]:
        active = saved.active
        total: list[Tangent] = [None] * len(active)
        if saved.delta is None:
            return self._spread(saved, total)
        tangents = self._tangents(saved, dinputs, dtheta)
        if tangents:
            total = self._curvature(saved, delta, tangents)
        if ddelta is not None:
            seeds = torch.movedim(ddelta, -1, 0).contiguous()
            linear = self._columns([saved.out], active, [seeds])
            total = [b if a is None else a if b is None else a + b for a, b in zip(total, linear, strict=True)]
        return self._spread(saved, total)

    @twice_differentiable
    def _curvature(self, saved: _Graph, delta: Tensor, tangents: dict[int, Tensor]) -> list[Tangent]:
        """d/d(a, theta) <G, tangents> at delta: on a graph of its own, since G's was recorded at delta = 0."""
        parts = torch.autograd.grad(saved.out, saved.active, delta, create_graph=True, allow_unused=True)
        pairs = [(p, tangents[i]) for i, p in enumerate(parts) if p is not None and p.requires_grad and i in tangents]
        if not pairs:
            return [None] * len(saved.active)
        return self._columns([p for p, _ in pairs], saved.active, [t for _, t in pairs])

    @twice_differentiable
    def _columns(self, outputs: list[Tensor], wrt: list[Tensor], seeds: list[Tensor]) -> list[Tangent]:
        """Gradients for each of the k seeds, with k as the last axis."""

        def rows(at: list[Tensor], batched: bool) -> Sequence[Tangent]:
            return torch.autograd.grad(outputs, wrt, at, retain_graph=True, allow_unused=True, is_grads_batched=batched)

        try:
            with Deferred(insist=True):  # torch.func leaves the process inside vmap where it is interrupted
                parts = rows(seeds, True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            parts = self._one_by_one(rows, seeds)
        return [None if p is None else torch.movedim(p.detach(), 0, -1) for p in parts]

    def _one_by_one(self, rows: Callable[..., Sequence[Tangent]], seeds: list[Tensor]) -> Sequence[Tangent]:
        try:
            each = [rows([s[i] for s in seeds], False) for i in range(len(seeds[0]))]
        except RuntimeError as e:
            raise UnsupportedError(f"model: autograd cannot differentiate {self.why} twice: {e}") from e
        return [None if ts[0] is None else torch.stack(list(ts)) for ts in zip(*each, strict=True)]
