"""Running a user's model without leaving traces: running statistics, other buffers, the random state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UnsupportedError
from .parameters import updates_running_stats


@contextlib.contextmanager
def without_running_stats(model: nn.Module | Sequence[nn.Module]) -> Iterator[None]:
    """Normalisation layers in training mode use batch statistics, and their running ones stay untouched.

    ``model`` may be given as the sequence of its modules.
    """
    modules = model.modules() if isinstance(model, nn.Module) else model
    norms = [m for m in modules if m._buffers and updates_running_stats(m)]
    kept = [(m, {k: m._buffers[k] for k in _STATS}) for m in norms]
    for m, _ in kept:
        m.track_running_stats = False  # type: ignore[assignment]
        m._buffers.update(dict.fromkeys(_STATS))
    try:
        yield
    finally:
        for m, buffers in kept:
            m.track_running_stats = True  # type: ignore[assignment]
            m._buffers.update(buffers)


_STATS = ("running_mean", "running_var", "num_batches_tracked")


@contextlib.contextmanager
def borrowed_buffers(modules: Sequence[nn.Module]) -> Iterator[Callable[[], bool]]:
    """Lets the modules of a model run on copies of their buffers; yields whether they have written to them."""
    kept = [(m, dict(m._buffers)) for m in modules if m._buffers]
    copies = [(m, {k: None if b is None else b.detach().clone() for k, b in own.items()}) for m, own in kept]
    versions = [b._version for _, own in copies for b in own.values() if b is not None]
    for m, own in copies:
        m._buffers.update(own)

    def written() -> bool:
        now = [b._version for _, own in copies for b in own.values() if b is not None]
        return now != versions or any(m._buffers[k] is not b for m, own in copies for k, b in own.items())

    try:
        yield written
    finally:
        for m, own in kept:
            m._buffers.clear()
            m._buffers.update(own)


def commit_running_stats(model: nn.Module, x: object) -> None:
    """Updates running statistics once, as one forward pass in training mode does."""
    if any(updates_running_stats(m) for m in model.modules()):
        with torch.no_grad():
            model(x)


@contextlib.contextmanager
def refuse_randomness(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Refuses a forward that consumes random numbers, with the generators put back."""

    def states() -> list[Tensor]:
        cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
        return [torch.get_rng_state(), *cuda]

    before = states()
    yield
    if all(torch.equal(a, b) for a, b in zip(before, states(), strict=True)):
        return
    torch.set_rng_state(before[0])
    if len(before) > 1:
        torch.cuda.set_rng_state(before[1], device)
    names = [n for n, m in model.named_modules() if "Dropout" in type(m).__name__ and m.training]
    raise UnsupportedError(
        f"model: its forward draws random numbers ({', '.join(names) or 'no Dropout module; see its forward'}), "
        "so it has no single Hessian; call .eval() on these modules"
    )


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Kernels that torch can differentiate twice: the mathematical form of attention, recurrences without libraries.

    (cuDNN's recurrences refuse a second derivative; oneDNN's float32 LSTM gives a wrong one with respect to a cotangent
    that is zero, 9 % off in torch 2.14.)
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        contextlib.ExitStack() as stack,
    ):
        onednn = torch.backends.mkldnn.set_flags(_enabled=False)[0]
        stack.callback(torch.backends.mkldnn.set_flags, _enabled=onednn)
        if torch.cuda.is_available():
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield
