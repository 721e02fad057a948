"""Arguments of public functions, looked at before anything is done with them."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch

from .contents import is_int


def require_int(name: str, value: object, least: int) -> None:
    """Raises ValueError unless the value is an int, and no bool, of at least ``least``."""
    if not (is_int(value) and value >= least):  # type: ignore[operator]
        raise ValueError(f"{name}: expected an int >= {least}, got {value!r}")


def require_number(name: str, value: object, *, finite: bool = True) -> None:
    """Refuses what is no real number: of Python's, of numpy's, or a tensor of one.

    Raises:
        TypeError: something else, a bool included. ValueError: NaN or, unless not ``finite``, infinity.
    """
    number: Any = value
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool:
        number = value.item()
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{name}: expected a real number, got {value!r}")
    if number != number or (finite and abs(number) == math.inf):
        raise ValueError(f"{name}: expected a {'finite ' if finite else ''}number, got {value!r}")


def require_numbers(**values: object) -> None:
    """``require_number`` of each, by name."""
    for name, value in values.items():
        require_number(name, value)


def log_of(name: str, value: float) -> float:
    """ln of a number that has to be positive; raises ValueError elsewhere."""
    if not value > 0:
        raise ValueError(f"{name}: expected another number than {value!r}, where a logarithm is not finite")
    return math.log(value)


def require_seed(name: str, value: object) -> None:
    """Raises ValueError unless the value is an int, and no bool."""
    if not is_int(value):
        raise ValueError(f"{name}: expected an int, got {value!r}")


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
