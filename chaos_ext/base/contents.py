"""What came out of a file, looked at part by part before anything is made of it.

A whole file can still be one of another version or another program. Each check names the part, what was expected and
what came; ``refusing`` turns the first that fails into a CheckpointError.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

FLOATS = (torch.float32, torch.float64)


class UnfitError(Exception):
    """A part that cannot be: its name, what was expected, what came."""


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Inside, a part that does not fit is a CheckpointError that begins with ``what``."""
    try:
        yield
    except UnfitError as unfit:
        raise CheckpointError(f"{what}: {unfit}") from None


def require(condition: object, name: str, expected: str, got: object) -> None:
    """Raises UnfitError unless the condition holds."""
    if not condition:
        shown = f"{got.dtype} {list(got.shape)}" if isinstance(got, Tensor) else repr(got)[:80]
        raise UnfitError(f"{name}: expected {expected}, got {shown}")


def parts(state: Any, names: Iterable[str], name: str = "content") -> dict[str, Any]:
    """The state itself, if it is a dict with these parts."""
    require(isinstance(state, dict), name, "a dict", state)
    missing = [n for n in names if n not in state]
    require(not missing, name, "every part", f"none of {', '.join(missing)}")
    whole: dict[str, Any] = state
    return whole


def same_run(theirs: Any, own: dict[str, Any]) -> None:
    """Raises CheckpointError unless a state was made with the fingerprint that this run has."""
    for name, ours in own.items():
        got = theirs.get(name) if isinstance(theirs, dict) else None
        if got != ours:
            raise CheckpointError(f"state: it belongs to another run: expected {name} = {ours!r}, got {got!r}")


def is_int(value: Any) -> bool:
    """An int that is no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def count(name: str, value: Any, least: int = 0, most: float = math.inf) -> None:
    """An int in [least, most]."""
    expected = f"an int of at least {least}" if most == math.inf else f"an int in {least}..{most}"
    require(is_int(value) and least <= value <= most, name, expected, value)


def number(name: str, value: Any) -> None:
    """A finite number of at least 0."""
    plain = is_int(value) or isinstance(value, float)
    require(plain and 0 <= value < math.inf, name, "a finite number of at least 0", value)


def array(name: str, t: Any, shape: Sequence[int | None], dtypes: Sequence[torch.dtype] = FLOATS) -> None:
    """A dense tensor of finite numbers with this shape (None: any length) and one of these dtypes."""
    whole = isinstance(t, Tensor) and t.layout == torch.strided and t.dtype in dtypes and t.dim() == len(shape)
    fits = whole and all(s is None or s == n for s, n in zip(shape, t.shape, strict=True))
    expected = f"{' or '.join(map(str, dtypes))} [{', '.join('any' if s is None else str(s) for s in shape)}]"
    require(fits, name, expected, t)
    require(bool(torch.isfinite(t).all()), name, "finite numbers", "NaN or infinity")
