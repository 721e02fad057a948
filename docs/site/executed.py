"""Figures of pages that say ``run: true``: what their own code, run as it stands there, saves."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def png(figure: Any) -> bytes:
    """A figure as the site shows it."""
    out = io.BytesIO()
    figure.savefig(out, dpi=160, format="png")
    return out.getvalue()


def figures(docs: Path, pages: Iterable[str]) -> dict[str, bytes]:
    """Path in the site -> PNG, of all pages that are to be run."""
    found: dict[str, bytes] = {}
    for page in pages:
        path = docs / page
        if path.is_file() and path.read_text().startswith("---\nrun: true\n"):
            found |= {str(Path(page).with_name(name)): data for name, data in _run(path).items()}
    return found


def _run(path: Path) -> dict[str, bytes]:
    names: dict[str, Any] = {"__name__": "page"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        with contextlib.redirect_stdout(io.StringIO()):
            for match in BLOCK.finditer(path.read_text()):
                exec(compile(textwrap.dedent(match[2]), str(path), "exec"), names)
        return {p.name: p.read_bytes() for p in Path(folder).glob("*.png")}
