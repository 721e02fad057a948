"""The command ``chaos-ext reproduce fig1`` in this process, and what it wrote, for the tests of it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason='fig1 needs matplotlib: pip install ".[figures]"')
pytest.importorskip("sklearn", reason='fig1 needs scikit-learn for digits: pip install ".[figures]"')

from chaos_ext import cli
from chaos_ext.experiments import fig1

OUTPUTS = ["figure.pdf", "figure.png", "manifest.json", "metrics.csv", "summary.csv"]

# Two runs of one seed in which optimizer state and random pruning matter.
STRESS = ("--seeds", "3", "--prune", "chaotic", "--k", "5", "--order", "random", "--momentum", "0.9")


def reproduce(out: Path, *options: str, steps: int = 7) -> int:
    """Runs the command in this process with so few steps for --quick and returns its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fig1.Fig1, "quick_steps", steps)
        try:
            return cli.main(["reproduce", "fig1", "--quick", "--out", str(out), *options])
        except SystemExit as end:
            return end.code


def read(out: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv."""
    with (out / "metrics.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], status: int, *needed: str) -> None:
    """Exit status 2 and one line that holds the needed words."""
    assert status == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in needed), line


COMMAND = """
import os, sys, threading, time
from pathlib import Path
from chaos_ext import cli
from chaos_ext.experiments import fig1

fig1.Fig1.quick_steps = int(sys.argv[1])

def checkpoints():
    return {p.name: p.stat().st_mtime_ns for p in Path(sys.argv[5], "parts").glob("*.ckpt")}

def end(before, signum, delay):
    while checkpoints() == before:
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(os.getpid(), signum)

if __name__ == "__main__":
    if int(sys.argv[2]):
        threading.Thread(target=end, args=(checkpoints(), int(sys.argv[2]), float(sys.argv[3])), daemon=True).start()
    sys.exit(cli.main(["reproduce", "fig1", "--quick", *sys.argv[4:]]))
"""


def spawn(
    tmp_path: Path, steps: int, out: Path, *options: str, signum: int = 0, delay: float = 0.0
) -> subprocess.Popen[str]:
    """The command with ``--resume`` in a process of its own.

    With a signal it sends that to itself, so many seconds after it has written a checkpoint: a test that looked on from
    outside would be too early or too late on a busy machine.
    """
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    command = [
        sys.executable,
        str(script),
        str(steps),
        str(signum),
        str(delay),
        "--out",
        str(out),
        "--resume",
        *options,
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_progress(process: subprocess.Popen[str], out: Path, deadline: float = 60) -> None:
    """Until training writes, or the process has ended."""
    end, before = time.monotonic() + deadline, _written(out)
    while process.poll() is None and _written(out) == before and time.monotonic() < end:
        time.sleep(0.005)


def _written(out: Path) -> list[tuple[str, int]]:
    return [(p.name, p.stat().st_mtime_ns) for p in sorted(out.glob("parts/*")) if not p.name.startswith(".")]
