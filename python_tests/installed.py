"""Which chaos_ext is tested: the installed one, unless the source tree around these tests has its native libraries.

``python -m pytest`` puts the folder that it is started in first on the path. At the root of the repository that is the
source tree, which cannot be imported unless it was built in place. Imported by conftest.py before anything else.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def without_unbuilt(path: list[str], root: Path) -> list[str]:
    """The import path without a source tree that was not built in place."""
    if any((root / "chaos_ext").glob("_C.*")):
        return path
    return [entry for entry in path if Path(entry or ".").resolve() != root]


if "chaos_ext" not in sys.modules:
    sys.path[:] = without_unbuilt(sys.path, ROOT)
    if importlib.util.find_spec("chaos_ext") is None:
        raise pytest.UsageError(
            f'chaos_ext is not installed, and {ROOT} is not built in place; run: pip install ".[test,figures]"'
        )
