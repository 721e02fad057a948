"""Docstrings as griffe reads them: sections named as it knows them, and items of Raises of several sentences."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ITEM = re.compile(r"\s+[\w, ]+: ")
_RAISES = re.compile(r"^Raises:\n((?:[ \t]+.*\n?|\n(?=[ \t]))+)", re.MULTILINE)


class Docstrings(Extension):
    """Example: is Examples:, and a line of Raises without a name belongs to the item before it."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Of everything that has a docstring, before it is parsed."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = _RAISES.sub(_joined, text)


def _joined(match: re.Match[str]) -> str:
    items: list[str] = []
    for line in match[1].splitlines():
        if items and not _ITEM.match(line):
            items[-1] += " " + line.strip()
        elif line.strip():
            items.append(line if _ITEM.match(line) else f"    ChaosExtError: {line.strip()}")
    return "Raises:\n" + "\n".join(items) + "\n"
