"""The version of the installed distribution, whose single source is pyproject.toml."""

from __future__ import annotations

import importlib.metadata


def _version() -> str:
    try:
        return importlib.metadata.version("chaos-ext")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


__version__ = _version()
