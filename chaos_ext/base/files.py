"""Files that are either whole or absent, whatever kills the process that writes them.

A *sealed* file carries the SHA-256 of its content, so a truncated or damaged one is noticed instead of believed: a line
with its name and version, the 32 bytes of the hash, then what ``torch.save`` makes of the content. Every file that the
package reads back is one, but for those that people read, too (CSV, JSON), whose hash lies elsewhere.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import secrets
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from ..errors import CheckpointError
from .signals import Deferred

_log = logging.getLogger("chaos_ext")
_MAGIC = b"chaos_ext sealed 1\n"
_HEAD = len(_MAGIC) + 32
_PIECE = 1 << 20
TEMPORARY_PREFIX = ".tmp-"


def atomic_write(path: Path, write: bytes | str | Callable[[BinaryIO], object], previous: Path | None = None) -> None:
    """Writes a file beside its destination, forces it to disk, then renames it into place.

    Several processes may write the same file: one of them is last, and its content is whole.

    Args:
        path: destination; its folder must exist. A symbolic link is replaced, not followed.
        write: the content, or a function that writes it to an open binary file.
        previous: where the file that is replaced goes; None: nowhere.

    Raises:
        OSError: it cannot be written; the old file is still there.
    """
    # Nobody can have put a link at a name that nobody can guess, and "x" refuses whatever is there.
    temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(16)}"
    try:
        with _create(temporary, path) as f:
            if callable(write):
                write(f)
            else:
                f.write(write.encode() if isinstance(write, str) else write)
            f.flush()
            os.fsync(f.fileno())
        _rename(temporary, path, previous)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _create(temporary: Path, path: Path) -> BinaryIO:
    try:
        return temporary.open("xb")
    except OSError as error:  # the user knows of no temporary file
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from None


def _rename(temporary: Path, path: Path, previous: Path | None) -> None:
    if previous is not None and path.exists():
        try:
            os.replace(path, previous)
        except FileNotFoundError:  # another writer was quicker
            _log.info("%s: replaced by another process meanwhile", path)
    os.replace(temporary, path)


def write_sealed(path: Path, content: Any, previous: Path | None = None) -> None:
    """Writes tensors and plain Python values (nested in dicts and lists) to a sealed file.

    Args:
        path: as of ``atomic_write``.
        content: what ``torch.load(weights_only=True)`` can read.
        previous: as of ``atomic_write``.
    """

    def write(f: BinaryIO) -> None:
        f.write(_MAGIC + bytes(_HEAD - len(_MAGIC)))
        hashing = _Hashing(f)
        with Deferred():  # torch calls back from C++, where what a handler raises would be some other error
            torch.save(content, cast(IO[bytes], hashing))
        f.seek(len(_MAGIC))
        f.write(hashing.digest())

    atomic_write(path, write, previous)


class _Hashing(io.RawIOBase):
    """Hashes what it passes on, so that a large content never lies in memory as a whole."""

    def __init__(self, f: BinaryIO) -> None:
        super().__init__()
        self._f, self._sha = f, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sha.update(data)
        return self._f.write(data)

    def digest(self) -> bytes:
        return self._sha.digest()


class _Payload(io.RawIOBase):
    """A sealed file from its payload on."""

    def __init__(self, f: BinaryIO) -> None:
        super().__init__()
        self._f = f

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._f.readinto(buffer)  # type: ignore[attr-defined]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._f.seek(offset + (_HEAD if whence == io.SEEK_SET else 0), whence) - _HEAD

    def tell(self) -> int:
        return self._f.tell() - _HEAD


def is_sealed(path: Path) -> bool:
    """Whether a file begins like a sealed one; a damaged beginning counts, too, as long as it resembles one.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with path.open("rb") as f:
        return sum(a == b for a, b in zip(f.read(len(_MAGIC)), _MAGIC, strict=False)) > len(_MAGIC) // 2


def read_sealed(path: Path, map_location: Any = "cpu") -> Any:
    """Reads what ``write_sealed`` wrote.

    Args:
        path: the file.
        map_location: the device to put tensors on, as of ``torch.load``; None: where they were.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated, damaged, or something else.
    """
    with path.open("rb") as f:
        head, sha = f.read(_HEAD), hashlib.sha256()
        while piece := f.read(_PIECE):
            sha.update(piece)
        if head != _MAGIC + sha.digest():
            raise CheckpointError(f"{path}: expected a whole file written by chaos_ext, got a damaged or foreign one")
        f.seek(_HEAD)
        return _unpacked(path, _Payload(f), map_location)


def read_unsealed(path: Path, map_location: Any = "cpu") -> Any:
    """Reads a plain file of ``torch.save``, after checking the CRC-32 that zip keeps of each of its parts.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is truncated, damaged, or something else.
    """
    raw = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(raw) as parts:
            damaged = parts.testzip()
    except Exception as error:  # zipfile raises many kinds on a damaged file
        raise CheckpointError(f"{path}: damaged, or not written by chaos_ext ({error})") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged ({damaged} does not have its checksum)")
    raw.seek(0)
    return _unpacked(path, raw, map_location)


def _unpacked(path: Path, payload: Any, map_location: Any) -> Any:
    try:
        with Deferred():  # as in write_sealed: an interrupted read is no damaged file
            return torch.load(payload, weights_only=True, map_location=map_location)
    except Exception as error:  # whole, but made by another version; torch raises many kinds
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def write_keeping_previous(path: Path, content: Any) -> None:
    """Writes a sealed file; the one that it replaces stays beside it as ``<name>.previous``."""
    write_sealed(path, content, _previous(path))


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
