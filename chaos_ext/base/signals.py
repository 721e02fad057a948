"""Putting off signal handlers while state is written, so that Ctrl-C comes before a step or after it, never between.

Python runs the handlers of signals between bytecodes of the main thread; what a handler raises (``KeyboardInterrupt``)
appears there. A call of native code is never interrupted inside, but two of them in a row are.
"""

from __future__ import annotations

# The functions behind ``signal``, which wraps results in enums: ten times what the rest of this costs.
import _signal  # type: ignore[import-not-found]
import signal
import threading
from types import FrameType
from typing import Any, Literal

_NAMES = ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGPROF", "SIGALRM", "SIGTERM", "SIGBREAK", "SIGINT")
# Those that a program is stopped or told the time with, as far as this system has them.
SIGNALS = tuple([int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)])


class Deferred:
    """A context in which signal handlers written in Python do not run; those that were due run at its end.

    It costs about two microseconds, does nothing in other threads than the main one, may be nested, and leaves every
    handler as it found it. A handler that the code inside installs stays, and is the one that is called.

    Args:
        insist: whether a signal that comes for the second time gets through at once: for code that may take long.

    Example:
        >>> with Deferred():
        ...     self.total += x  # Ctrl-C comes before these two lines or after them
        ...     self.count += 1
    """

    __slots__ = ("_came", "_insist", "_kept", "_open")

    def __init__(self, insist: bool = False) -> None:
        self._insist, self._open = insist, True
        self._kept: list[tuple[int, Any]] = []
        self._came: dict[int, FrameType | None] = {}

    def __enter__(self) -> Deferred:
        if threading.get_ident() != threading.main_thread().ident:
            return self
        try:
            self._kept = [
                pair for pair in zip(SIGNALS, map(_signal.getsignal, SIGNALS), strict=True) if callable(pair[1])
            ]
            for number, _ in self._kept:
                _signal.signal(number, self)
        except BaseException:  # of a handler that was not put off yet
            self._restore()
            raise
        return self

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler meanwhile. One that an exception kept from being replaced at the end makes way by itself."""
        if self._open and not (self._insist and number in self._came):
            self._came[number] = frame
            return
        self._came.pop(number, None)
        if not self._open:
            self._restore()
        next(h for n, h in self._kept if n == number)(number, frame)

    def __exit__(self, *raised: object) -> Literal[False]:
        if self._kept:
            try:
                self._restore()
            finally:
                self._open = False
                if self._came:
                    _replay(list(self._came.items()))
        return False

    def _restore(self) -> None:
        for number, handler in self._kept:
            if _signal.getsignal(number) is self:
                _signal.signal(number, handler)


def _replay(came: list[tuple[int, FrameType | None]]) -> None:
    """Calls the handlers of what came, all of them also where one raises."""
    if not came:
        return
    (number, frame), *rest = came
    try:
        handler = _signal.getsignal(number)
        if callable(handler):
            handler(number, frame)
        else:  # set meanwhile, to ignore it or to die of it
            signal.raise_signal(number)
    finally:
        _replay(rest)
