"""Figure 1: SGD against SGD with its chaotic, negative or positive curvature directions pruned.

Every run of a seed starts from the same parameters and sees the same batches. At each step the Hessian of the
mini-batch is decomposed, and the gradient loses its components along the pruned eigenvectors.
"""

from __future__ import annotations

import argparse
import functools
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import chaos_ext as ce

from ..base.files import atomic_write
from ..base.progress import Progress
from ..data import Dataset, load
from ..figures import figure_training
from . import report
from .arguments import check_arguments, require_figures
from .fig1_options import NAME, QUICK_STEPS
from .output import METRICS, OutputFolder
from .pool import run_units
from .rows import COLUMNS
from .settings import Settings

log = logging.getLogger("chaos_ext")

FIGURES = ("figure.png", "figure.pdf")
_QUICK_STEPS = QUICK_STEPS


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Trains what is left to train and writes every result.

    Args:
        args: as ``fig1_options`` has them parsed.
        parser: refuses arguments that only show themselves wrong now, by ending the process with exit status 2.

    Returns:
        The exit status: 0, or 1 if a run diverged.

    Raises:
        UsageError: matplotlib is missing, or the output folder is not one to work in.
        DatasetNotFoundError: the data set's files are missing or damaged.
        WorkerError: a worker process died or raised; the same command with --resume continues.
        Interrupted: Ctrl-C or SIGTERM came; the same command with --resume continues.
    """
    require_figures()
    check_arguments(args, parser)
    out = OutputFolder(args.out or Path("results") / f"{NAME}-{args.data}{'-quick' if args.quick else ''}")
    with out.claimed(args.resume):
        data = load(args.data, args.root)
        if args.batch_size > len(data.y_train):
            parser.error(f"argument --batch-size: expected at most {len(data.y_train)} samples, got {args.batch_size}")
        settings = _settings(args, data.fingerprint())
        manifest = out.begin(NAME, settings)
        if not _finished(out, manifest):
            manifest = _train(args, settings, data, out)
        _finish(settings, data, out, manifest)
    return _conclude(out, manifest)


def _settings(args: argparse.Namespace, fingerprint: str) -> Settings:
    copied = ("data", "model", "activation", "epochs", "lr", "batch_size", "momentum", "seeds", "k", "order", "dtype")
    return Settings(
        **{name: getattr(args, name) for name in copied},
        data_fingerprint=fingerprint,
        max_steps=_QUICK_STEPS if args.quick else None,
        runs=("sgd", *args.prune),
        device=str(torch.device(args.device)),
        threads=args.threads,
        chaos_ext=ce.__version__,
        torch=str(torch.__version__),  # a str subclass, which a checkpoint would not load
    )


def _finished(out: OutputFolder, manifest: dict[str, Any]) -> bool:
    if manifest["status"] == "running":
        return False
    intact = report.metrics_intact(out, manifest["metrics"])
    if not intact:
        log.warning("%s is missing, or not the one that was written; it is computed anew", out.path / METRICS)
    return intact


def _train(args: argparse.Namespace, settings: Settings, data: Dataset, out: OutputFolder) -> dict[str, Any]:
    """Runs all units, writes metrics.csv and returns the manifest that describes them."""
    steps = settings.steps(len(data.y_train))
    with Progress(steps * len(settings.units), lines=NAME) as progress:
        records = run_units(settings, data, args.root, out, args.jobs, args.checkpoint_every, progress.report)
    failed = any(r["failure"] for r in records.values())
    return {
        "experiment": NAME,
        "status": "failed" if failed else "complete",
        "settings": settings.to_json(),
        "samples": {"train": len(data.y_train), "test": len(data.y_test)},
        "normalisation": {"mean": data.mean, "std": data.std},
        "steps_per_run": steps,
        "zero_tolerance": next((r["zero_tol"] for r in records.values() if r["zero_tol"] is not None), None),
        "runs": report.describe_runs(settings.units, records),
        "batch_hashes_per_epoch": report.require_twins(settings.units, records),
        "metrics": report.write_metrics(out, settings.units),
        "columns": COLUMNS,
        **report.environment(settings, args.jobs),
    }


def _finish(settings: Settings, data: Dataset, out: OutputFolder, manifest: dict[str, Any]) -> None:
    """Writes what follows from metrics.csv, then the manifest, then lets go of the parts: safe to repeat."""
    wanted = [out.path / name for name in (*FIGURES, report.SUMMARY)]
    if out.parts.exists() or not all(p.exists() for p in wanted):
        steps_per_epoch = -(-len(data.y_train) // settings.batch_size)
        manifest["summary"] = report.write_summary(out, steps_per_epoch)
        _draw(settings, out)
        out.write_manifest(manifest)
        shutil.rmtree(out.parts, ignore_errors=True)


def _draw(settings: Settings, out: OutputFolder) -> None:
    s, seeds = settings, ", ".join(map(str, settings.seeds))
    title = f"{s.data}, {s.model} ({s.activation}), lr {s.lr:g}, batch size {s.batch_size}, seed {seeds}"
    figure = figure_training(out.path / METRICS, title=title)
    for name in FIGURES:
        kind = name.rpartition(".")[2]
        # Without a creation date equal runs make equal files.
        metadata = {"CreationDate": None} if kind == "pdf" else None
        write = functools.partial(figure.savefig, format=kind, metadata=metadata, dpi=200)
        atomic_write(out.path / name, write)


def _conclude(out: OutputFolder, manifest: dict[str, Any]) -> int:
    """Tells what came out."""
    print(f"{'run':<10}{'steps':>8}{'train loss':>12}{'val loss':>10}{'val accuracy':>14}{'n chaotic':>11}")
    for row in manifest["summary"]:
        columns = {"train_loss": 12, "val_loss": 10, "val_accuracy": 14, "mean_n_chaotic": 11}
        numbers = ("-" if row[c] is None else f"{row[c]:.4g}" for c in columns)
        cells = "".join(f"{n:>{width}}" for n, width in zip(numbers, columns.values(), strict=True))
        print(f"{row['run']:<10}{row['steps']:>8}{cells}")
    print(f"written to {out.path}: {', '.join(sorted(p.name for p in out.path.iterdir()))}")
    failures = [r for r in manifest["runs"] if r["failure"]]
    for r in failures:
        message = f"run {r['run']}, seed {r['seed']} broke off at step {r['failure']['step']}: {r['failure']['error']}"
        print(f"chaos-ext: {message}", file=sys.stderr)
    return 1 if failures else 0
