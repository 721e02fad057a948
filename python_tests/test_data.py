"""Data sets: parsed exactly as torchvision does, normalised by the training split, never written under root."""

import bz2
import gzip
import hashlib
import os
import struct
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from chaos_ext import DatasetNotFoundError
from chaos_ext.data import NAMES, BatchOrder, batch_hash, batches, load, sources
from chaos_ext.data.datasets import digits_split

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL_ROOT = Path(os.environ.get("CHAOS_EXT_DATA") or SHARED)
needs_sklearn = pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn is not installed")


def needs_real(name):
    files = sources.USPS_FILES if name == "usps" else sources.FASHION_MNIST_FILES
    absent = not all((REAL_ROOT / f).is_file() for f in files)
    return pytest.mark.skipif(absent, reason=f"the files of {name} are not under {REAL_ROOT}")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or fills the user's cache, and none downloads."""

    def offline(folder):
        raise OSError("no network in tests")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CHAOS_EXT_DATA", raising=False)
    monkeypatch.setattr(sources, "download_usps", offline)
    monkeypatch.setattr(sources, "download_fashion_mnist", offline)
    return tmp_path / "cache" / "chaos_ext"


def libsvm_line(label, values):
    return " ".join([str(label), *(f"{i}:{v:g}" for i, v in enumerate(values, 1))])


@pytest.fixture
def usps_root(tmp_path):
    """A small root with usps/: 20 training images of all ten labels and 5 test images."""
    g = torch.Generator().manual_seed(0)
    folder = tmp_path / "root" / "usps"
    folder.mkdir(parents=True)
    for name, n in (("usps.bz2", 20), ("usps.t.bz2", 5)):
        values = (torch.rand(n, 256, generator=g) * 2 - 1).mul(1000).round().div(1000)
        lines = [libsvm_line(i % 10 + 1, row.tolist()) for i, row in enumerate(values)]
        (folder / name).write_bytes(bz2.compress(("\n".join(lines) + "\n").encode()))
    return folder.parent


def idx_bytes(t):
    header = struct.pack(f">HBB{t.dim()}I", 0, 8, t.dim(), *t.shape)
    return gzip.compress(header + bytes(t.flatten().tolist()))


@pytest.fixture
def fashion_root(tmp_path):
    g = torch.Generator().manual_seed(1)
    folder = tmp_path / "root" / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for split, n in (("train", 30), ("t10k", 10)):
        images = torch.randint(256, (n, 28, 28), generator=g)
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(idx_bytes(images))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(idx_bytes(torch.arange(n) % 10))
    return folder.parents[1]


def snapshot(root):
    return {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in [root, *root.rglob("*")]}


# --- what load returns ---


@needs_sklearn
def test_digits_is_a_fixed_split_of_the_1797_uci_digits():
    d = load("digits")
    assert d.x_train.shape == (1437, 1, 16, 16)
    assert d.x_test.shape == (360, 1, 16, 16)
    assert d.x_train.dtype == torch.float32
    assert d.y_train.dtype == torch.int64
    assert (d.name, d.classes) == ("digits", 10)
    # Pinned: a change of this value changes every published digits result.
    assert d.fingerprint() == "0532140962737a7a"


def test_digits_split_parts_all_samples():
    train, test = digits_split(1797)
    assert torch.cat([train, test]).sort().values.tolist() == list(range(1797))
    assert (len(train), len(test)) == (1437, 360)


@needs_sklearn
def test_digits_are_scikit_learns_upsampled():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    bundle = sklearn_datasets.load_digits()
    train, test = digits_split(1797)
    pixels = torch.tensor(bundle.images, dtype=torch.float32).unsqueeze(1) / 16
    d = load("digits")
    for index, x, y in ((train, d.x_train, d.y_train), (test, d.x_test, d.y_test)):
        assert torch.equal(torch.tensor(bundle.target)[index], y)
        back = torch.nn.functional.avg_pool2d(x * d.std + d.mean, 2)
        # Averaging a bilinear upsampling by two blurs each pixel with its neighbours, 1/8 from each side.
        padded = torch.nn.functional.pad(pixels[index], (1, 1, 1, 1), mode="replicate")
        blur = torch.tensor([0.125, 0.75, 0.125])
        expected = torch.nn.functional.conv2d(padded, (blur[:, None] * blur).view(1, 1, 3, 3))
        torch.testing.assert_close(back, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("digits", marks=needs_sklearn), "usps", "fashion_mnist"])
def test_training_split_has_mean_zero_and_std_one(name, request):
    root = {"usps": "usps_root", "fashion_mnist": "fashion_root"}.get(name)
    d = load(name, request.getfixturevalue(root) if root else None)
    assert d.x_train.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert d.x_train.double().std().item() == pytest.approx(1, abs=1e-6)
    # The test split is moved by the training statistics, not by its own.
    assert abs(d.x_test.double().mean().item()) > 1e-6
    pixels = d.x_test.double() * d.std + d.mean
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6


@needs_sklearn
def test_to_changes_images_and_moves_labels_without_changing_their_type():
    d = load("digits").to(torch.float64)
    assert d.x_train.dtype == d.x_test.dtype == torch.float64
    assert d.y_train.dtype == d.y_test.dtype == torch.int64


@needs_sklearn
def test_statistics_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    try:
        seen = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            d = load("digits")
            seen.append((d.mean, d.std, d.fingerprint()))
    finally:
        torch.set_num_threads(threads)
    assert seen[0] == seen[1] == seen[2]


# --- parsing, against torchvision ---


def test_usps_text_becomes_what_torchvision_makes_of_it(usps_root):
    datasets = pytest.importorskip("torchvision.datasets")
    d = load("usps", usps_root)
    for train, x, y in ((True, d.x_train, d.y_train), (False, d.x_test, d.y_test)):
        official = datasets.USPS(str(usps_root / "usps"), train=train)
        assert torch.equal(
            (x * d.std + d.mean).mul(255).round().squeeze(1).to(torch.uint8), torch.tensor(official.data)
        )
        assert y.tolist() == official.targets


def test_usps_values_by_hand():
    row = [-1.0] * 254 + [0.0, 1.0]
    grey, labels = sources.parse_usps(bz2.compress((libsvm_line(10, row) + "\n").encode()))
    assert grey.shape == (1, 1, 16, 16)
    assert grey.flatten().tolist() == [0] * 254 + [127, 255]
    assert labels.tolist() == [9]


@needs_real("usps")
def test_real_usps_equals_torchvision():
    datasets = pytest.importorskip("torchvision.datasets")
    for name, train, n in (("usps.bz2", True, 7291), ("usps.t.bz2", False, 2007)):
        grey, labels = sources.parse_usps((REAL_ROOT / "usps" / name).read_bytes())
        official = datasets.USPS(str(REAL_ROOT / "usps"), train=train)
        assert len(labels) == n
        assert torch.equal(grey.squeeze(1), torch.tensor(official.data))
        assert labels.tolist() == official.targets


def test_fashion_mnist_is_resized_as_torchvision_does(fashion_root):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    d = load("fashion_mnist", fashion_root)
    raw = sources.parse_idx((fashion_root / "FashionMNIST/raw/t10k-images-idx3-ubyte.gz").read_bytes())
    expected = v2.functional.resize(raw.unsqueeze(1).float() / 255, [16, 16], antialias=True)
    torch.testing.assert_close(d.x_test * d.std + d.mean, expected, rtol=0, atol=1e-5)
    assert d.y_test.tolist() == list(range(10))


@needs_real("fashion_mnist")
def test_real_fashion_mnist_has_its_official_shape():
    folder = REAL_ROOT / "FashionMNIST" / "raw"
    assert sources.parse_idx((folder / "t10k-images-idx3-ubyte.gz").read_bytes()).shape == (10000, 28, 28)
    labels = sources.parse_idx((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    assert labels.bincount().tolist() == [6000] * 10


# --- files, cache, errors ---


def test_root_may_come_from_the_environment(usps_root, monkeypatch):
    monkeypatch.setenv("CHAOS_EXT_DATA", str(usps_root))
    assert load("usps").fingerprint() == load("usps", usps_root).fingerprint()


def test_nothing_is_written_under_root(usps_root, fashion_root):
    before = snapshot(usps_root)
    load("usps", usps_root)
    load("fashion_mnist", fashion_root)
    assert snapshot(usps_root) == before


def test_second_load_reads_the_cache_instead_of_the_text(usps_root, monkeypatch, own_cache):
    first = load("usps", usps_root)
    assert len(list(own_cache.iterdir())) == 1
    monkeypatch.setattr(sources, "parse_usps", lambda raw: pytest.fail("parsed although cached"))
    assert load("usps", usps_root).fingerprint() == first.fingerprint()


def test_cache_entry_of_other_files_is_not_used(usps_root):
    first = load("usps", usps_root)
    path = usps_root / "usps" / "usps.bz2"
    stat = path.stat()
    lines = bz2.decompress(path.read_bytes()).splitlines()
    path.write_bytes(bz2.compress(b"\n".join(reversed(lines))))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a cache that trusts the time would be fooled
    assert load("usps", usps_root).fingerprint() != first.fingerprint()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1])])
def test_damaged_cache_entry_is_rebuilt(usps_root, own_cache, damage):
    first = load("usps", usps_root)
    (entry,) = own_cache.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert load("usps", usps_root).fingerprint() == first.fingerprint()
    assert len(entry.read_bytes()) == len(whole)


def test_unwritable_cache_is_no_obstacle(usps_root, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load("usps", usps_root).y_train) == 20


@pytest.mark.parametrize("name", ["usps", "fashion_mnist"])
def test_missing_files_are_named_with_the_remedy(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetNotFoundError) as error:
        load(name, tmp_path / "empty")
    text = str(error.value)
    files = sources.USPS_FILES if name == "usps" else sources.FASHION_MNIST_FILES
    assert all(f in text for f in files)
    for part in (str(tmp_path / "empty"), str(sources.cache_dir()), "--root", "CHAOS_EXT_DATA"):
        assert part in text
    assert isinstance(error.value, FileNotFoundError)


def test_missing_files_are_downloaded_into_the_cache(usps_root, tmp_path, monkeypatch, own_cache):
    def download(folder):
        (folder / "usps").mkdir()
        for name in ("usps.bz2", "usps.t.bz2"):
            (folder / "usps" / name).write_bytes((usps_root / "usps" / name).read_bytes())

    monkeypatch.setattr(sources, "download_usps", download)
    (tmp_path / "empty").mkdir()
    assert load("usps", tmp_path / "empty").fingerprint() == load("usps", usps_root).fingerprint()
    assert list((tmp_path / "empty").iterdir()) == []
    assert (own_cache / "usps" / "usps.bz2").is_file()


def test_interrupted_download_leaves_nothing_behind(monkeypatch, own_cache):
    def breaks(folder):
        (folder / "usps").mkdir()
        (folder / "usps" / "usps.bz2").write_bytes(b"half")
        raise OSError("connection lost")

    monkeypatch.setattr(sources, "download_usps", breaks)
    with pytest.raises(DatasetNotFoundError, match="connection lost"):
        load("usps")
    assert list(own_cache.rglob("*")) == []


def test_damaged_file_in_root_is_named(usps_root):
    path = usps_root / "usps" / "usps.bz2"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetNotFoundError, match="cannot be read") as error:
        load("usps", usps_root)
    assert str(path) in str(error.value)
    assert path.exists()  # it is the user's


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="digits, usps, fashion_mnist") as error:
        load("mnist")
    assert "'mnist'" in str(error.value)
    assert NAMES == ("digits", "usps", "fashion_mnist")


# --- the order of batches ---


@pytest.mark.parametrize(("n", "size"), [(1, 1), (7, 3), (8, 4), (7291, 8), (5, 9)])
def test_an_epoch_holds_every_sample_once(n, size):
    order = BatchOrder(n, size, seed=3)
    epoch = order.epoch(0)
    assert len(epoch) == order.steps_per_epoch
    assert torch.cat(epoch).sort().values.tolist() == list(range(n))
    assert all(len(b) == size for b in epoch[:-1])
    assert [b.tolist() for b in batches(n, size, 3, 0)] == [b.tolist() for b in epoch]


def test_forty_epochs_of_usps_are_the_papers_36480_steps():
    order = BatchOrder(7291, 8, seed=42)
    assert 40 * order.steps_per_epoch == 36480
    assert len(order.epoch(0)[-1]) == 3  # the incomplete batch is kept


def test_order_depends_on_seed_and_epoch_only():
    def flat(seed, epoch):
        return torch.cat(BatchOrder(100, 8, seed).epoch(epoch)).tolist()

    torch.manual_seed(0)
    first = flat(42, 1)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert flat(42, 1) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert first != flat(42, 2)
    assert first != flat(43, 1)
    # (seed, epoch) must not collapse into seed + epoch: runs of neighbouring seeds would share epochs.
    assert flat(1, 2) != flat(2, 1)


@pytest.mark.parametrize("field", ["n", "batch_size"])
def test_empty_orders_are_refused(field):
    with pytest.raises(ValueError, match=field):
        BatchOrder(**{"n": 5, "batch_size": 2, "seed": 0, field: 0})


def test_batch_hash_changes_with_every_part_of_a_batch():
    x, y, index = torch.arange(8.0).view(2, 4), torch.tensor([0, 1]), torch.tensor([5, 6])
    other = x.clone()
    other[1, 3] += 1e-6
    seen = [
        batch_hash(x, y),
        batch_hash(x, y, index),
        batch_hash(x, y, index.flip(0)),
        batch_hash(x.double(), y),
        batch_hash(x.view(4, 2), y),
        batch_hash(other, y),
        batch_hash(x, y.flip(0)),
    ]
    assert len(set(seen)) == len(seen)
    assert batch_hash(x.T.contiguous().T, y) == batch_hash(x, y)  # values count, not strides


def test_batch_hash_is_the_documented_sha256():
    x, y = torch.tensor([1.0]), torch.tensor([2])
    expected = hashlib.sha256(b"torch.float32(1,)" + struct.pack("<f", 1) + b"torch.int64(1,)" + struct.pack("<q", 2))
    assert batch_hash(x, y) == expected.hexdigest()[:16]
