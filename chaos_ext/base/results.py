"""Results that are computed once and kept with the object that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Key = tuple[object, ...]
_T = TypeVar("_T")


class Results:
    """What has been computed already, by key; a computation that raises leaves nothing."""

    def __init__(self) -> None:
        self._kept: dict[Key, object] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def once(self, key: Key, make: Callable[[], _T]) -> _T:
        """What ``make`` returned when it was first asked for under this key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]  # type: ignore[return-value]
