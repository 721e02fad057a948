"""Files that are either whole or absent, whatever kills the process that writes them.

A *sealed* file carries the SHA-256 of its content, so a truncated or damaged one is noticed instead of believed.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import CheckpointError

_log = logging.getLogger("chaos_ext")
_MAGIC = b"chaos_ext sealed 1\n"
TEMPORARY_PREFIX = ".tmp-"


def atomic_write(path: Path, write: bytes | str | Callable[[BinaryIO], None]) -> None:
    """Writes a file beside its destination, forces it to disk, then renames it into place.

    Args:
        path: destination; its folder must exist.
        write: the content, or a function that writes it to an open binary file.
    """
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as f:
            if callable(write):
                write(f)
            else:
                f.write(write.encode() if isinstance(write, str) else write)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes private files; results are as public as any other file
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_sealed(path: Path, content: Any) -> None:
    """Writes tensors and plain Python values (nested in dicts and lists) to a sealed file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    atomic_write(path, _MAGIC + hashlib.sha256(payload).digest() + payload)


def read_sealed(path: Path) -> Any:
    """Reads what ``write_sealed`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated, damaged, or something else.
    """
    raw = path.read_bytes()
    head = len(_MAGIC)
    digest, payload = raw[head : head + 32], raw[head + 32 :]
    if raw[:head] != _MAGIC or hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"{path}: expected a whole file written by chaos_ext, got a damaged or foreign one")
    try:
        return torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    except Exception as error:  # whole, but made by another version; torch raises many kinds
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def write_keeping_previous(path: Path, content: Any) -> None:
    """Writes a sealed file; the one that it replaces stays beside it as ``<name>.previous``."""
    if path.exists():
        os.replace(path, _previous(path))
    write_sealed(path, content)


def read_or_previous(path: Path) -> Any:
    """Reads what ``write_keeping_previous`` wrote; the previous file where the newest is missing or damaged.

    Raises:
        FileNotFoundError: there is neither. CheckpointError: neither is whole.
    """
    try:
        return read_sealed(path)
    except (CheckpointError, FileNotFoundError) as error:
        if not _previous(path).exists():
            raise
        content = read_sealed(_previous(path))
        _log.warning("%s; using %s", error, _previous(path).name)
        return content


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")
