"""Arguments of public functions, looked at before anything is done with them."""

from __future__ import annotations

from .contents import is_int


def require_int(name: str, value: object, least: int) -> None:
    """Raises ValueError unless the value is an int, and no bool, of at least ``least``."""
    if not (is_int(value) and value >= least):  # type: ignore[operator]
        raise ValueError(f"{name}: expected an int >= {least}, got {value!r}")
