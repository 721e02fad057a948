"""``torchrun -m chaos_ext reproduce``: units on several ranks, of which one may die."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from fig1_command import STRESS, reproduce

from chaos_ext.experiments import fleet
from chaos_ext.experiments.output import MANIFEST, WorkerError
from chaos_ext.experiments.settings import Unit

pytestmark = pytest.mark.usefixtures("digits_cache")

OPTIONS = (*STRESS, "--seeds", "3,4", "--threads", "1", "--checkpoint-every", "0.02")
RANK = """
import os, signal, sys, threading, time
from pathlib import Path
from chaos_ext import cli
from chaos_ext.experiments import fig1

fig1.Fig1.quick_steps = 150

def die():
    while not any(Path(sys.argv[2], "parts").glob("*.ckpt")):
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    if os.environ["RANK"] == sys.argv[1] and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        threading.Thread(target=die, daemon=True).start()
    sys.exit(cli.main(["-v", "reproduce", "fig1", "--quick", "--out", *sys.argv[2:]]))
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory, digits_cache):
    """metrics.csv of one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert reproduce(out, *OPTIONS, steps=150) == 0
    return (out / "metrics.csv").read_bytes()


def launched(tmp_path: Path, *, killed: int = -1, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """The study on two ranks, of which one kills itself once there is a checkpoint."""
    (tmp_path / "rank.py").write_text(RANK)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*launcher, "--max-restarts", str(restarts), str(tmp_path / "rank.py"), str(killed), str(tmp_path / "out")]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    return subprocess.run(
        [*words, *OPTIONS], capture_output=True, text=True, check=False, timeout=180, env=environment, cwd=tmp_path
    )


def test_ranks_share_units_and_one_writes(tmp_path, reference):
    done = launched(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == reference
    assert all(f"rank {r}: seed" in done.stderr for r in (0, 1))
    assert done.stdout.count("written to") == 1


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_is_started_again_and_goes_on(tmp_path, reference, killed):
    done = launched(tmp_path, killed=killed, restarts=1)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == reference


def test_without_restarts_one_process_resumes(tmp_path, reference):
    began = time.monotonic()
    assert launched(tmp_path, killed=1).returncode != 0
    assert time.monotonic() - began < 60
    assert not (tmp_path / "out" / "metrics.csv").exists()
    assert reproduce(tmp_path / "out", *OPTIONS, "--resume", steps=150) == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == reference


class _Settings:
    threads, data, data_fingerprint = 1, "", ""


def _fleets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int = 2) -> list[fleet.Fleet]:
    """Ranks in threads of this process."""
    data = type("Data", (), {"fingerprint": lambda self: ""})()
    monkeypatch.setattr(fleet, "load", lambda name, root: data)
    (tmp_path / MANIFEST).write_text("{}")
    store = torch.distributed.HashStore()
    return [fleet.Fleet(store, rank, count, 0) for rank in range(count)]


def _job(do, out: Path) -> fleet.Job:
    return fleet.Job((do, None), _Settings(), [Unit(s, "sgd") for s in range(4)], None, out, 1.0)


def _fails_on_odd_seeds(make, settings, unit, data, out, every, report):
    if unit.seed == 1:
        raise ArithmeticError("no such number")
    for _ in range(100):
        time.sleep(0.02)
        report(1, False)
    return {}


def test_what_one_rank_raises_all_hear_of(monkeypatch, tmp_path):
    first, second = _fleets(monkeypatch, tmp_path)
    raised: list[BaseException] = []

    def serve() -> None:
        time.sleep(0.2)  # the first unit is rank 0's
        try:
            second.serve()
        except Exception as e:
            raised.append(e)
            second.close(e)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(WorkerError, match=r"rank 1 failed(.|\n)*no such number(.|\n)*--resume"):
        first.run(_job(_fails_on_odd_seeds, tmp_path), None, lambda steps, restored: None)
    thread.join()
    first.close(None)
    assert isinstance(raised[0], ArithmeticError)


def test_a_rank_without_a_sign_of_life_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(fleet, "_LOST_SECONDS", 1.0)
    monkeypatch.setattr(fleet, "_BEAT_SECONDS", 0.1)
    first, second = _fleets(monkeypatch, tmp_path)
    second.close(None)  # its heart stops

    def look_again_and_again() -> None:
        while True:
            first.look()
            time.sleep(0.05)

    with pytest.raises(WorkerError, match="rank 1 gave no sign of life"):
        look_again_and_again()
    first.close(None)


def test_a_rank_that_does_not_see_the_folder_says_so(monkeypatch, tmp_path):
    first, second = _fleets(monkeypatch, tmp_path)
    first._put("job/0", _job(_fails_on_odd_seeds, tmp_path / "elsewhere"))
    with pytest.raises(WorkerError, match="share its file system"):
        second.serve()
    first.close(None)
    second.close(None)


def test_jobs_beside_ranks_are_refused(monkeypatch, tmp_path, capsys):
    first, second = _fleets(monkeypatch, tmp_path)
    monkeypatch.setattr(fleet, "_current", first)
    assert reproduce(tmp_path / "out", "--jobs", "2") == 2
    assert "--jobs" in capsys.readouterr().err
    first.close(None)
    second.close(None)


def test_interrupted_ranks_are_told(monkeypatch, tmp_path):
    first, second = _fleets(monkeypatch, tmp_path)
    first.close(KeyboardInterrupt())
    with pytest.raises(WorkerError, match="rank 0 was ended"):
        second.serve()
    second.close(None)


def test_only_several_ranks_of_torchrun_are_a_fleet(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert not fleet.is_launched()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not fleet.is_launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert fleet.is_launched()


def test_what_an_earlier_life_has_left_in_the_store_is_not_seen():
    """One rank of an earlier life had come, and left a job; its store is the same, and that was no restart."""
    store, stores = torch.distributed.HashStore(), {}
    early = threading.Thread(target=lambda: stores.setdefault("early", fleet._own_store(store, 0, 1)))
    early.start()
    early.join()
    stores["early"].set("job/0", "stale")
    store.set("chaos_ext/word/1", "said by one that is gone")
    threads = [
        threading.Thread(target=lambda r=r: stores.setdefault(r, fleet._own_store(store, r, 3))) for r in (2, 0, 1)
    ]
    for t in threads:
        t.start()
        time.sleep(0.2)
    for t in threads:
        t.join()
    assert not any(stores[r].check(["job/0"]) for r in range(3))
    stores[0].set("job/0", "new")
    assert all(stores[r].get("job/0") == b"new" for r in range(3))


def test_ranks_that_do_not_come_are_told_of(monkeypatch):
    monkeypatch.setattr(fleet, "_JOIN_SECONDS", 0.3)
    with pytest.raises(WorkerError, match="for all 2 ranks"):
        fleet._own_store(torch.distributed.HashStore(), 0, 2)


def test_a_store_that_is_gone_is_said_so():
    class Gone:
        def add(self, *_):
            raise torch.distributed.DistNetworkError("connection reset")

        set = get = check = add

    lost = fleet.Fleet(Gone(), 1, 2, 0)
    for call in (lambda: lost.add("steps", 1), lost.look, lost.serve):
        with pytest.raises(WorkerError, match=r"rank 1 lost the store .*connection reset.*--resume"):
            call()
    lost.close(None)
