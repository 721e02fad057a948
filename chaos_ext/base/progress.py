"""One progress bar over all steps of a run or an experiment, on a terminal only."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Progress:
    """Steps per second and time left over the total work; silent without a terminal or without tqdm.

    Args:
        total: number of steps, None if it is not known.
        shown: False: no bar anywhere.
    """

    def __init__(self, total: int | None, shown: bool = True) -> None:
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, unit="step", smoothing=0.05, mininterval=0.5, dynamic_ncols=True)

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
        if self._bar is None:
            return
        if restored:
            self._bar.initial += steps
            self._bar.n += steps
            self._bar.refresh()
        else:
            self._bar.update(steps)
