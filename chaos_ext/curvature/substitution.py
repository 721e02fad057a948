"""The loss at other parameters than the model's own, and its gradient, without a trace on the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..base.guards import dense_embeddings, own_tensors, without_running_stats
from ..base.held import held_by, unmoved
from ..base.parameters import ModuleTree, ParameterSpace
from ..base.restoring import together
from ..base.tensors import copy_of, same_values
from ..base.torch_internals import Listening, entered, tree_map
from ..base.traces import shared_buffers, untouched
from ..base.twice import ONCE, Twice
from ..errors import ChaosExtError, UnsupportedError
from .inspection import Seen
from .scalar import Scalar, T, first_line


class Substituted:
    """A scalar on one batch, as a function of its model's parameters.

    Args:
        scalar: the model with its loss.
        space: the parameters that are given. Others that require a gradient are constants.
        x, y: the batch.

    Attributes:
        loss_writes: whether the loss has written to something of its own, which was put back.
    """

    def __init__(self, scalar: Scalar, space: ParameterSpace, x: object, y: object) -> None:
        self.scalar, self._x, self._y = scalar, x, y
        self._names = ["model." + n for n in space.names]
        outside = [] if space.block is None else scalar.model.named_parameters()
        # Detached here, not in a run, where it would look like something that forward does.
        self._constants = {"model." + n: p.detach() for n, p in outside if id(p) not in space.index}
        self._watched, self._held = ModuleTree(scalar.model).watched, held_by(scalar.loss_fn)
        self._shared = shared_buffers(scalar, self._watched)
        # Constants of a block are trained all the same, for which torch's encoders take another way than without.
        self._slow = bool(self._constants) and any(isinstance(m, nn.TransformerEncoder) for m in scalar.modules())
        self._twice, self.loss_writes = False, False

    def replaces(self, seen: Seen | None) -> bool:
        """Whether a graph has functions that torch differentiates only once; from then on others take their place."""
        found = seen is not None and any(isinstance(n, str) and n.startswith(ONCE) for n in seen.nodes)
        self._twice = self._twice or found
        return found

    def __call__(self, params: Sequence[Tensor], then: Callable[[Tensor, object], T]) -> T:
        """What ``then`` makes of the loss and of the model's output while these parameters are in their places."""
        model = self.scalar.model
        kept = own_tensors(model), untouched(self._watched), without_running_stats(model), dense_embeddings(model)
        modes = [entered(mode()) for mode, on in ((Twice, self._twice), (Listening, self._slow)) if on]
        same = together(*kept, *modes)
        if not self._held:
            with same, same:
                return self._run(params, then)
        own = unmoved(self._held)
        with same, same, own, own as written:
            found = self._run(params, then)
            self.loss_writes = self.loss_writes or bool(written())
            return found

    def _run(self, params: Sequence[Tensor], then: Callable[[Tensor, object], T]) -> T:
        buffers = {n: copy_of(b) for n, b in self.scalar.named_buffers()}
        before = [copy_of(b) for _, b in self._shared]
        # A forward that edits its input in place edits a copy, and so does a loss.
        x, y = (tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, part) for part in (self._x, self._y))
        named = dict(zip(self._names, params, strict=True))
        found = functional_call(self.scalar, {**buffers, **self._constants, **named}, (x, y, then))
        for (name, own), value in zip(self._shared, before, strict=True):
            if not (same_values(own, value) and same_values(buffers[name], value)):
                raise _writes_to_shared(name.removeprefix("model."))
        return found


def _writes_to_shared(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"model: its forward writes to the memory of the buffer {name!r}, which another buffer or an attribute shares; "
        "derivatives are taken on copies of the buffers, which do not: keep one buffer, and take views of it in forward"
    )


def backward(loss: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradient of a loss, None where it does not depend on an input.

    Raises:
        UnsupportedError: torch refuses it.
    """
    try:
        return torch.autograd.grad(loss, inputs, allow_unused=True)
    except (torch.OutOfMemoryError, ChaosExtError):
        raise
    except RuntimeError as e:
        raise UnsupportedError(f"model, loss_fn: autograd cannot differentiate the loss: {first_line(e)}") from e
