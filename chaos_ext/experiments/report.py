"""What a study leaves behind: metrics.csv and manifest.json, with what was run where."""

from __future__ import annotations

import hashlib
import logging
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

import chaos_ext as ce

from ..base.files import atomic_write
from .output import METRICS, OutputFolder
from .rows import header
from .settings import Recorded, Unit

log = logging.getLogger("chaos_ext")

Records = Mapping[Unit, dict[str, Any]]


def write_metrics(out: OutputFolder, units: Iterable[Unit], columns: Iterable[str]) -> dict[str, Any]:
    """Joins the rows of all units into metrics.csv; returns its number of rows, size and SHA-256."""
    sha, size, rows = hashlib.sha256(), 0, -1  # the header is no row

    def write(f: BinaryIO) -> None:
        nonlocal size, rows
        for piece in _pieces(out, units, columns):
            f.write(piece)
            sha.update(piece)
            size, rows = size + len(piece), rows + piece.count(b"\n")

    atomic_write(out.path / METRICS, write)
    return {"rows": rows, "bytes": size, "sha256": sha.hexdigest()}


def _pieces(out: OutputFolder, units: Iterable[Unit], columns: Iterable[str]) -> Iterable[bytes]:
    yield header(columns)
    for unit in units:
        with out.rows(unit).open("rb") as f:
            while piece := f.read(1 << 20):
                yield piece


def require_twins(
    units: Iterable[Unit], records: Records, batches: Callable[[Unit], str] = lambda unit: str(unit.seed)
) -> dict[str, list[str]]:
    """The batch hashes of each seed, one an epoch, after checking that all its runs saw the same batches.

    Args:
        units: of the study.
        records: of each.
        batches: what names the batches of a unit: those of one name are the same.

    Raises:
        RuntimeError: they did not; the runs must not be compared.
    """
    seen: dict[str, list[str]] = {}
    for unit in units:
        record = records[unit]
        # A run that broke off has hashed only the beginning of its last epoch.
        mine = record["epoch_hashes"][: -1 if record["failure"] else None]
        longest = seen.setdefault(batches(unit), mine)
        if any(a != b for a, b in zip(mine, longest, strict=False)):
            raise RuntimeError(f"{unit.name} saw other batches than the runs before it with the same seed")
        if len(mine) > len(longest):
            seen[batches(unit)] = mine
    return seen


def describe_runs(
    units: Iterable[Unit], records: Records, more: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """What the manifest says of each run: steps, time per step, failure, and what the study makes ``more`` of it."""

    def describe(unit: Unit) -> dict[str, Any]:
        record = records[unit]
        steps = record["steps"]
        return {
            "run": unit.run,
            "seed": unit.seed,
            "steps": steps,
            "seconds_per_step_mean": record["seconds"] / steps if steps else None,
            "seconds_per_step_min": record["fastest"] if steps else None,
            **more(record),
            "failure": record["failure"],
        }

    return [describe(unit) for unit in units]


def environment(settings: Recorded, jobs: int) -> dict[str, Any]:
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
