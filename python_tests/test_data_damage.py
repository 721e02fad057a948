"""Data files are not believed: what is damaged, or is not what it says, is refused by file and fault."""

import bz2
import gzip
import math

import pytest
import torch
from damage import flips_and_cuts
from data_files import bz2_lines, idx_bytes, libsvm_line, needs_sklearn

from chaos_ext import CheckpointError, DatasetNotFoundError
from chaos_ext.base.files import read_sealed, write_sealed
from chaos_ext.data import load, sources
from chaos_ext.data.datasets import digits_split

pytestmark = pytest.mark.usefixtures("own_cache")

GOOD = [0.5] * 256


def test_no_flipped_bit_and_no_cut_of_a_data_file_gives_other_numbers(usps_root):
    path, expected = usps_root / "usps" / "usps.bz2", load("usps", usps_root).fingerprint()
    for damaged in flips_and_cuts(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            got = load("usps", usps_root)
        except DatasetNotFoundError:
            continue
        assert got.fingerprint() == expected


def test_nor_of_a_cache_entry(usps_root, own_cache):
    expected = load("usps", usps_root).fingerprint()
    (entry,) = own_cache.iterdir()
    for damaged in flips_and_cuts(entry.read_bytes()):
        entry.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_sealed(entry)
        entry.write_bytes(damaged)
        assert load("usps", usps_root).fingerprint() == expected


USPS = {
    "label 99": ([libsvm_line(99, GOOD)], "labels in 1..10, got 99"),
    "label 0": ([libsvm_line(0, GOOD)], "labels in 1..10, got 0"),
    "negative label": ([libsvm_line(-3, GOOD)], "labels in 1..10, got -3"),
    "NaN pixel": ([libsvm_line(1, [math.nan] * 256)], "grey values in -1..1, got nan"),
    "infinite pixel": ([libsvm_line(1, [math.inf] * 256)], "grey values in -1..1, got inf"),
    "pixel 2": ([libsvm_line(1, [2.0] * 256)], "grey values in -1..1, got 2"),
    "257 pixels": ([libsvm_line(1, [0.5] * 257)], "got 257 after 256"),
    "index 0": (["1 0:0.5"], "got 0 after 0"),
    "index twice": (["1 3:0.5 3:0.6"], "got 3 after 3"),
    "no value": (["1 3"], "could not convert"),
    "no number": (["one 3:1"], "invalid literal"),
}


@pytest.mark.parametrize("fault", USPS)
@pytest.mark.parametrize("name", ["usps.bz2", "usps.t.bz2"])
def test_usps_faults_are_named(usps_root, fault, name):
    path, (lines, message) = usps_root / "usps" / name, USPS[fault]
    path.write_bytes(bz2_lines([libsvm_line(1, GOOD), *lines]))
    with pytest.raises(DatasetNotFoundError) as error:
        load("usps", usps_root)
    assert str(path) in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("content", [bz2.compress(b""), b"", bz2.compress(b"\n")])
def test_usps_without_an_image_is_refused(usps_root, content):
    path = usps_root / "usps" / "usps.t.bz2"
    path.write_bytes(content)
    with pytest.raises(DatasetNotFoundError, match=str(path)):
        load("usps", usps_root)


def test_images_of_one_grey_cannot_be_normalised(usps_root):
    (usps_root / "usps" / "usps.bz2").write_bytes(bz2_lines([libsvm_line(1, GOOD)] * 3))
    with pytest.raises(DatasetNotFoundError, match="all of one grey"):
        load("usps", usps_root)


RAW = "FashionMNIST/raw/"
LONG = gzip.compress(b"\0\0\x08\x01\xff\xff\xff\xff" + bytes(10))
FASHION = {
    "5 images, 3 labels": ("train-labels-idx1-ubyte.gz", idx_bytes(torch.arange(3)), "as many images"),
    "label 99": ("t10k-labels-idx1-ubyte.gz", idx_bytes(torch.full((10,), 99)), "y_test: expected labels in 0..9"),
    "14 x 14": ("t10k-images-idx3-ubyte.gz", idx_bytes(torch.zeros(10, 14, 14).long()), "28 x 28"),
    "images as labels": ("train-labels-idx1-ubyte.gz", idx_bytes(torch.zeros(30, 28, 28).long()), "as many images"),
    "sizes of 4 GB": ("train-labels-idx1-ubyte.gz", LONG, "expected 4294967295 bytes"),
    "no image": ("train-images-idx3-ubyte.gz", idx_bytes(torch.zeros(0, 28, 28).long()), "got 0"),
    "floats": ("train-labels-idx1-ubyte.gz", gzip.compress(b"\0\0\x0d\x01" + bytes(8)), "unsigned bytes"),
    "empty file": ("train-labels-idx1-ubyte.gz", b"", "begins with nothing"),
    "cut header": ("train-labels-idx1-ubyte.gz", gzip.compress(b"\0\0\x08\x03\0"), "unsigned bytes"),
    "one grey": ("train-images-idx3-ubyte.gz", idx_bytes(torch.full((30, 28, 28), 7)), "one grey"),
    "no gzip": ("train-images-idx3-ubyte.gz", b"not compressed", "BadGzipFile"),
}


@pytest.mark.parametrize("fault", FASHION)
def test_fashion_mnist_faults_are_named(fashion_root, fault):
    name, content, message = FASHION[fault]
    (fashion_root / RAW / name).write_bytes(content)
    with pytest.raises(DatasetNotFoundError) as error:
        load("fashion_mnist", fashion_root)
    assert name in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_truncated_archive_is_named(fashion_root, cut):
    path = fashion_root / RAW / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DatasetNotFoundError, match=path.name):
        load("fashion_mnist", fashion_root)


@needs_sklearn
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([17] + [0] * 64, "grey values in 0..16, got 17"),
        ([-1] + [0] * 64, "grey values in 0..16, got -1"),
        ([0.5] + [0] * 64, "expected integers, got 0.5"),
        (["nan"] + [0] * 64, "expected integers, got nan"),
        ([0] * 64 + [10], "labels in 0..9, got 10"),
        ([0] * 64, "rows of 65 numbers, got 64"),
        ([0] * 66, "rows of 65 numbers, got 66"),
    ],
)
def test_digits_faults_are_named(tmp_path, monkeypatch, row, message):
    path = tmp_path / "digits.csv.gz"
    good = [",".join(["3"] * 64 + ["1"])] * 4
    path.write_bytes(gzip.compress("\n".join([*good, ",".join(map(str, row))]).encode()))
    monkeypatch.setattr(sources, "find_digits", lambda: path)
    with pytest.raises(DatasetNotFoundError) as error:
        load("digits")
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_one_sample_is_too_few(tmp_path, monkeypatch):
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(gzip.compress(",".join(["3"] * 64 + ["1"]).encode()))
    monkeypatch.setattr(sources, "find_digits", lambda: path)
    with pytest.raises(DatasetNotFoundError, match="x_train"):
        load("digits")
    assert [len(part) for part in digits_split(1)] == [0, 1]


def test_a_file_that_cannot_be_opened_is_named(usps_root, monkeypatch):
    path = usps_root / "usps" / "usps.bz2"
    usual = type(path).read_bytes

    def read_bytes(self):
        if self == path:
            raise PermissionError(13, "Permission denied")
        return usual(self)

    monkeypatch.setattr(type(path), "read_bytes", read_bytes)
    with pytest.raises(DatasetNotFoundError, match=r"usps\.bz2: cannot be read \(Permission denied\)"):
        load("usps", usps_root)


def test_a_whole_cache_entry_of_something_else_is_rebuilt(usps_root, own_cache, caplog):
    expected = load("usps", usps_root).fingerprint()
    (entry,) = own_cache.iterdir()
    splits = read_sealed(entry)
    for other in (
        {},
        [1],
        {**splits, "y_train": splits["y_train"] + 90},
        {**splits, "y_test": splits["y_test"][:3]},
        {**splits, "x_train": splits["x_train"] * math.nan},
        {**splits, "x_test": splits["x_test"][:, :, :8]},
        {**splits, "x_test": splits["x_test"] * 255},
        {**splits, "x_train": splits["x_train"].double()},
    ):
        write_sealed(entry, other)
        assert load("usps", usps_root).fingerprint() == expected
    assert caplog.text.count("ignored and rebuilt") == 8
