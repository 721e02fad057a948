"""A terminal to show progress on: put it in the place of ``sys.stderr`` inside of a test, as pytest sets it before."""

from __future__ import annotations


class Terminal:
    """A stream that claims to be a terminal and keeps what is written to it."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass
