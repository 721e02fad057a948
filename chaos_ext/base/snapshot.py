"""What an operator was made from (theta, the batch, modes and buffers of the model), and whether it is still so."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError, StaleOperatorError
from . import torch_internals as internals
from .batch import Batch
from .guards import refuse_autocast, updates_running_stats
from .kept import Sparse, Values
from .parameters import ModuleTree, ParameterSpace
from .tensors import all_finite, checksum, same_values, unexpanded
from .traces import plain_tensors

_LARGE = 1 << 20  # numbers of a tensor


class _Surroundings:
    """Which modules, in which modes, with which parameters and children; the values of what theta does not hold.

    Values are compared, not version counters: edits through ``.data`` and numpy do not count there.
    """

    def __init__(self, tree: ModuleTree) -> None:
        self._modules = modules = tree.modules
        owned = (internals.own_children, internals.own_parameters, internals.own_buffers)
        self._dicts: list[dict[str, Any]] = [own(m) for own in owned for m in modules]
        self._buffers = [own for m, own in tree.buffered if not updates_running_stats(m)]
        self._parameters = [p for _, p in tree.named_parameters]
        self._outside = [p for _, p in tree.constants]
        constants = self._constants()
        self._seen, self._marks = self._look(), self._read_marks(constants)
        strided = [t for t in constants if t.layout == torch.strided and not t.is_meta]
        # Outside of a block as in theta: comparing copies is faster than checksums are.
        self._kept = [(t, t.detach().clone() if t.requires_grad else _content(t)) for t in strided]
        plain = plain_tensors(tree.watched) if tree.watched else []
        self._sparse = [k for k in plain if isinstance(k, Sparse)]
        dense = [(k.value, k.kept) for k in plain if isinstance(k, Values)]
        self._kept += [(t, copy if t.numel() <= _LARGE else _content(t)) for t, copy in dense]

    def _look(self) -> list[object]:
        """What has to be the very same objects: where these are, a walk through the model would find the same."""
        held: list[object] = list(chain.from_iterable([own.values() for own in self._dicts]))
        return held + [m.training for m in self._modules] + [p.requires_grad for p in self._parameters]

    def _read_marks(self, constants: list[Tensor]) -> list[int]:
        """Where parameters and buffers lie, and how often sparse ones were written."""
        sparse = [internals.version(t) for t in constants if t.layout != torch.strided]
        return [internals.address(t) for t in (*self._parameters, *constants)] + sparse

    def _constants(self) -> list[Tensor]:
        buffers = [b for own in self._buffers for b in own.values() if b is not None]
        return buffers + self._outside

    def are_same(self) -> bool:
        now = self._look()
        same = len(now) == len(self._seen) and all(map(is_, now, self._seen))
        same = same and self._read_marks(self._constants()) == self._marks
        same = same and all(_is_same(t, kept) for t, kept in self._kept)
        return same and not any(k.changed() for k in self._sparse)


def _content(t: Tensor) -> Tensor:
    """A copy, or of a large tensor a checksum: a frozen backbone is not held twice."""
    return t.detach().clone() if t.numel() <= _LARGE else checksum(unexpanded(t))


def _is_same(t: Tensor, kept: Tensor) -> bool:
    return same_values(t.detach() if kept.shape == t.shape else checksum(unexpanded(t)), kept)


class Snapshot:
    """What theta and the batch were when an operator was made.

    Parameters are compared by their values: torch's version counters do not see in-place edits through ``.data``, and
    see edits that change nothing.

    Attributes:
        theta: a copy of the parameters [P].
        parts: views of it with the shape of each parameter.
        tree: the modules of the model: still so where ``is_fresh()``.
    """

    @internals.without_grad
    def __init__(self, space: ParameterSpace, batch: Batch, tree: ModuleTree) -> None:
        self.space = space
        self.theta = space.flatten(space.params)
        if not all_finite(self.theta):
            raise NonFiniteError("model: expected finite parameters, got NaN or inf")
        self.parts = space.views(self.theta)
        self.tree, self._batch = tree, batch
        self._surroundings = _Surroundings(tree)

    def is_fresh(self) -> bool:
        try:
            return (
                self._surroundings.are_same()
                and all(map(torch.equal, self.space.params, self.parts))
                and self._batch.is_fresh()
            )
        except RuntimeError:  # parameters of another dtype or device, by way of .data
            return False

    def require_fresh(self) -> None:
        """Raises StaleOperatorError if parameters, batch, buffers or modes changed; refuses autocast."""
        refuse_autocast(self.space.device)
        if not self.is_fresh():
            raise StaleOperatorError(
                "operator: the parameters, the batch, buffers or modes of the model changed after it was made; make a "
                "new HessianOperator (results obtained before the change stay valid)"
            )


class Origin(NamedTuple):
    """Which model, batch and theta a result belongs to.

    Attributes:
        unused: places in theta's order of the parameters that the loss does not depend on.
        loss: the loss and what it is given as y, if calling it leaves something behind; else None.
        one_batch: whether x is the batch; of several there is no forward to leave something behind.
    """

    model: nn.Module
    x: object
    snapshot: Snapshot
    unused: frozenset[int] = frozenset()
    loss: tuple[Callable[..., object], object] | None = None
    one_batch: bool = True
