"""Who has not come, after a wait that took long: ranks leave a note in the group's store while they wait."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")
_PATIENCE = 5.0  # s for an answer of the store: its server may be gone, or stopped


class Roll:
    """The notes of one group. The store may be gone together with the rank that holds it: then nobody is known.

    Args:
        store: of the group, or None.
        rank, size: of this process, of the group.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size

    def waits(self, number: int, what: str) -> None:
        """Notes that this rank waits in its collective of this number."""
        self._ask(lambda s: s.set(f"chaos_ext/at/{self._rank}", f"{number} {what}"), None)

    def fails(self, message: str) -> None:
        """Notes that the group is of no more use, and why."""
        self._ask(lambda s: s.set("chaos_ext/failed", message), None)

    def failure(self) -> str | None:
        """Why the group is of no more use, as another rank has noted."""
        return self._read("chaos_ext/failed")

    def absent(self, number: int, grace: float) -> list[int] | None:
        """The ranks that have not come to the collective of this number; None: nobody knows.

        Args:
            number: of the collective.
            grace: seconds for the others to leave their notes.
        """
        end = time.monotonic() + grace
        while True:
            missing = [r for r in range(self._size) if r != self._rank and self._number(r) < number]
            if not missing or time.monotonic() >= end:
                return missing if self._ask(lambda s: s.check(["chaos_ext/failed"]), None) is not None else None
            time.sleep(0.1)

    def _number(self, rank: int) -> int:
        note = self._read(f"chaos_ext/at/{rank}")
        return -1 if note is None else int(note.split(" ", 1)[0])

    def _read(self, key: str) -> str | None:
        return self._ask(lambda s: s.get(key).decode() if s.check([key]) else None, None)

    def _ask(self, question: Callable[[Any], _T], otherwise: _T) -> _T:
        """The store's answer, if it gives one in time; one that has failed once is asked no more."""
        if self._store is None:
            return otherwise
        answers: list[_T] = []
        store = self._store

        def run() -> None:
            with contextlib.suppress(Exception):  # which must not hide the loss that is being looked into
                answers.append(question(store))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(_PATIENCE)
        if not answers:
            self._store = None
        return answers[0] if answers else otherwise
