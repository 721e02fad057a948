"""Where and on what a result was measured, and the JSON files that hold results.

Import this before torch: worker threads must sleep, not spin, while they wait, or CPU seconds count their spinning.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import chaos_ext as ce

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def _git(*args: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment() -> dict[str, Any]:
    """Commit, machine, versions and load at this moment."""
    dirty = "+changes" if _git("status", "--porcelain", "--untracked-files=no", "chaos_ext", "csrc") else ""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": (_git("rev-parse", "--short", "HEAD") or "unknown") + dirty,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "load_average": [round(v, 2) for v in os.getloadavg()],
        "omp_wait_policy": os.environ["OMP_WAIT_POLICY"],
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{k: v for k, v in ce.build_info().items() if k in ("version", "torch", "cpu_capability")},
    }


def write(name: str, rows: list[dict[str, Any]], started: dict[str, Any]) -> Path:
    """Writes results/<name>.json: the environment at the start, the load at the end, and the rows, one a line."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    header = {**started, "load_average_at_end": [round(v, 2) for v in os.getloadavg()]}
    lines = ",\n".join("    " + json.dumps(row) for row in rows)
    path = RESULTS / f"{name}.json"
    path.write_text(f'{{\n  "environment": {json.dumps(header)},\n  "rows": [\n{lines}\n  ]\n}}\n')
    return path


def best_of(
    run: Callable[[], object],
    *,
    seconds: float = 0.5,
    least: int = 3,
    most: int = 100,
    timer: Callable[[], float] = time.process_time,
) -> tuple[float, int]:
    """The minimum time of one run, and how many runs it is the minimum of: at least ``least`` after a first one that
    does not count (one, where the first took longer than twice ``seconds``), then until ``seconds`` are used up."""
    start = timer()
    run()
    if timer() - start > 2 * seconds:
        least = 1
    times: list[float] = []
    while len(times) < least or (sum(times) < seconds and len(times) < most):
        start = timer()
        run()
        times.append(timer() - start)
    return min(times), len(times)
