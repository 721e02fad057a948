"""Arguments of public functions, looked at before anything is done with them."""

from __future__ import annotations

import torch

from .contents import is_int


def require_int(name: str, value: object, least: int) -> None:
    """Raises ValueError unless the value is an int, and no bool, of at least ``least``."""
    if not (is_int(value) and value >= least):  # type: ignore[operator]
        raise ValueError(f"{name}: expected an int >= {least}, got {value!r}")


def cpu_generator(generator: torch.Generator | None) -> torch.Generator:
    """The generator that was given, or one with seed 0: the global one is never touched.

    Raises:
        TypeError, ValueError: not a generator of the CPU.
    """
    if generator is None:
        return torch.Generator(device="cpu").manual_seed(0)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != "cpu":
        raise ValueError(f"generator: expected one of the CPU, whatever the operator's device, got {generator.device}")
    return generator
