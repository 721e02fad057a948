"""Changing something for a while and putting it back, also where Ctrl-C comes in the midst of either.

These are classes and no generators: what interrupts ``contextlib`` leaves a generator waiting, whose end, some time
later, overwrites what others have put back meanwhile. Here, too, an exit that is interrupted before its first line does
nothing, and a signal that comes while Python frees the tensors of a run is handled just there: hence ``with a, a``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_Args = TypeVar("_Args", bound=tuple[Any, ...])


class Restoring(Generic[T]):
    """A context that changes something and puts it back. It may be entered twice in a row, but not again later.

    Args:
        change: makes the change, and returns what ``as`` gets.
        restore: undoes it; it has to bear being called before the change, in the midst of it, and several times.
    """

    def __init__(self, change: Callable[[], T], restore: Callable[[], None]) -> None:
        self.change, self.restore = change, restore

    def __enter__(self) -> T:
        try:
            return self.change()
        except BaseException:
            self.restore()
            raise

    def __exit__(self, *raised: object) -> None:
        try:
            self.restore()
        finally:
            self.restore()  # Ctrl-C may have come in the line above


def together(*contexts: Restoring[Any]) -> Restoring[None]:
    """All of them as one."""

    def change() -> None:
        for c in contexts:
            c.change()

    left = [(c.restore,) for c in reversed(contexts)]
    return Restoring(change, lambda: put_back(left, lambda restore: restore()))


def put_back(kept: list[_Args], restore: Callable[..., None]) -> None:
    """Calls ``restore`` with each, and forgets it then: what an interruption leaves is left for the next call."""
    while kept:
        restore(*kept[0])
        del kept[0]
