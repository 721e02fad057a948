"""The data sets of the experiments, as normalised tensors at 16 x 16."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.contents import array, parts, refusing, require
from ..base.files import read_sealed, write_sealed
from ..errors import CheckpointError, DatasetNotFoundError
from . import sources
from .batches import tensor_bytes

log = logging.getLogger("chaos_ext")

CLASSES = 10  # of each of them
_CACHE_FORMAT = 1
_Splits = dict[str, Tensor]  # x_train, y_train, x_test, y_test; images in [0, 1]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, normalised by the training split.

    Attributes:
        name: one of ``NAMES``.
        x_train: images [N, 1, 16, 16], (pixel - mean) / std with pixel in [0, 1]; float32 as loaded.
        y_train: labels [N], int64.
        x_test: images of the test split, normalised with the *training* mean and std.
        y_test: labels of the test split.
        mean: mean over all pixels of all training images.
        std: standard deviation over the same (with N - 1, as ``torch.std``).
        classes: number of classes.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    mean: float
    std: float
    classes: int

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Dataset:
        """The same data with images in another dtype, and images and labels on another device.

        Args:
            dtype: of the images; None leaves theirs. Labels stay int64.
            device: of images and labels; None leaves theirs.
        """
        return replace(
            self,
            x_train=self.x_train.to(device=device, dtype=dtype),
            y_train=self.y_train.to(device=device),
            x_test=self.x_test.to(device=device, dtype=dtype),
            y_test=self.y_test.to(device=device),
        )

    def fingerprint(self) -> str:
        """The first 16 hex digits of the SHA-256 of all tensors: equal data, equal fingerprint."""
        sha = hashlib.sha256()
        for t in (self.x_train, self.y_train, self.x_test, self.y_test):
            sha.update(f"{t.dtype}{tuple(t.shape)}".encode())
            sha.update(tensor_bytes(t))
        return sha.hexdigest()[:16]


def load(name: str, root: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads ``"digits"``, ``"usps"`` or ``"fashion_mnist"`` at 16 x 16.

    ``digits`` are the 1797 UCI digits that scikit-learn carries (8 x 8, resized; a fixed 80/20 split). ``usps`` (7291
    and 2007 images) and ``fashion_mnist`` (60000 and 10000, resized from 28 x 28) are read from ``root``, else from
    the cache, else downloaded into the cache with torchvision. Parsed tensors are cached in
    ``$XDG_CACHE_HOME/chaos_ext``; nothing is written under ``root``.

    Args:
        name: one of ``NAMES``.
        root: folder with ``usps/usps.bz2``, ``usps/usps.t.bz2`` or ``FashionMNIST/raw/*.gz``; default: the environment
            variable CHAOS_EXT_DATA.

    Returns:
        Both splits, float32 on the CPU, the same bits at every call.

    Raises:
        ValueError: unknown name.
        DatasetNotFoundError: the files are missing or damaged; the message says which, and what is wrong.
    """
    if not isinstance(name, str) or name not in _LOADERS:
        raise ValueError(f"data: expected one of {', '.join(NAMES)}, got {name!r}")
    folder = root if root is not None else os.environ.get("CHAOS_EXT_DATA") or None
    return _normalised(name, _LOADERS[name](Path(folder).expanduser() if folder is not None else None))


def _normalised(name: str, splits: _Splits) -> Dataset:
    mean, std = _mean_and_std(splits["x_train"])
    x_train, x_test = (((splits[k].double() - mean) / std).float() for k in ("x_train", "x_test"))
    return Dataset(name, x_train, splits["y_train"], x_test, splits["y_test"], mean, std, CLASSES)


def _mean_and_std(x: Tensor) -> tuple[float, float]:
    """Of all elements of x [N, ...], in float64 and the same bits for every number of threads."""
    # torch splits one long sum over its threads, but not the short sums of the rows.
    rows = x.flatten(1).double()
    mean = math.fsum(rows.sum(1).tolist()) / rows.numel()
    squares = math.fsum(((rows - mean) ** 2).sum(1).tolist())
    return mean, math.sqrt(squares / (rows.numel() - 1))


def _resize(x: Tensor, antialias: bool) -> Tensor:
    """Bilinear to 16 x 16; antialias when it shrinks, as ``torchvision.transforms.Resize``."""
    return nn.functional.interpolate(x, size=(16, 16), mode="bilinear", antialias=antialias)


def _cached(name: str, paths: Sequence[Path], parse: Callable[[Sequence[bytes]], _Splits]) -> _Splits:
    """The parsed splits, from the cache if it holds a whole entry made from files of the same content."""
    raws = [sources.read(p) for p in paths]
    entry = sources.cache_dir() / f"{name}-{_CACHE_FORMAT}-{sources.content_key(raws)}.pt"
    try:
        with refusing(str(entry)):
            return _checked(read_sealed(entry))
    except FileNotFoundError:
        pass
    except (CheckpointError, OSError) as error:
        log.warning("cache entry ignored and rebuilt: %s", error)
    try:
        with refusing(f"{name}: expected the official files, but {', '.join(map(str, paths))} do not fit together"):
            splits = _checked(parse(raws))
    except (DatasetNotFoundError, CheckpointError) as error:
        sources.forget(paths)
        raise DatasetNotFoundError(str(error)) from error
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(entry, splits)
    except OSError as error:
        log.info("parsed data not cached: %s", error)
    return splits


def _checked(splits: Any) -> _Splits:
    """The splits themselves, if images and labels are what they have to be."""
    parts(splits, ("x_train", "y_train", "x_test", "y_test"))
    for split in ("train", "test"):
        x, y = splits[f"x_{split}"], splits[f"y_{split}"]
        array(f"x_{split}", x, (None, 1, 16, 16), (torch.float32,))
        require(len(x), f"x_{split}", "at least one image", x)
        # Resizing rounds: a white image may come out a little whiter.
        bounded = bool((x >= -1e-6).all()) and bool((x <= 1 + 1e-6).all())
        require(bounded, f"x_{split}", "pixels in [0, 1]", [x.min().item(), x.max().item()])
        array(f"y_{split}", y, (len(x),), (torch.int64,))
        known = bool(((y >= 0) & (y < CLASSES)).all())
        require(known, f"y_{split}", f"labels in 0..{CLASSES - 1}", [y.min().item(), y.max().item()])
    spread = splits["x_train"].amax() - splits["x_train"].amin() > 1e-5  # which resizing does not make of one grey
    require(spread, "x_train", "images that are not all of one grey", splits["x_train"])
    whole: _Splits = splits
    return whole


def _load_digits(root: Path | None) -> _Splits:
    path = sources.find_digits()

    def parse(raws: Sequence[bytes]) -> _Splits:
        grey, labels = sources.parsed(path, raws[0], sources.parse_digits)
        train, test = digits_split(len(labels))
        x = _resize(grey.float() / 16, antialias=False)
        return {"x_train": x[train], "y_train": labels[train], "x_test": x[test], "y_test": labels[test]}

    return _cached("digits", [path], parse)


def digits_split(n: int) -> tuple[Tensor, Tensor]:
    """Indices of the training (80 %) and the test samples, each ascending.

    Samples are ranked by the SHA-256 of their number: a split that looks random and that no version of any library
    can change.
    """
    ranked = sorted(range(n), key=lambda i: hashlib.sha256(f"digits {i}".encode()).digest())
    cut = n * 4 // 5
    train, test = (torch.tensor(sorted(part), dtype=torch.int64, device="cpu") for part in (ranked[:cut], ranked[cut:]))
    return train, test


def _load_usps(root: Path | None) -> _Splits:
    paths = sources.find_files("usps", sources.USPS_FILES, root, sources.download_usps)

    def parse(raws: Sequence[bytes]) -> _Splits:
        files = zip(paths, raws, strict=True)
        (grey, labels), (grey_test, labels_test) = (sources.parsed(p, raw, sources.parse_usps) for p, raw in files)
        x_train, x_test = grey.float() / 255, grey_test.float() / 255
        return {"x_train": x_train, "y_train": labels, "x_test": x_test, "y_test": labels_test}

    return _cached("usps", paths, parse)


def _load_fashion_mnist(root: Path | None) -> _Splits:
    files = sources.FASHION_MNIST_FILES
    paths = sources.find_files("fashion_mnist", files, root, sources.download_fashion_mnist)

    def parse(raws: Sequence[bytes]) -> _Splits:
        contents = zip(paths, raws, strict=True)
        x_train, y_train, x_test, y_test = (sources.parsed(p, raw, sources.parse_idx) for p, raw in contents)
        for path, images, labels in ((paths[0], x_train, y_train), (paths[2], x_test, y_test)):
            fits = images.shape == (*labels.shape, 28, 28)
            require(fits, path.name, "as many images of 28 x 28 as labels", [list(images.shape), list(labels.shape)])
        small, small_test = (_resize(x.unsqueeze(1).float() / 255, antialias=True) for x in (x_train, x_test))
        return {"x_train": small, "y_train": y_train.long(), "x_test": small_test, "y_test": y_test.long()}

    return _cached("fashion_mnist", paths, parse)


_LOADERS: dict[str, Callable[[Path | None], _Splits]] = {
    "digits": _load_digits,
    "usps": _load_usps,
    "fashion_mnist": _load_fashion_mnist,
}
NAMES: tuple[str, ...] = tuple(_LOADERS)
