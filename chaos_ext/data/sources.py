"""Where the files of a data set are, and how they are read. Nothing is ever written under the user's ``root``."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib.util
import logging
import math
import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..base.files import TEMPORARY_PREFIX
from ..errors import DatasetNotFoundError

log = logging.getLogger("chaos_ext")

Parsed = TypeVar("Parsed")

INSTALL_HINT = "pip install matplotlib tqdm scikit-learn torchvision"  # the extra "figures" of pyproject.toml
USPS_FILES = ("usps/usps.bz2", "usps/usps.t.bz2")
FASHION_MNIST_FILES = tuple(
    f"FashionMNIST/raw/{split}-{kind}.gz"
    for split in ("train", "t10k")
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/chaos_ext``, by default ``~/.cache/chaos_ext``; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative values ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "chaos_ext"


def find_files(name: str, files: Sequence[str], root: Path | None, download: Callable[[Path], None]) -> list[Path]:
    """Paths of a data set's files: under ``root``, else in the cache, else downloaded into the cache.

    Args:
        name: the data set, for messages.
        files: paths relative to a root.
        root: the user's folder, if any.
        download: puts the files under a folder in the layout of ``root``.

    Raises:
        DatasetNotFoundError: with what was looked for, where, and what to do.
    """
    cache = cache_dir()
    for folder in filter(None, (root, cache)):
        if all((folder / f).is_file() for f in files):
            return [folder / f for f in files]
    try:
        _download_into(cache, download)
    except Exception as error:  # torchvision and urllib raise many kinds; each means the same to the user
        raise DatasetNotFoundError(_not_found(name, files, root, cache, error)) from error
    return [cache / f for f in files]


def _not_found(name: str, files: Sequence[str], root: Path | None, cache: Path, error: Exception) -> str:
    looked = " and ".join(str(p) for p in (root, cache) if p is not None)
    hint = f"; the download needs torchvision: {INSTALL_HINT}" if isinstance(error, ImportError) else ""
    return (
        f"{name}: looked for {', '.join(files)} under {looked}; not all are there, and downloading them failed "
        f"({type(error).__name__}: {error}{hint}). Put them into a folder and name it with root= (--root) or "
        'CHAOS_EXT_DATA, or use "digits", which needs no files'
    )


def _download_into(cache: Path, download: Callable[[Path], None]) -> None:
    # An interrupted download must not leave a truncated file that later runs take for the real one.
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=cache) as folder:
        log.info("downloading into %s", cache)
        download(Path(folder))
        for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
            target = cache / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)


def download_usps(folder: Path) -> None:
    """Puts ``USPS_FILES`` under a folder; needs torchvision."""
    from torchvision.datasets import USPS

    (folder / "usps").mkdir()
    for train in (True, False):
        USPS(str(folder / "usps"), train=train, download=True)


def download_fashion_mnist(folder: Path) -> None:
    """Puts ``FASHION_MNIST_FILES`` under a folder; needs torchvision."""
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(folder), download=True)
    for path in (folder / "FashionMNIST" / "raw").iterdir():
        if path.suffix != ".gz":  # torchvision unpacks beside the archives; those suffice
            path.unlink()


def find_digits() -> Path:
    """The UCI digits that scikit-learn carries, found without the second it takes to import scikit-learn.

    Raises:
        DatasetNotFoundError: scikit-learn is not installed, or has no such file.
    """
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return path
    raise DatasetNotFoundError(
        f"digits: looked for scikit-learn's datasets/data/digits.csv.gz; to have it: {INSTALL_HINT}"
    )


def read(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        DatasetNotFoundError: it cannot be opened.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetNotFoundError(f"{path}: cannot be read ({error.strerror or error})") from error


def parsed(path: Path, raw: bytes, parse: Callable[[bytes], Parsed]) -> Parsed:
    """What ``parse`` makes of the bytes of a file.

    Raises:
        DatasetNotFoundError: the file is damaged; the message names it and says what is wrong.
    """
    try:
        return parse(raw)
    except MemoryError:
        raise
    except Exception as error:  # gzip, bz2, struct, int() and float() raise many kinds; each means a damaged file
        what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise DatasetNotFoundError(
            f"{path}: expected the official file, but it cannot be read ({what}{error}); fetch it again"
        ) from error


def parse_digits(raw: bytes) -> tuple[Tensor, Tensor]:
    """Rows of 64 grey values in 0..16 and a label, comma-separated: uint8 [N, 1, 8, 8] and int64 [N].

    Raises:
        ValueError: other numbers, other columns, or no row at all.
    """
    rows = [[_integer(v) for v in line.split(",")] for line in gzip.decompress(raw).decode().split()]
    if not rows or any(len(row) != 65 for row in rows):
        raise ValueError(f"expected rows of 65 numbers, got {next((len(r) for r in rows if len(r) != 65), 'none')}")
    table = torch.tensor(rows, dtype=torch.int64, device="cpu")
    grey, labels = table[:, :64], table[:, 64].contiguous()
    _require_range("grey values", grey, 0, 16)
    _require_range("labels", labels, 0, 9)
    return grey.to(torch.uint8).reshape(-1, 1, 8, 8), labels


def _integer(text: str) -> int:
    value = float(text)
    if not value.is_integer():
        raise ValueError(f"expected integers, got {text}")
    return int(value)


def _require_range(name: str, values: Tensor, low: int, high: int) -> None:
    if not bool(((values >= low) & (values <= high)).all()):  # a NaN is in no range
        bad = values[~((values >= low) & (values <= high))]
        raise ValueError(f"expected {name} in {low}..{high}, got {bad[0].item():g}")


def parse_usps(raw: bytes) -> tuple[Tensor, Tensor]:
    """libsvm text, ``label 1:v1 ... 256:v256`` with label 1..10 and v in [-1, 1]: uint8 [N, 1, 16, 16], int64 [N] 0..9.

    The grey value is the integer part of (v + 1) / 2 * 255 in float32, as in ``torchvision.datasets.USPS``. An index
    that is left out has the value 0, as in every libsvm file.

    Raises:
        ValueError: other labels, indices or values, or no image at all.
    """
    labels, values = [], []
    for line in bz2.decompress(raw).splitlines():
        label, *pairs = line.split()
        labels.append(int(label))
        values.append(_row(pairs))
    if not labels:
        raise ValueError("expected images, got none")
    table, numbers = torch.tensor(values, dtype=torch.float32, device="cpu"), torch.tensor(labels, device="cpu")
    _require_range("grey values", table, -1, 1)
    _require_range("labels", numbers, 1, 10)
    grey = (table + 1) / 2 * 255
    return grey.to(torch.uint8).reshape(-1, 1, 16, 16), numbers - 1


def _row(pairs: Sequence[bytes]) -> list[float]:
    row, before = [0.0] * 256, 0
    for pair in pairs:
        index, _, value = pair.partition(b":")
        at = int(index)
        if not before < at <= 256:
            raise ValueError(f"expected ascending indices in 1..256, got {at} after {before}")
        row[at - 1], before = float(value), at
    return row


def parse_idx(raw: bytes) -> Tensor:
    """A gzipped IDX file of unsigned bytes (big-endian: 0, 0, type 8, rank, sizes, data): uint8 of those sizes.

    Raises:
        ValueError: it is not a file of unsigned bytes, or not as long as its sizes say.
    """
    content = gzip.decompress(raw)
    if content[:3] != b"\0\0\x08" or len(content) < 4 or len(content) < 4 + 4 * content[3]:
        got = content[:8].hex() or "nothing"
        raise ValueError(f"expected an IDX file of unsigned bytes, got one that begins with {got}")
    rank = content[3]
    shape, data = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank]), content[4 + 4 * rank :]
    if rank == 0 or math.prod(shape) != len(data) or not data:
        raise ValueError(f"expected {math.prod(shape)} bytes for sizes {list(shape)}, got {len(data)}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(shape)


def content_key(raws: Sequence[bytes]) -> str:
    """Names a cache entry by the content of the files that it was made from."""
    sha = hashlib.sha256()
    for raw in raws:
        sha.update(hashlib.sha256(raw).digest())
    return sha.hexdigest()[:16]


def forget(paths: Sequence[Path]) -> None:
    """Removes files that turned out damaged, if they are the cache's own, so that the next call fetches them anew."""
    for path in paths:
        if cache_dir() in path.parents:
            log.warning("%s is damaged: removed from the cache", path)
            path.unlink(missing_ok=True)
