"""Files of data sets: where they are looked for, the cache, and what is damaged; nothing is written under root."""

import bz2
import os

import pytest

from chaos_ext import DatasetNotFoundError
from chaos_ext.data import NAMES, load, sources

pytestmark = pytest.mark.usefixtures("own_cache")


def snapshot(root):
    return {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in [root, *root.rglob("*")]}


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
