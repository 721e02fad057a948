"""What an experiment leaves behind: metrics.csv, summary.csv, figures and manifest.json."""

from __future__ import annotations

import csv
import hashlib
import logging
import math
import platform
import statistics
import subprocess
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

import chaos_ext as ce

from ..base.files import atomic_write
from .output import METRICS, OutputFolder
from .rows import COLUMNS, HEADER
from .settings import Settings, Unit

log = logging.getLogger("chaos_ext")

SUMMARY = "summary.csv"
_MEANS = tuple(c for c in COLUMNS if c.startswith(("n_", "share_", "lambda_")))
SUMMARY_COLUMNS = (
    *("run", "seeds", "steps", "train_loss", "train_loss_sd", "train_accuracy", "val_loss", "val_accuracy"),
    *(f"mean_{c}" for c in _MEANS),
)
Records = Mapping[Unit, dict[str, Any]]


def write_metrics(out: OutputFolder, units: Iterable[Unit]) -> dict[str, Any]:
    """Joins the rows of all units into metrics.csv; returns its number of rows, size and SHA-256."""
    sha, size, rows = hashlib.sha256(), 0, -1  # the header is no row

    def write(f: BinaryIO) -> None:
        nonlocal size, rows
        for piece in _pieces(out, units):
            f.write(piece)
            sha.update(piece)
            size, rows = size + len(piece), rows + piece.count(b"\n")

    atomic_write(out.path / METRICS, write)
    return {"rows": rows, "bytes": size, "sha256": sha.hexdigest()}


def _pieces(out: OutputFolder, units: Iterable[Unit]) -> Iterable[bytes]:
    yield HEADER
    for unit in units:
        with out.rows(unit).open("rb") as f:
            while piece := f.read(1 << 20):
                yield piece


def metrics_intact(out: OutputFolder, described: Mapping[str, Any]) -> bool:
    """Whether metrics.csv is the file that a manifest describes."""
    path, sha = out.path / METRICS, hashlib.sha256()
    if not path.is_file():
        return False
    with path.open("rb") as f:
        while piece := f.read(1 << 20):
            sha.update(piece)
    return sha.hexdigest() == described.get("sha256")


def require_twins(units: Iterable[Unit], records: Records) -> dict[str, list[str]]:
    """The batch hashes of each seed, one an epoch, after checking that all its runs saw the same batches.

    Raises:
        RuntimeError: they did not; the runs must not be compared.
    """
    seen: dict[str, list[str]] = {}
    for unit in units:
        record = records[unit]
        # A run that broke off has hashed only the beginning of its last epoch.
        mine = record["epoch_hashes"][: -1 if record["failure"] else None]
        longest = seen.setdefault(str(unit.seed), mine)
        if any(a != b for a, b in zip(mine, longest, strict=False)):
            raise RuntimeError(f"{unit.name} saw other batches than the runs before it with the same seed")
        if len(mine) > len(longest):
            seen[str(unit.seed)] = mine
    return seen


class _Series:
    """Running summary of one unit's rows."""

    def __init__(self, last: int) -> None:
        self.steps = 0
        self.tail: deque[tuple[float, float]] = deque(maxlen=last)
        self.sums = dict.fromkeys(_MEANS, 0.0)
        self.val_loss = self.val_accuracy = float("nan")

    def add(self, row: Mapping[str, str]) -> None:
        self.steps += 1
        self.tail.append((float(row["loss"]), float(row["accuracy"])))
        for name in _MEANS:
            self.sums[name] += float(row[name])
        if row["val_loss"]:
            self.val_loss, self.val_accuracy = float(row["val_loss"]), float(row["val_accuracy"])


def write_summary(out: OutputFolder, last: int) -> list[dict[str, Any]]:
    """Writes summary.csv, one row a run, from metrics.csv and returns its rows.

    train_loss and train_accuracy are means over the last ``last`` steps (an epoch) of every seed, then over seeds;
    train_loss_sd is the standard deviation over seeds (empty for one); val_* are those of the last evaluation, and
    mean_* are means over all steps, both averaged over seeds.
    """
    series: dict[str, dict[str, _Series]] = {}
    with (out.path / METRICS).open(newline="") as f:
        for row in csv.DictReader(f):
            series.setdefault(row["run"], {}).setdefault(row["seed"], _Series(last)).add(row)
    rows = [_summarise(run, list(seeds.values())) for run, seeds in series.items()]

    lines = [",".join(SUMMARY_COLUMNS)]
    lines += [",".join("" if row[c] is None else str(row[c]) for c in SUMMARY_COLUMNS) for row in rows]
    atomic_write(out.path / SUMMARY, "\n".join(lines) + "\n")
    return rows


def _summarise(run: str, seeds: list[_Series]) -> dict[str, Any]:
    losses = [statistics.fmean(loss for loss, _ in s.tail) for s in seeds]
    values: dict[str, Any] = {
        "train_loss": statistics.fmean(losses),
        "train_loss_sd": statistics.stdev(losses) if len(losses) > 1 else None,
        "train_accuracy": statistics.fmean(statistics.fmean(a for _, a in s.tail) for s in seeds),
        "val_loss": statistics.fmean(s.val_loss for s in seeds),
        "val_accuracy": statistics.fmean(s.val_accuracy for s in seeds),
    }
    values |= {f"mean_{name}": statistics.fmean(s.sums[name] / s.steps for s in seeds) for name in _MEANS}
    # No NaN: an evaluation that never came is as empty here as in metrics.csv, and JSON has no NaN.
    rounded = {n: None if v is None or math.isnan(v) else float(f"{v:.6g}") for n, v in values.items()}
    return {"run": run, "seeds": len(seeds), "steps": sum(s.steps for s in seeds), **rounded}


def describe_runs(units: Iterable[Unit], records: Records) -> list[dict[str, Any]]:
    """What the manifest says of each run: steps, time per step, closeness to the zero threshold, failure."""

    def describe(unit: Unit) -> dict[str, Any]:
        record = records[unit]
        steps = record["steps"]
        return {
            "run": unit.run,
            "seed": unit.seed,
            "steps": steps,
            "seconds_per_step_mean": record["seconds"] / steps if steps else None,
            "seconds_per_step_min": record["fastest"] if steps else None,
            "mean_n_near_threshold": record["near"][0] / steps if steps else None,
            "mean_share_near_threshold": record["near"][1] / steps if steps else None,
            "failure": record["failure"],
        }

    return [describe(unit) for unit in units]


def environment(settings: Settings, jobs: int) -> dict[str, Any]:
    """Versions, commit and machine, for the manifest."""
    try:
        import numpy

        numpy_version = numpy.__version__
    except ImportError:
        numpy_version = None
    versions = {"python": platform.python_version(), "torch": settings.torch, "numpy": numpy_version}
    device = torch.device(settings.device)
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "versions": {"chaos_ext": settings.chaos_ext, **versions},
        "commit": _commit(),
        "build": ce.build_info(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": _cpu_model(),
            "accelerator": accelerator,
            "threads": settings.threads,
            "jobs": jobs,
        },
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the source tree that this package is imported from, with "-dirty" if it has changes, or None."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():  # an installed copy; git would answer for whatever repository lies around it
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError) as error:  # no git, or no commit yet
        log.info("commit unknown: %s", error)
        return None
