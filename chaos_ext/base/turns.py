"""One thread at a time, where torch has settings of the whole process; no turn is kept by a thread that is through."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Which kernels torch uses is a setting of the process, and so is the nesting of torch.func.jvp: a thread that leaves
# one clears the tangents of the others. Threads that change one of these and put it back take turns.
_lock = threading.RLock()


def in_turn(run: Callable[[], T]) -> T:
    """``run()`` while no other thread is in its turn; a thread may be in several of its own.

    An exception that comes just where ``with`` is left (a tracer's, a debugger's) skips the release, and every other
    thread would wait for ever: so the outermost turn looks once more.
    """
    outer = _lock._is_owned()  # type: ignore[attr-defined]
    try:
        with _lock:
            return run()
    finally:
        while not outer and _lock._is_owned():  # type: ignore[attr-defined]
            _lock.release()
