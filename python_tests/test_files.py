"""Files that are whole or absent: sealed, atomic, safe from each other's writers and from links."""

import os
import stat
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from damage import flips_and_cuts

from chaos_ext.base import files
from chaos_ext.errors import CheckpointError

CONTENT = {"a": torch.arange(40.0), "b": [1, None, "x"]}


def is_content(got):
    return torch.equal(got["a"], CONTENT["a"]) and got["b"] == CONTENT["b"]


def test_every_flipped_bit_and_every_cut_is_refused(tmp_path):
    path = tmp_path / "f"
    files.write_sealed(path, CONTENT)
    whole = path.read_bytes()
    assert is_content(files.read_sealed(path))
    for damaged in flips_and_cuts(whole):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=str(path)):
            files.read_sealed(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError):
        files.read_sealed(path)


def test_a_file_can_only_hold_tensors_and_plain_values(tmp_path):
    files.write_sealed(tmp_path / "f", {"path": tmp_path})
    with pytest.raises(CheckpointError, match="cannot be read"):
        files.read_sealed(tmp_path / "f")


def test_the_temporary_name_cannot_be_foreseen_and_is_gone_afterwards(tmp_path, monkeypatch):
    seen = set()
    for _ in range(20):
        files.atomic_write(tmp_path / "f", lambda f: seen.add(os.path.basename(f.name)))
    assert len(seen) == 20
    assert all(name.startswith(files.TEMPORARY_PREFIX) and len(name) >= 32 for name in seen)
    assert os.listdir(tmp_path) == ["f"]


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "guessed")
    (tmp_path / f"{files.TEMPORARY_PREFIX}guessed").symlink_to(victim)
    with pytest.raises(FileExistsError):
        files.atomic_write(tmp_path / "f", b"data")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "f").exists()


def test_a_link_at_the_destination_is_replaced_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "f").symlink_to(victim)
    files.atomic_write(tmp_path / "f", b"data")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "f").is_symlink()


def test_the_users_umask_decides_who_may_read_and_is_left_alone(tmp_path):
    mask = os.umask(0o027)
    try:
        files.atomic_write(tmp_path / "f", b"data")
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)


def test_a_missing_folder_is_named_by_the_path_that_was_given(tmp_path):
    with pytest.raises(FileNotFoundError, match="none/f") as error:
        files.atomic_write(tmp_path / "none" / "f", b"data")
    assert files.TEMPORARY_PREFIX not in str(error.value)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_the_old_files(tmp_path, error):
    def fail(f):
        f.write(b"half")
        raise error

    path, previous = tmp_path / "f", tmp_path / "f.previous"
    files.atomic_write(path, b"old")
    with pytest.raises(type(error)):
        files.atomic_write(path, fail, previous)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def write_many(path, writer):
    for i in range(40):
        files.write_keeping_previous(path, {"writer": writer, "values": torch.full((200,), float(i))})


def test_concurrent_writers_leave_one_whole_file_and_nothing_else(tmp_path):
    path = tmp_path / "f"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(write_many, path, w) for w in range(2)]:
            done.result()
    last = files.read_or_previous(path)
    assert last["values"].unique().numel() == 1
    assert set(os.listdir(tmp_path)) == {"f", "f.previous"}
