"""Ctrl-C and SIGTERM: training ends between two steps with a checkpoint, everything else at once.

A signal that came in the middle of a step would leave parameters and optimizer of different steps, of which no
checkpoint can be made. So a loop over steps asks whether a signal has come; a second signal does not wait for it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType


class Interrupted(BaseException):
    """The process was asked to end.

    Attributes:
        signum: by which signal.
        saved: of what a checkpoint was written for that, for the message; empty if nothing was.
    """

    def __init__(self, signum: int, saved: str = "") -> None:
        super().__init__(signum, saved)
        self.signum, self.saved = signum, saved


class _Signals:
    """What has come and whether anybody asks for it; signals belong to the process, so there is one of it."""

    def __init__(self) -> None:
        self.asked_for = False
        self.came: int | None = None

    def handle(self, signum: int, frame: FrameType | None) -> None:
        if not self.asked_for or self.came is not None:
            raise Interrupted(signum)
        self.came = signum


_signals = _Signals()


@contextlib.contextmanager
def handled(signals: Sequence[int] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[None]:
    """Inside, these signals raise ``Interrupted``; afterwards they do what they did before.

    Outside of the main thread, where no handler can be set, it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in signals}
    try:
        for s in signals:
            signal.signal(s, _signals.handle)
        yield
    finally:
        for s, handler in before.items():
            # None: a handler that was not set from Python, which Python cannot set again.
            signal.signal(s, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def between_steps() -> Iterator[Callable[[], int | None]]:
    """Inside, a signal waits until the function that this gives is asked: it returns the signal that came, or None."""
    _signals.asked_for, _signals.came = True, None
    try:
        yield lambda: _signals.came
    finally:
        came, _signals.asked_for, _signals.came = _signals.came, False, None
    if came is not None:
        raise Interrupted(came)
