"""benchmarks/curvature.py on small problems: rows that say what was measured, and results that were checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "curvature.py"
if not SCRIPT.exists():
    pytest.skip("benchmarks/ is not beside the tests", allow_module_level=True)


def _row(case: str, method: str, **environment: str) -> dict[str, object]:
    command = [sys.executable, str(SCRIPT), "--small", "--entries", "5", "--threads", "1", "--k", "2"]
    only = ["--only", json.dumps([case, method])]
    env = {**os.environ, **environment}
    done = subprocess.run([*command, *only], check=True, capture_output=True, text=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["MLP diagonal", "GGN spectrum"])
def test_a_row_is_measured_and_checked(case):
    row = _row(case, "chaos_ext")
    assert (row["case"], row["dtype"], row["threads"]) == (case, "float32", 1)
    assert 0 < row["fastest_seconds"] <= 5 * row["seconds"]
    assert row["peak_bytes"] >= row["bytes_before"] > 0
    assert 0 <= row["error"] < 1e-5


def test_a_row_without_its_data_says_so(tmp_path):
    row = _row("USPS pairs, batches of 256", "chaos_ext", CHAOS_EXT_DATA=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert "seconds" not in row
    assert row["skipped"].startswith("DatasetNotFoundError")
