"""Refusing a forward that draws random numbers: it has no single Hessian."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import UnsupportedError
from .restoring import Restoring
from .torch_internals import Draws

_T = TypeVar("_T")


def without_randomness(run: Callable[[], _T], model: nn.Module, device: torch.device) -> _T:
    """``run()``, which calls the model; the generators are put back if it moves them.

    The generators are global: where one has moved, ``run`` is called again to see whether it was this thread's doing.

    Raises:
        UnsupportedError: it drew random numbers.
    """
    before = _States(device)
    try:
        result = run()
    except BaseException:
        before.restore()
        raise
    if not before.moved() or not (before.python_moved() or _draws(run)):
        return result
    before.restore()
    names = [n for n, m in model.named_modules() if "Dropout" in type(m).__name__ and m.training]
    raise UnsupportedError(
        f"model: its forward draws random numbers ({', '.join(names) or 'no Dropout module; forward or loss_fn'}), "
        "so it has no single Hessian; call .eval() on these modules"
    )


def same_random_state(device: torch.device, generators: Sequence[torch.Generator] = ()) -> Restoring[None]:
    """Puts the global generators back, and those given, whatever the code inside draws from them."""
    before = _States(device)
    own = [(g, g.get_state()) for g in generators]

    def restore() -> None:
        before.restore()
        for g, state in own:
            g.set_state(state)

    return Restoring(lambda: None, restore)


def _draws(run: Callable[[], object]) -> bool:
    with Draws() as draws:
        run()
    return draws.found


class _States:
    """The global generators of torch (of the CPU and of one device), of Python and of numpy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._torch, self._cuda, self._python, self._numpy = _read(device)

    def moved(self) -> bool:
        torch_moved = not torch.equal(self._torch, torch.get_rng_state())
        if self._cuda is not None and not torch_moved:
            torch_moved = not torch.equal(self._cuda, torch.cuda.get_rng_state(self._device))
        return torch_moved or self.python_moved()

    def python_moved(self) -> bool:
        """Whether Python's or numpy's generator has moved."""
        _, _, python, numpy = _read(torch.device("cpu"))
        return python != self._python or numpy != self._numpy

    def restore(self) -> None:
        """Writes nothing where nothing has moved: another thread may be drawing."""
        if not self.moved():
            return
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
        random.setstate(self._python)
        if self._numpy is not None:
            numpy = sys.modules["numpy"]
            name, key, *rest = self._numpy
            numpy.random.set_state((name, numpy.frombuffer(key, dtype=numpy.uint32), *rest))


def _read(device: torch.device) -> tuple[Any, Any, Any, Any]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda, random.getstate(), _numpy_state()


def _numpy_state() -> tuple[Any, ...] | None:
    """Of numpy's global generator, comparable; None where nobody has imported numpy."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    name, key, *rest = numpy.random.get_state()
    return name, key.tobytes(), *rest
