"""Small data sets in the formats of the real ones, and where the real ones may lie."""

from __future__ import annotations

import bz2
import gzip
import os
import struct
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chaos_ext.data import sources

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL_ROOT = Path(os.environ.get("CHAOS_EXT_DATA") or SHARED)
needs_sklearn = pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn is not installed")


def needs_real(name: str) -> pytest.MarkDecorator:
    files = sources.USPS_FILES if name == "usps" else sources.FASHION_MNIST_FILES
    absent = not all((REAL_ROOT / f).is_file() for f in files)
    return pytest.mark.skipif(absent, reason=f"the files of {name} are not under {REAL_ROOT}")


def libsvm_line(label: int, values: Iterable[float]) -> str:
    return " ".join([str(label), *(f"{i}:{v:g}" for i, v in enumerate(values, 1))])


def bz2_lines(lines: Iterable[str]) -> bytes:
    return bz2.compress(("\n".join(lines) + "\n").encode())


def idx_bytes(t: Tensor) -> bytes:
    header = struct.pack(f">HBB{t.dim()}I", 0, 8, t.dim(), *t.shape)
    return gzip.compress(header + bytes(t.flatten().tolist()))


def write_usps(root: Path) -> Path:
    """usps/: 20 training images of all ten labels and 5 test images."""
    g = torch.Generator().manual_seed(0)
    folder = root / "usps"
    folder.mkdir(parents=True)
    for name, n in (("usps.bz2", 20), ("usps.t.bz2", 5)):
        values = (torch.rand(n, 256, generator=g) * 2 - 1).mul(1000).round().div(1000)
        (folder / name).write_bytes(bz2_lines(libsvm_line(i % 10 + 1, row.tolist()) for i, row in enumerate(values)))
    return root


def write_fashion_mnist(root: Path) -> Path:
    """FashionMNIST/raw/: 30 training images and 10 test images."""
    g = torch.Generator().manual_seed(1)
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for split, n in (("train", 30), ("t10k", 10)):
        images = torch.randint(256, (n, 28, 28), generator=g)
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(idx_bytes(images))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(idx_bytes(torch.arange(n) % 10))
    return root
