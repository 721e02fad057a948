"""``chaos-ext reproduce fig1`` killed at any moment, alone or with its workers, ends with the same bytes on resume."""

import random
import re
import signal
import subprocess
import sys

import pytest
from fig1_command import OUTPUTS, STRESS, reproduce, spawn, wait_for_progress

from chaos_ext.base.files import read_sealed

pytestmark = pytest.mark.usefixtures("digits_cache")


@pytest.fixture(scope="module")
def reference(tmp_path_factory, digits_cache):
    """metrics.csv of a run that nobody disturbed, over the end of an epoch (180 steps)."""
    out = tmp_path_factory.mktemp("reference") / "out"
    assert reproduce(out, *STRESS, steps=200) == 0
    return (out / "metrics.csv").read_bytes()


def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path, reference):
    out, chance = tmp_path / "out", random.Random(0)
    options = (*STRESS, "--checkpoint-every", "0.02")
    for _ in range(3):
        with spawn(tmp_path, 200, out, *options, signum=signal.SIGKILL, delay=chance.uniform(0, 0.2)) as process:
            assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert not (out / "metrics.csv").exists()
    assert any(out.glob("parts/*.ckpt"))  # so the next start continues instead of starting anew
    with spawn(tmp_path, 200, out, *options) as process:
        assert process.wait() == 0, process.stderr.read()
    assert (out / "metrics.csv").read_bytes() == reference
    assert sorted(p.name for p in out.iterdir()) == OUTPUTS


def test_processes_share_the_work_without_changing_it_even_when_killed(tmp_path, reference):
    """The parent is killed: its workers must end by themselves and leave the files to the next start."""
    out = tmp_path / "out"
    options = (*STRESS, "--jobs", "2", "--checkpoint-every", "0.02")
    process = spawn(tmp_path, 200, out, *options)
    wait_for_progress(process, out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    with spawn(tmp_path, 200, out, *options) as process:
        assert process.wait() == 0, process.stderr.read()
    assert (out / "metrics.csv").read_bytes() == reference


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_writes_a_checkpoint_and_says_so(tmp_path, reference, jobs, signum):
    out, options = tmp_path / "out", (*STRESS, "--jobs", jobs, "--checkpoint-every", "0.1")
    with spawn(tmp_path, 200, out, *options, signum=signum) as process:
        assert process.wait() == 128 + signum
        *progress, line = process.stderr.read().split("\n")[:-1]  # on a busy machine there is time for progress
    assert all("steps/s" in text for text in progress if text)
    word = "terminated" if signum == signal.SIGTERM else "interrupted"
    assert line.startswith(f"chaos-ext: {word}; a checkpoint was written (seed3-")
    assert line.endswith("--resume continues")
    for name, step in re.findall(r"(seed3-\w+) at step (\d+)", line):
        assert read_sealed(out / "parts" / f"{name}.ckpt")["state"]["step"] == int(step)
    with spawn(tmp_path, 200, out, *options) as process:
        assert process.wait() == 0
        assert "starts anew" not in process.stderr.read()
    assert (out / "metrics.csv").read_bytes() == reference


EVERY_FILE_OPERATION = """
import os, sys, torch, torch._dynamo  # what every child would import anew
torch.set_num_threads(1)  # before any thread pool exists, so that forking is safe
from pathlib import Path
from chaos_ext import cli
from chaos_ext.experiments import fig1, study
fig1.Fig1.quick_steps = 3
fig1.Fig1.draw = lambda *_: None
study.write_figure = lambda path, _: [path.with_suffix(f".{k}").touch() for k in ("png", "pdf")]
base, stride = Path(sys.argv[1]), int(sys.argv[2])
options = ["--prune", "positive", "--momentum", "0.9", "--checkpoint-every", "1e-9", "--resume"]

def child(out, die_at):
    pid = os.fork()
    if pid == 0:
        seen = [0]
        def hook(event, arguments):
            mine = arguments and isinstance(arguments[0], (str, os.PathLike)) and str(arguments[0]).startswith(str(out))
            if mine and event.partition(".")[0] in ("open", "os", "shutil", "pathlib", "tempfile"):
                seen[0] += 1
                if seen[0] == die_at:
                    os._exit(9)
        sys.addaudithook(hook)
        with open(os.devnull, "w") as sys.stdout:
            status = cli.main(["reproduce", "fig1", "--quick", "--out", str(out), *options])
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

assert child(base / "whole", None) == 0
expected = (base / "whole" / "metrics.csv").read_bytes()
names = sorted(p.name for p in (base / "whole").iterdir())
for die_at in range(1, 10_000, stride):
    out = base / str(die_at)
    first = child(out, die_at)
    if first == 0:
        break
    assert first == 9, (die_at, first)
    assert child(out, None) == 0, die_at
    assert (out / "metrics.csv").read_bytes() == expected, die_at
    assert sorted(p.name for p in out.iterdir()) == names, die_at
print(die_at)
"""


def test_killed_before_any_file_operation_it_resumes_to_the_same_bytes(tmp_path):
    """Every operation on a file under --out is a moment to die at; we die at every third of them."""
    script = tmp_path / "every.py"
    script.write_text(EVERY_FILE_OPERATION)
    command = [sys.executable, str(script), str(tmp_path), "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40  # the hook did see the operations
