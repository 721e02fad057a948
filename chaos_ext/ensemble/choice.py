"""Which way to the gradients is right for a batch: tried out once for every kind of batch, before the first step.

A way is taken if it gives what torch's autograd gives for single members, and if members that are all equal stay equal
bit for bit over a step. Where the kernels of this machine break that, and there are equal members, they go one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..base.parameters import ModuleTree
from ..base.torch_internals import own_buffers
from ..curvature.scalar import first_line
from ..errors import ChaosExtError, UnsupportedError
from ..graph.capture import capture
from ..rules.rule import NotLayerwise
from .arguments import tensors_of
from .functional import Functional
from .layered import Layered
from .members import Directed, Engine, Members, Parts
from .twin import Reference, Twin

log = logging.getLogger("chaos_ext")

_CACHED_BYTES = 1 << 23  # of the numbers of one part of the members, so that they are read from memory once
_CALL_BYTES = 1 << 28  # of the parameters of one vmapped call; activations come on top
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of a gradient, against rounding in another order
Way = tuple[Engine, list[slice]]


class Choice:
    """The engines of one ensemble, by kind of batch."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self._known: dict[object, Way] = {}
        self._layered: dict[object, Layered | None] = {}
        self._unused: frozenset[int] | None = None

    def way(self, members: Members, x: Tensor, y: Tensor, own: bool) -> Way:
        """The engine for such a batch, and which members at a time.

        Raises:
            UnsupportedError: the model cannot be run for many members at once. ValueError: forward or loss fail.
        """
        key = key_of(x, y, own)
        if key in self._known:
            return self._known[key]
        references = self._references(members, x, y, own)
        way = self._tried(members, references, x, y, own)
        if references:
            self._known[key] = way
        return way

    def finite(self, members: Members, x: Tensor, y: Tensor, own: bool) -> list[int]:
        """The first and the last member whose loss and gradient are finite, or none."""
        return list(self._references(members, x, y, own))

    def forget(self) -> None:
        """Other members than those that were tried."""
        self._known.clear()

    def _references(self, members: Members, x: Tensor, y: Tensor, own: bool) -> dict[int, Reference]:
        """Of the first and the last member whose loss and gradient are finite."""
        found: dict[int, Reference] = {}
        alive = members.alive()
        for order in (alive, alive[::-1]):
            for i in order:
                if i in found or self._add_finite(found, members, i, x, y, own):
                    break
        return found

    def _add_finite(
        self, found: dict[int, Reference], members: Members, i: int, x: Tensor, y: Tensor, own: bool
    ) -> bool:
        params = [v[0] for v in members.views(slice(i, i + 1))]
        buffers = {n: b[i] for n, b in members.buffers.items()}
        made = self.twin.reference(params, buffers, *((x[i], y[i]) if own else (x, y)))
        self._hold_unused(members, made.unused)
        if all(bool(torch.isfinite(t).all()) for t in (made.loss, *made.gradient)):
            found[i] = made
        return i in found

    def _hold_unused(self, members: Members, unused: frozenset[int]) -> None:
        if self._unused is None:
            members.recurrence.exclude(unused)
            self._unused = unused
        elif self._unused != unused:
            names = ", ".join(self.twin.space.names[i] for i in sorted(self._unused ^ unused))
            raise UnsupportedError(
                f"model: whether the loss depends on {names} differs from batch to batch or from member to member, so "
                "that the optimizer would step it for some and not for others"
            )

    def _tried(self, members: Members, references: dict[int, Reference], x: Tensor, y: Tensor, own: bool) -> Way:
        layered = self._layered_for(x, y, own)
        if layered is not None:
            parts = _parts(len(members), self._at_once(layered, members, x, y, own))
            problem = _difference(layered, members, references, x, y, own)
            if problem is None:
                return layered, keeping_equals(layered, parts, members, list(references), x, y, own)
            log.info("Ensemble: batched rules do not give torch's gradient (%s); vmapping", problem)
        functional = Functional(self.twin)
        problem = _difference(functional, members, references, x, y, own)
        if problem is not None:
            raise UnsupportedError(f"model: torch.func.vmap does not give the gradient of a single member: {problem}")
        row = 8 * members.layout.width * members.theta.element_size()
        parts = _parts(len(members), max(1, _CALL_BYTES // row))
        return functional, keeping_equals(functional, parts, members, list(references), x, y, own)

    def _layered_for(self, x: Tensor, y: Tensor, own: bool) -> Layered | None:
        """The batched rules for such an input, or None where there are none."""
        plain = isinstance(x, Tensor) and isinstance(y, Tensor) and x.layout == y.layout == torch.strided
        if not plain or (x.is_floating_point() and x.dtype != self.twin.space.dtype):
            return None
        sample = x[0] if own else x
        key = (sample.shape[1:], sample.dtype)
        if key not in self._layered:
            self._layered[key] = self._captured(sample)
        return self._layered[key]

    def _captured(self, x: Tensor) -> Layered | None:
        tree: ModuleTree = self.twin.tree
        if any(own_buffers(m) for m in tree.modules):
            return None  # which forward may write to
        found = capture(tree, self.twin.space, x, lambda program: None)
        try:
            if found.program is None:
                raise NotLayerwise(found.reason)
            return Layered(found.program, self.twin.scalar.loss_fn)
        except NotLayerwise as e:
            log.info("Ensemble: no batched rules here (%s); vmapping", e)
            return None

    def _at_once(self, engine: Layered, members: Members, x: Tensor, y: Tensor, own: bool) -> int:
        """How many members' numbers fit into the cache, from what one of them takes."""
        mine, engine = (x[:1], y[:1]) if own else (x, y), engine.with_fresh_memory()
        try:
            _one(engine, members, 0, *mine, own)
        except (torch.OutOfMemoryError, ChaosExtError):
            raise
        except Exception as e:
            log.info("Ensemble: batched rules fail (%s)", first_line(e))
            return 1
        sample = x[0] if own else x
        row = engine.memory_bytes(sample) + 3 * members.layout.width * members.theta.element_size()
        return max(1, _CACHED_BYTES // row)


def key_of(x: object, y: object, own: bool) -> object:
    """What tells kinds of batches apart."""
    tensors = (*tensors_of(x), *tensors_of(y))
    return (own, torch.get_num_threads(), *((t.shape, t.dtype) for t in tensors))


def _parts(members: int, most: int) -> list[slice]:
    """Parts of nearly one size."""
    count = -(-members // most)
    size = -(-members // count)
    return [slice(a, min(a + size, members)) for a in range(0, members, size)]


def _one(engine: Engine, members: Members, i: int, x: Tensor, y: Tensor, own: bool) -> tuple[Tensor, Tensor]:
    """Loss [1] and gradient rows [1, S] of one member; its own batch is x[:1], y[:1]."""
    rows, out = slice(i, i + 1), members.layout.zeros(1)
    theta, into = members.views(rows), members.layout.views(out)
    if isinstance(engine, Layered):
        shared = () if own else engine.prepared(x, members.theta[i])
        return engine.gradients(theta, x, y, own, shared, into), out
    buffers = {n: b[rows] for n, b in members.buffers.items()}
    return engine.gradients(theta, buffers, x, y, own, into)[0], out


def _difference(
    engine: Engine, members: Members, references: dict[int, Reference], x: Tensor, y: Tensor, own: bool
) -> str | None:
    """Where an engine says something else than autograd, or None."""
    tolerance = _TOLERANCE[members.theta.dtype]
    for i, expected in references.items():
        mine = (x[i : i + 1], y[i : i + 1]) if own else (x, y)
        found = _guarded(engine, partial(_one, engine, members, i, *mine, own))
        if isinstance(found, str):
            return found
        loss, gradient = found
        scale = max(float(g.abs().max()) for g in expected.gradient if g.numel())
        for name, view, g in zip(
            members.layout.space.names, members.layout.views(gradient), expected.gradient, strict=True
        ):
            if not bool(((view[0] - g).abs() <= tolerance * scale).all()):
                return f"the gradient of {name} differs by {float((view[0] - g).abs().max()):.2g}"
        if not abs(float(loss - expected.loss)) <= tolerance * max(1.0, abs(float(expected.loss))):
            return f"the loss is {float(loss):.6g}, not {float(expected.loss):.6g}"
    return None


def _guarded(engine: Engine, run: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | str:
    """What the engine says; of batched rules that fail, why."""
    if isinstance(engine, Functional):
        return run()
    try:
        return run()
    except (torch.OutOfMemoryError, ChaosExtError):
        raise
    except Exception as e:  # a rule that meets shapes that it does not know
        return first_line(e)


def keeping_equals(
    engine: Engine | Directed,
    parts: list[slice],
    members: Members,
    finite: Sequence[int],
    x: Tensor,
    y: Tensor,
    own: bool,
) -> list[slice]:
    """These parts, or single members, with which equal members stay equal bit for bit; tried on a finite one.

    Raises:
        UnsupportedError: with neither.
    """
    if not finite or not members.has_equals():
        return parts
    i = finite[0]
    if own:
        x, y = (t[i : i + 1].expand_as(t).clone() for t in (x, y))
    singles = _parts(len(members), 1)
    for tried in (parts, singles):
        if _stay_equal(engine, tried, members.copies_of(i), x, y, own):
            return tried
        log.info("Ensemble: equal members do not stay equal when %d are run at once", tried[0].stop)
    raise UnsupportedError("model: equal members on equal batches do not stay equal here, so twins would part by noise")


def _stay_equal(engine: Engine | Directed, parts: Parts, equals: Members, x: Tensor, y: Tensor, own: bool) -> bool:
    losses = equals.advance(engine, parts, x, y, own)
    tensors: Sequence[Tensor] = (losses, equals.theta, *equals.buffers.values(), *equals.recurrence.buffers.values())
    return all(bool(((t == t[:1]) | (t.isnan() & t[:1].isnan())).all()) for t in tensors)
