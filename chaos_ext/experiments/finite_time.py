"""The finite-time Lyapunov spectrum of a whole training run (section 4.2 of the paper), with every exponent right.

``exponents.csv`` has all of them at the end, each with its tolerance; ``extremes.csv`` the largest and the smallest on
the way; ``manifest.json`` the rest, also where the time went.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import chaos_ext as ce

from ..base.files import atomic_write
from ..base.progress import Progress
from ..data import Dataset
from ..errors import NonFiniteError
from . import report
from .command import command_of
from .finite_time_figure import figure_finite_time
from .finite_time_findings import findings_of
from .finite_time_options import NAME, QUICK_COLUMNS, QUICK_STEPS
from .finite_time_run import EXTREMES, FiniteTimeSettings, Training, train
from .output import OutputFolder
from .study import common_settings, opened, write_figure

EXPONENTS = "exponents.csv"


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Trains what is left to train and writes every result.

    Args:
        args: as ``finite_time_options`` has them parsed.
        parser: refuses arguments that only show themselves wrong now, by ending the process with exit status 2.

    Returns:
        The exit status: 0, or 1 if training diverged; results are then those until that step.

    Raises:
        UsageError: matplotlib is missing, or the output folder is not one to work in.
        DatasetNotFoundError: the data set's files are missing or damaged.
        ChaosExtError: the first step is not finite, the run does not fit into memory, no good checkpoint.
        Interrupted: Ctrl-C or SIGTERM came; the same command with --resume continues.
    """
    with opened(NAME, args, parser) as (out, data):
        settings = _settings(args, data)
        manifest = out.begin(NAME, settings)
        if manifest["status"] == "running":
            manifest = _work(settings, data, out, args.checkpoint_every)
            out.write_manifest({**manifest, "command": command_of(NAME, args, parser)})
        if not args.keep_checkpoint:
            shutil.rmtree(out.parts, ignore_errors=True)
    print(f"written to {out.path}: {', '.join(sorted(p.name for p in out.path.iterdir()))}")
    if failure := manifest["failure"]:
        print(f"chaos-ext: training diverged at step {failure['step']}: {failure['error']}", file=sys.stderr)
    return 1 if failure else 0


def _settings(args: argparse.Namespace, data: Dataset) -> FiniteTimeSettings:
    return FiniteTimeSettings(
        **common_settings(args, data.fingerprint(), QUICK_STEPS),
        every=args.every,
        settle=args.settle,
        state=args.state,
        runs=("sgd",),
        k=QUICK_COLUMNS if args.quick and args.k is None else args.k,
    )


def _work(settings: FiniteTimeSettings, data: Dataset, out: OutputFolder, every: float) -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        training = Training(settings, data, out.parts, out.path / EXTREMES)
        with Progress(training.total, lines=NAME) as progress:
            train(training, every, progress.report)
        if training.failure and not training.step:
            raise NonFiniteError(f"training diverged at its first step: {training.failure['error']}")
        return _finish(settings, training, data, out)
    finally:
        torch.set_num_threads(before)


def _finish(settings: FiniteTimeSettings, training: Training, data: Dataset, out: OutputFolder) -> dict[str, Any]:
    spec = training.analyzer.finite_time()
    _write_exponents(out.path / EXPONENTS, spec)
    _draw(settings, spec, out)
    return {
        "experiment": NAME,
        "status": "failed" if training.failure else "complete",
        "failure": training.failure,
        "settings": settings.to_json(),
        "samples": {"train": len(data.y_train), "test": len(data.y_test)},
        "steps": spec.steps,
        "parameters": training.analyzer.tangent.parameters,
        "exponents": _counts(spec),
        "findings": [f.to_json() for f in findings_of(spec)],
        "epoch_losses": training.epoch_losses,
        "epoch_accuracies": training.epoch_accuracies,
        **training.evaluate(),
        "seconds": {**training.seconds, **spec.seconds},
        "peak_memory_bytes": _peak_memory(),
        **report.environment(settings, 1),
    }


def _peak_memory() -> int | None:
    """Of this process, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _counts(spec: ce.FiniteTimeSpectrum) -> dict[str, Any]:
    values, neutral = spec.exponents, spec.neutral
    return {
        "count": len(values),
        "of_the_restricted_map": spec.is_restricted,
        "chaotic": int((~neutral & (values > 0)).sum()),
        "neutral": int(neutral.sum()),
        "stable": int((~neutral & (values < 0)).sum()),
        "largest": float(values[0]),
        "smallest": float(values[-1]),
        "sum": float(values.sum()),
        "largest_tolerance_of_a_logarithm": float(spec.tolerance.max()),
        "condition_of_theta_rows": spec.condition,
    }


def _write_exponents(path: Path, spec: ce.FiniteTimeSpectrum) -> None:
    """One row an exponent: how large, how far it may be off, whether it is zero within that."""
    rows = zip(spec.exponents.tolist(), (spec.tolerance / spec.steps).tolist(), spec.neutral.tolist(), strict=True)
    lines = [f"{i + 1},{value!r},{tol!r},{int(zero)}\n" for i, (value, tol, zero) in enumerate(rows)]
    atomic_write(path, "".join(["index,exponent,tolerance,neutral\n", *lines]))


def _draw(s: FiniteTimeSettings, spec: ce.FiniteTimeSpectrum, out: OutputFolder) -> None:
    title = f"{s.data}, {s.model} ({s.activation}), lr {s.lr:g}, batch size {s.batch_size}, {spec.steps} steps"
    write_figure(out.path / "figure", figure_finite_time(spec, title))
