"""One progress bar over all steps of a run or an experiment; where there is no terminal, a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType
from typing import Any

_LINE_SECONDS = 30.0


class Progress:
    """Steps per second and time left over the total work: a bar on a terminal (with tqdm).

    Args:
        total: number of steps, None if it is not known.
        shown: False: nothing anywhere.
        lines: where there can be no bar, a line to stderr every 30 seconds begins with this; "": silence.
    """

    def __init__(self, total: int | None, shown: bool = True, lines: str = "") -> None:
        self._bar: Any = _bar(total) if shown and _on_terminal() else None
        self._lines = _Lines(total, lines) if shown and lines and self._bar is None else None

    @property
    def shown(self) -> bool:
        """Whether there is a bar to be seen."""
        return self._bar is not None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def show(self, text: str) -> None:
        """Puts a text behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def report(self, steps: int, restored: bool) -> None:
        """Counts steps; restored ones were done by an earlier process and do not count towards the speed."""
        if self._lines is not None:
            self._lines.report(steps, restored)
        if self._bar is None:
            return
        if restored:
            self._bar.initial += steps
            self._bar.n += steps
            self._bar.refresh()
        else:
            self._bar.update(steps)


def _on_terminal() -> bool:
    # A process without a console has None for a stream; a stream may be closed, or be somebody's object.
    try:
        return bool(sys.stderr.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def _bar(total: int | None) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, unit="step", smoothing=0.05, mininterval=0.5, dynamic_ncols=True)


class _Lines:
    """``fig1: 4200 of 28800 steps, 95.2 steps/s, 4 min 18 s left``, for logs."""

    def __init__(self, total: int | None, name: str) -> None:
        self._total, self._name = total, name
        self._done = self._new = 0
        self._began = self._last = time.monotonic()

    def report(self, steps: int, restored: bool) -> None:
        self._done += steps
        self._new += 0 if restored else steps
        now = time.monotonic()
        if now - self._last >= _LINE_SECONDS:
            self._last = now
            with contextlib.suppress(AttributeError, ValueError, OSError):  # nobody is there to read it
                sys.stderr.write(self._text(now - self._began) + "\n")
                sys.stderr.flush()

    def _text(self, elapsed: float) -> str:
        speed = self._new / elapsed
        parts = [f"{self._name}: {self._done}" + ("" if self._total is None else f" of {self._total}") + " steps"]
        parts.append(f"{speed:.3g} steps/s")
        if self._total is not None and speed > 0:
            parts.append(f"{_duration((self._total - self._done) / speed)} left")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
