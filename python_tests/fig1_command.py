"""The command ``chaos-ext reproduce fig1`` in this process, and what it wrote, for the tests of it."""

from __future__ import annotations

import csv
import json
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
        patch.setattr(fig1, "_QUICK_STEPS", steps)
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
