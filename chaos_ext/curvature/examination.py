"""Whether torch's gradient of a loss is its derivative: of every new program once, and on every batch of some.

It is held against differences of the loss. What forward takes out of the graph (``detach``, ``no_grad``) is meant as a
constant, and is one here too. Where somebody's own backward (an autograd Function, a hook) gives something else than
the derivative, as a straight-through estimator or a clipped gradient does, the gradient is torch's and is left alone,
but its derivative is in doubt.
"""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor, nn

from ..base.torch_internals import may_nest
from ..errors import ChaosExtError, UnsupportedError
from .differences import along, directions, is_linear
from .inspection import Seen, Watch, reentrant_checkpoint

log = logging.getLogger("chaos_ext")

_MOST = 64  # programs of one model that are remembered


@dataclasses.dataclass
class Program:
    """What is known of a model with a loss on batches of one shape.

    Attributes:
        stops: how it takes gradients out of the graph on purpose, or None: differences would see what is stopped.
        custom: what gives it gradients that need not be derivatives, by name, or None: another batch may show it.
        forgets: whether it takes derivatives without ``create_graph``.
        apart: how forward takes out of the graph what the gradient changes with, so that H, to which it is a constant,
            is not the derivative of the gradient; or None.
        doubt: on this batch, what gives it a gradient that is not the derivative of the loss, or None.
        path: the way that its products take, once that is decided.
    """

    stops: str | None
    custom: str | None = None
    forgets: bool = False
    apart: str | None = None
    doubt: str | None = None
    path: str | None = None


class Differentiable(Protocol):
    """What a functional engine shows here: one loss, in one dtype, and torch's derivatives of it."""

    path: str
    loss: Tensor
    gradient: Tensor
    seen: Seen | None

    @property
    def key(self) -> Hashable: ...
    @property
    def model(self) -> nn.Module: ...
    def twin(self) -> Differentiable: ...
    def theta(self) -> Tensor: ...
    def watched(self) -> Watch: ...
    def own_loss(self) -> Tensor: ...
    def loss_at(self, theta: Tensor) -> Tensor: ...
    def with_constants(self) -> Callable[[Tensor], Tensor]: ...
    def gradient_at(self, theta: Tensor) -> Tensor: ...
    def product(self, v: Tensor, path: str, theta: Tensor | None = None) -> Tensor | None: ...


_known: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Program]] = weakref.WeakKeyDictionary()


def program_of(engine: Differentiable) -> Program:
    """What is known of the engine's program; its gradient is checked if the program is new, or custom.

    Raises:
        UnsupportedError: a re-entrant checkpoint, a loss that does not see substituted parameters.
        ChaosExtError: the gradient is not the derivative of the loss.
    """
    programs = _known.setdefault(engine.model, {})
    key = (engine.key, engine.seen)
    program = programs.get(key)
    if program is not None and program.custom is None:
        return program
    program = program or _examined(engine)
    wrong = _contradicts(engine.twin(), program)
    if wrong and program.custom is None:
        raise ChaosExtError(
            "gradient: torch's gradient is not the derivative of the loss, which differences of the loss show; "
            f"{_cut(program)}; check the gradient with torch.autograd.gradcheck"
        )
    if len(programs) >= _MOST:
        programs.clear()
    programs[key] = program
    if wrong is None and program.custom is not None:
        warn_once(
            engine.model,
            "differences of the loss do not settle here (a kink, a jump, a constant), so that the gradient could not "
            f"be checked ({program.custom})",
        )
    return dataclasses.replace(program, doubt=program.custom, path=None) if wrong else program


def _examined(engine: Differentiable) -> Program:
    watch = engine.watched()
    if watch.reentrant:
        raise reentrant_checkpoint()
    _require_substitution(engine)
    functions = [] if engine.seen is None else [f"the backward of {f.__name__}" for f in engine.seen.functions]
    return Program(watch.stops, ", ".join(dict.fromkeys([*functions, *watch.surrogates])) or None, watch.forgets)


def _cut(program: Program) -> str:
    if program.forgets:
        return "forward or loss_fn calls torch.autograd.grad without create_graph=True, which cuts the graph; pass it"
    return "something in forward or in loss_fn cuts the graph"


def _require_substitution(engine: Differentiable) -> None:
    """Raises UnsupportedError where the loss with other tensors in the parameters' places is another function."""
    own, again, limit = engine.own_loss(), engine.own_loss(), limits(engine.theta().dtype)[0]
    exact = own.device.type == "cpu"  # elsewhere sums may take another order
    if not (torch.equal(own, again) if exact else torch.allclose(own, again, rtol=1e2 * torch.finfo(own.dtype).eps)):
        raise UnsupportedError(
            f"model, loss_fn: two runs on the same batch give {float(own):.9g} and {float(again):.9g}: one writes to "
            "something that cannot be put back (an iterator, a file, a variable of a library); keep it in an "
            "attribute of the model or of the loss"
        )
    if not torch.allclose(own, engine.loss, rtol=limit, atol=limit * float(engine.gradient.norm())):
        numbers = f"it is {float(own):.6g}, and {float(engine.loss):.6g} with copies in the parameters' places"
        if any(map(may_nest, engine.model.modules())):
            raise UnsupportedError(
                f"model: of the loss, {numbers}: a frozen nn.TransformerEncoder in eval mode leaves zeros at padded "
                "places where torch takes its fast path, else other values; make it with enable_nested_tensor=False"
            )
        raise UnsupportedError(
            f"loss_fn: {numbers}: it looks for Parameter objects that it holds itself (a derivative with respect to "
            "them, a comparison); take them from the model inside of its forward"
        )


def _contradicts(engine: Differentiable, program: Program) -> bool | None:
    """Whether differences of the loss contradict its gradient; None where they do not tell."""
    theta = engine.theta()
    u, v = directions(len(theta), theta)
    at = engine.loss_at if program.stops is None else engine.with_constants()

    def loss(theta: Tensor) -> Tensor:
        return at(theta).reshape(1)

    if program.stops is not None and not torch.allclose(loss(theta), engine.loss, rtol=limits(theta.dtype)[0]):
        return None  # what is stopped cannot be held
    found = along(loss, theta, u)
    floor = 1e-6 * float(engine.gradient.norm() * u.norm())
    if found is None or found.agrees((engine.gradient @ u).reshape(1), limits(theta.dtype)[1], floor):
        return None if found is None else False
    # Somebody's own backward is believed less than torch's, which is right up to jumps that a step may meet.
    return program.custom is not None or is_linear(loss, theta, u, v)


silent: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # copies of models: of these nobody knows
_warned: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


def warn_once(model: nn.Module, text: str) -> None:
    """Of one model; a run makes an operator every step."""
    said = _warned.setdefault(model, set())
    if text not in said and model not in silent:
        said.add(text)
        log.warning("%s: %s", type(model).__name__, text)


def limits(dtype: torch.dtype) -> tuple[float, float, float]:
    """How far apart relative to their size: the two ways; and differences; and what counts as rounding of H nearby."""
    return (1e-3, 2e-2, 1e-5) if dtype == torch.float32 else (1e-7, 1e-6, 1e-10)
