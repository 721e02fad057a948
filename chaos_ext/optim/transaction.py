"""One step of an optimizer, done as a whole or undone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..base.held import NOTHING, held_by
from ..base.signals import Deferred
from ..base.snapshot import Origin
from ..base.torch_internals import own_buffers, without_grad
from ..base.traces import is_quiet, untouched
from ..errors import ChaosExtError, CheckpointError

_DAMAGE = (RuntimeError, TypeError, AttributeError, KeyError)


class Transaction:
    """Puts back all that a step writes, bit for bit, if the code inside raises before ``close``.

    That is: values of the trained parameters and of their optimizer state, which state there is, named attributes of
    the optimizer, the random generator, the buffers that a forward may move, and what a forward or a loss of the
    user's writes to. Copies are made before; the snapshot of an operator is one of its parameters already.

    Args:
        opt: the optimizer.
        attributes: names of the optimizer's attributes.
        params: the parameters that it is about to step.
        origin: the model whose forward may move buffers, with the parameters' values; None where it is not known.
        generators: the state of each is put back; None stands for torch's global one.
    """

    def __init__(
        self,
        opt: Optimizer,
        attributes: Sequence[str],
        params: Sequence[Tensor],
        origin: Origin | None,
        generators: Sequence[torch.Generator | None],
    ) -> None:
        self._opt, self._closed = opt, False
        own = vars(opt)
        self._attributes = {name: own[name] for name in attributes}
        self._params = params
        self._before = [p.clone() for p in params] if origin is None else origin.snapshot.parts
        self._states = [None if s is None else s.copy() for s in map(opt.state.get, params)]
        own_loss = NOTHING if origin is None or origin.loss is None else held_by(origin.loss[0])
        watched = [] if origin is None else origin.snapshot.tree.watched
        self._modules = untouched([*watched, *own_loss.modules], own_loss.objects)
        moving = _moving([*([] if origin is None else origin.snapshot.tree.modules), *own_loss.modules])
        moving += [t for state in self._states if state for t in state.values() if isinstance(t, Tensor)]
        self._values = [(t, t.clone()) for t in moving]
        self._generators = [(g, _state(g)) for g in generators]

    def __enter__(self) -> Transaction:
        return self

    def close(self) -> None:
        """From here on all stays."""
        self._closed = True

    def __exit__(self, kind: object, *_: object) -> Literal[False]:
        if kind is not None and not self._closed:
            with Deferred():
                self._undo()
        return False

    @without_grad
    def _undo(self) -> None:
        for generator, moved in self._generators:
            torch.set_rng_state(moved) if generator is None else generator.set_state(moved)
        for p, state in zip(self._params, self._states, strict=True):
            self._opt.state.pop(p, None) if state is None else _restore(self._opt.state[p], state)
        for t, value in (*zip(self._params, self._before, strict=True), *self._values):
            if not _same_bits(t, value):  # a tensor that was not written to is as fresh as it was
                t.copy_(value)
        self._modules.restore()
        vars(self._opt).update(self._attributes)


@contextlib.contextmanager
def unchanged_on_failure(opt: Optimizer, generator: torch.Generator | None) -> Iterator[None]:
    """Around the loading of a state: the optimizer is afterwards as it was, if the code inside raises.

    Raises:
        CheckpointError: of what the parts of a damaged state raise.
    """
    with Deferred():
        attributes, state = dict(vars(opt)), None if generator is None else generator.get_state()
        try:
            yield
        except BaseException as e:
            vars(opt).update(attributes)
            if generator is not None and state is not None:
                generator.set_state(state)
            if isinstance(e, _DAMAGE) and not isinstance(e, ChaosExtError):
                raise CheckpointError(f"state_dict: damaged, or of another optimizer ({e})") from e
            raise


def _moving(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Buffers that a forward may write to: torch's own modules do so in training mode, a user's in any."""
    written = [own for m in modules if (own := own_buffers(m)) and (m.training or not is_quiet(m))]
    return [b for own in written for b in own.values() if b is not None]


def _state(generator: torch.Generator | None) -> Tensor:
    return torch.get_rng_state() if generator is None else generator.get_state()


def _restore(state: dict[str, Any], before: dict[str, Any]) -> None:
    state.clear()
    state.update(before)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """-0 is not 0, and NaN is NaN."""
    if a.is_meta or a.layout != torch.strided:
        return a.is_meta
    bits = {4: torch.int32, 8: torch.int64}.get(a.element_size()) if a.is_floating_point() else None
    return torch.equal(a.view(bits), b.view(bits)) if bits is not None else torch.equal(a, b)
