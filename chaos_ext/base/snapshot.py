"""What an operator was made from (theta, the batch, modes and buffers of the model), and whether it is still so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError, StaleOperatorError
from . import torch_internals as internals
from .batch import Batch
from .guards import refuse_autocast, updates_running_stats
from .parameters import ModuleTree, ParameterSpace
from .tensors import all_finite


def _marks(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    return [(internals.address(t), internals.version(t)) for t in tensors]


def _surroundings(tree: ModuleTree) -> tuple[object, ...]:
    """Modes of the modules; identity and version of buffers and frozen parameters."""
    modules = tree.modules
    others: list[Tensor] = []
    for m in modules:
        buffers = internals.own_buffers(m)
        if buffers and not updates_running_stats(m):
            others.extend(b for b in buffers.values() if b is not None)
    others.extend(p for _, p in tree.named_parameters if not p.requires_grad)
    return (*[m.training for m in modules], *_marks(others))


class Snapshot:
    """What theta and the batch were when an operator was made.

    Parameters are compared by their values: torch's version counters do not see in-place edits through ``.data``, and
    see edits that change nothing.

    Attributes:
        theta: a copy of the parameters [P].
        parts: views of it with the shape of each parameter.
    """

    def __init__(self, space: ParameterSpace, batch: Batch, tree: ModuleTree) -> None:
        self.space = space
        self.theta = space.flatten([p.detach() for p in space.params])
        if not all_finite(self.theta):
            raise NonFiniteError("model: expected finite parameters, got NaN or inf")
        self.parts = space.views(self.theta)
        self._model, self._batch = tree.model, batch
        self._surroundings = _surroundings(tree)
        self._marks = self._read_marks()

    def _read_marks(self) -> list[int]:
        return [internals.address(p) for p in self.space.params]

    def is_fresh(self) -> bool:
        # Values last: only where all else is unchanged are the shapes and dtypes sure to be.
        return (
            self._read_marks() == self._marks
            and _surroundings(ModuleTree(self._model)) == self._surroundings
            and all(map(torch.equal, self.space.params, self.parts))
            and self._batch.is_fresh()
        )

    def require_fresh(self) -> None:
        """Raises StaleOperatorError if parameters, batch, buffers or modes changed; refuses autocast."""
        refuse_autocast(self.space.device)
        if not self.is_fresh():
            raise StaleOperatorError(
                "operator: the parameters, the batch, buffers or modes of the model changed after it was made; make a "
                "new HessianOperator (results obtained before the change stay valid)"
            )


@dataclass(frozen=True)
class Origin:
    """Which model, batch and theta a result belongs to.

    Attributes:
        unused: places in theta's order of the parameters that the loss does not depend on.
    """

    model: nn.Module
    x: object
    snapshot: Snapshot
    unused: frozenset[int] = frozenset()
