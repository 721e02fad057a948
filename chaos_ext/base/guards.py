"""Running a user's model as it has to be run: without moving its buffers, on kernels that can be differentiated."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..errors import UnsupportedError
from . import torch_internals as internals
from .parameters import ModuleTree
from .traces import untouched


@contextlib.contextmanager
def without_running_stats(model: nn.Module | Sequence[nn.Module]) -> Iterator[None]:
    """Normalisation layers in training mode use batch statistics, and their running ones stay untouched.

    ``model`` may be given as the sequence of its modules.
    """
    modules = model.modules() if isinstance(model, nn.Module) else model
    norms = [m for m in modules if internals.own_buffers(m) and updates_running_stats(m)]
    kept = [(m, {k: internals.own_buffers(m)[k] for k in _STATS}) for m in norms]
    for m, _ in kept:
        m.track_running_stats = False  # type: ignore[assignment]
        internals.own_buffers(m).update(dict.fromkeys(_STATS))
    try:
        yield
    finally:
        for m, buffers in kept:
            m.track_running_stats = True  # type: ignore[assignment]
            internals.own_buffers(m).update(buffers)


_STATS = ("running_mean", "running_var", "num_batches_tracked")


@contextlib.contextmanager
def borrowed_buffers(modules: Sequence[nn.Module]) -> Iterator[Callable[[], bool]]:
    """Lets the modules of a model run on copies of their buffers; yields whether they have written to them."""
    kept = [(m, dict(internals.own_buffers(m))) for m in modules if internals.own_buffers(m)]
    with torch.inference_mode(False):  # tensors made in inference mode have no version counters
        copies = [(m, {k: None if b is None else b.detach().clone() for k, b in own.items()}) for m, own in kept]
    for m, own in copies:
        internals.own_buffers(m).update(own)

    def versions() -> list[int]:
        return [internals.version(b) for _, own in copies for b in own.values() if b is not None]

    before = versions()

    def written() -> bool:
        present = ((internals.own_buffers(m)[k], b) for m, own in copies for k, b in own.items())
        return versions() != before or any(now is not b for now, b in present)

    try:
        yield written
    finally:
        for m, own in kept:
            internals.own_buffers(m).clear()
            internals.own_buffers(m).update(own)


@contextlib.contextmanager
def dense_embeddings(model: nn.Module) -> Iterator[None]:
    """Embeddings with ``sparse=True`` give dense gradients, which torch can differentiate again."""
    sparse = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.sparse]
    for m in sparse:
        m.sparse = False
    try:
        yield
    finally:
        for m in sparse:
            m.sparse = True


@contextlib.contextmanager
def refuse_edits(named: Sequence[tuple[str, Tensor]]) -> Iterator[None]:
    """Refuses a forward that writes to parameters, which get their values back.

    Raises:
        UnsupportedError: it wrote, with the names.
    """
    kept = [t.detach().clone() for _, t in named]
    try:
        yield
    finally:
        edited = [i for i, (_, t) in enumerate(named) if not torch.equal(t, kept[i])]
        for i in edited:
            named[i][1].data.copy_(kept[i])
    if edited:
        names = ", ".join(named[i][0] for i in edited)
        raise UnsupportedError(
            f"model: its forward edits {names} in place (a mask, a clamp, Embedding(max_norm=...)), so it is no "
            "function of the parameters that differentiation could see; edit them outside of forward, after the step"
        )


def commit_forward(tree: ModuleTree, x: object) -> None:
    """Runs forward once for what it leaves behind: running statistics, buffers and attributes that it moves.

    Models of torch's own modules that have no running statistics to update leave nothing, and are not run. A graph is
    recorded only for a forward that cannot do without: what it leaves would hold on to it.
    """
    if tree.watched or any(map(updates_running_stats, tree.modules)):
        with torch.set_grad_enabled(_needs_graph(tree, x)):
            tree.model(x)


_needing: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def _needs_graph(tree: ModuleTree, x: object) -> bool:
    """Whether forward fails without a graph, since it takes derivatives itself; it is tried once."""
    model = tree.model
    if not tree.watched:
        return False
    if model not in _needing:
        own = internals.tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, x)
        with borrowed_buffers(tree.modules), untouched(tree.modules), torch.no_grad():
            try:
                model(own)
                _needing[model] = False
            except RuntimeError:
                _needing[model] = True
    return _needing[model]


# Which kernels torch uses is a setting of the process, and so is the nesting of torch.func.jvp: a thread that leaves
# one clears the tangents of the others. Threads that change one of these and put it back take turns.
turns = threading.RLock()


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Kernels that torch can differentiate twice: the mathematical form of attention, recurrences without libraries.

    (cuDNN's recurrences refuse a second derivative; oneDNN's float32 LSTM gives a wrong one with respect to a cotangent
    that is zero, 9 % off in torch 2.14.)
    """
    with (
        turns,
        torch.inference_mode(False),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        internals.without_onednn(),
        torch.backends.cudnn.flags(enabled=False) if torch.cuda.is_available() else contextlib.nullcontext(),
    ):
        yield


def updates_running_stats(m: nn.Module) -> bool:
    """Whether a forward of m updates running statistics that it does not use."""
    return m.training and internals.keeps_running_stats(m)


def refuse_autocast(device: torch.device) -> None:
    """Mixed precision would round inside an exact computation."""
    if torch.is_autocast_enabled(device.type):
        raise UnsupportedError(
            "autocast: H is computed in the parameters' dtype; leave the torch.autocast context, here or inside forward"
        )


class AutocastInside(TorchFunctionMode):
    """While it is entered, this thread's torch functions refuse to run under autocast."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refuse_autocast(self._device)
        return func(*args, **(kwargs or {}))
