"""Running a user's model as it has to be run: without moving its buffers, on kernels that can be differentiated.

What is changed for that is put back also where Ctrl-C comes in between (see ``restoring``).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from . import torch_internals as internals
from .kept import SPARSE, Sparse
from .parameters import ModuleTree
from .restoring import Restoring, T, put_back, together
from .tensors import copy_of
from .traces import untouched
from .turns import in_turn

_P = ParamSpec("_P")


def without_running_stats(model: nn.Module | Sequence[nn.Module]) -> Restoring[None]:
    """Normalisation layers in training mode use batch statistics, and their running ones stay untouched.

    ``model`` may be given as the sequence of its modules.
    """
    modules = model.modules() if isinstance(model, nn.Module) else model
    norms = [m for m in modules if internals.own_buffers(m) and updates_running_stats(m)]
    kept = [(m, {k: internals.own_buffers(m)[k] for k in _STATS}) for m in norms]

    def change() -> None:
        for m in norms:
            m.track_running_stats = False  # type: ignore[assignment]
            internals.own_buffers(m).update(dict.fromkeys(_STATS))

    return Restoring(change, lambda: put_back(kept, _track))


_STATS = ("running_mean", "running_var", "num_batches_tracked")


def _track(m: Any, buffers: dict[str, Tensor | None]) -> None:
    m.track_running_stats = True
    internals.own_buffers(m).update(buffers)


def borrowed_buffers(modules: Sequence[nn.Module]) -> Restoring[Callable[[], bool]]:
    """Lets the modules of a model run on copies of their buffers; gives whether they have written to them."""
    kept = [(internals.own_buffers(m), dict(internals.own_buffers(m))) for m in modules if internals.own_buffers(m)]
    with torch.inference_mode(False):  # tensors made in inference mode have no version counters
        copies = [{k: None if b is None else copy_of(b) for k, b in own.items()} for _, own in kept]
    pairs = [(held, copied) for (held, _), copied in zip(kept, copies, strict=True)]

    def versions() -> list[int]:
        return [internals.version(b) for own in copies for b in own.values() if b is not None]

    before = versions()

    def written() -> bool:
        return versions() != before or any(held[k] is not b for held, own in pairs for k, b in own.items())

    def change() -> Callable[[], bool]:
        for held, copied in pairs:
            held.update(copied)
        return written

    return Restoring(change, lambda: put_back(kept, _refill))


def _refill(held: dict[str, Any], own: dict[str, Any]) -> None:
    held.clear()
    held.update(own)


def own_tensors(model: nn.Module) -> Restoring[None]:
    """Around ``torch.func.functional_call``, which Ctrl-C can keep from putting parameters and buffers back."""
    dicts = [d for m in model.modules() for d in (internals.own_parameters(m), internals.own_buffers(m)) if d]
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = [(d, dict(d)) for d in dicts]
    return Restoring(lambda: None, lambda: put_back(kept, _return))


def _return(held: dict[str, Any], own: dict[str, Any]) -> None:
    if held.keys() != own.keys() or any(held[k] is not t for k, t in own.items()):
        _refill(held, own)


def dense_embeddings(model: nn.Module) -> Restoring[None]:
    """Embeddings with ``sparse=True`` give dense gradients, which torch can differentiate again."""
    sparse = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.sparse]

    def switch(to: bool) -> None:
        for m in sparse:
            m.sparse = to

    return Restoring(lambda: switch(False), lambda: switch(True))


class refuse_edits(Restoring[None]):  # noqa: N801 - used as a function
    """Refuses a forward that writes to parameters, which get their values back.

    Raises:
        UnsupportedError: it wrote, with the names.
    """

    def __init__(self, named: Sequence[tuple[str, Tensor]]) -> None:
        kept = [(name, t, Sparse(t, name) if t.layout in SPARSE else t.detach().clone()) for name, t in named]
        self._edited: list[str] = []
        super().__init__(lambda: None, lambda: put_back(kept, self._compare))

    def _compare(self, name: str, t: Tensor, was: Tensor | Sparse) -> None:
        if was.changed() if isinstance(was, Sparse) else not torch.equal(t, was):
            self._edited.append(name)
            if isinstance(was, Sparse):
                was.restore()
            else:
                t.data.copy_(was)

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        if self._edited and raised[0] is None:
            raise UnsupportedError(
                f"model: its forward edits {', '.join(self._edited)} in place (a mask, a clamp, Embedding(max_norm)), "
                "so it is no function of the parameters that differentiation could see; edit them outside of forward, "
                "after the step"
            )


def commit_forward(tree: ModuleTree, x: object, loss: tuple[Callable[..., object], object] | None = None) -> None:
    """Runs forward once for what it leaves behind: running statistics, buffers and attributes that it moves.

    With a loss, and its y, also that: as in training with a graph, which it may look at.

    Models of torch's own modules that have no running statistics to update leave nothing, and are not run. A graph is
    recorded only for a forward that cannot do without: what it leaves would hold on to it.

    x and y are no state: a forward that edits its input in place edits a copy, here as elsewhere.
    """
    if loss is not None:
        mode = internals.grad_mode(True)
        with mode, mode:
            loss[0](tree.model(_copied(x)), _copied(loss[1]))
    elif tree.watched or any(map(updates_running_stats, tree.modules)):
        mode = internals.grad_mode(_needs_graph(tree, x))
        with mode, mode:
            tree.model(_copied(x) if tree.may_edit_input() else x)


def _copied(value: object) -> object:
    return internals.tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, value)


_needing: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def _needs_graph(tree: ModuleTree, x: object) -> bool:
    """Whether forward fails without a graph, since it takes derivatives itself; it is tried once."""
    model = tree.model
    if not tree.watched:
        return False
    if model not in _needing:
        same = together(borrowed_buffers(tree.modules), untouched(tree.modules), internals.grad_mode(False))
        with same, same:
            try:
                model(_copied(x))
                _needing[model] = False
            except RuntimeError:
                _needing[model] = True
    return _needing[model]


def twice_differentiable(function: Callable[_P, T]) -> Callable[_P, T]:
    """Runs a function on ``plain_kernels``, and takes turns for it: Ctrl-C leaves no turn that nobody gives back."""

    @functools.wraps(function)
    def inside(*args: _P.args, **kwargs: _P.kwargs) -> T:
        def run() -> T:
            modes = plain_kernels()
            with modes, modes:
                return function(*args, **kwargs)

        return in_turn(run)

    return inside


def plain_kernels() -> Restoring[None]:
    """Kernels that torch can differentiate twice: the mathematical form of attention, recurrences without libraries.

    (cuDNN's recurrences refuse a second derivative; oneDNN's float32 LSTM gives a wrong one with respect to a cotangent
    that is zero, 9 % off in torch 2.14.)
    """
    return together(_out_of_inference(), internals.grad_mode(True), internals.plain_kernels())


def no_autograd() -> Restoring[None]:
    """Neither gradients nor inference mode, whose tensors cannot be written to later."""
    return together(_out_of_inference(), internals.grad_mode(False))


def without_autograd(function: Callable[_P, T]) -> Callable[_P, T]:
    """Has it run in ``no_autograd``."""

    @functools.wraps(function)
    def inside(*args: _P.args, **kwargs: _P.kwargs) -> T:
        modes = no_autograd()
        with modes, modes:
            return function(*args, **kwargs)

    return inside


def _out_of_inference() -> Restoring[None]:
    entered: list[tuple[torch.inference_mode]] = []

    def change() -> None:
        if torch.is_inference_mode_enabled():
            mode = torch.inference_mode(False)
            mode.__enter__()
            entered.append((mode,))

    return Restoring(change, lambda: put_back(entered, lambda mode: mode.__exit__(None, None, None)))


def updates_running_stats(m: nn.Module) -> bool:
    """Whether a forward of m updates running statistics that it does not use."""
    return m.training and internals.keeps_running_stats(m)


def refuse_autocast(device: torch.device) -> None:
    """Mixed precision would round inside an exact computation."""
    if torch.is_autocast_enabled(device.type):
        raise UnsupportedError(
            "autocast: H is computed in the parameters' dtype; leave the torch.autocast context, here or inside forward"
        )


class AutocastInside(internals.Mode):
    """While it is entered, this thread's torch functions refuse to run under autocast."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        refuse_autocast(self._device)
        return func(*args, **kwargs)
