"""Figure 3: models displaced before training, along what it will stretch and shrink, and how far apart they end.

The finite-time spectrum of a whole training gives the directions: its right singular vectors. Twins are displaced along
them by some eps and trained on the same batches. Linear theory bounds their distance by eps exp(lambda_1(t) t) from
above and eps exp(lambda_P(t) t) from below.
"""

from __future__ import annotations

import argparse
import csv
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import chaos_ext as ce

from ..base.files import atomic_write
from ..base.progress import Progress
from ..data import Dataset, load
from . import report
from .arguments import check_arguments, require_figures
from .command import command_of
from .fig3_figure import figure_twins
from .fig3_findings import findings_of
from .fig3_options import NAME, QUICK_STEPS
from .fig3_run import EXTREMES, TWINS, Fig3Settings, Twins, baseline, labels, run_twins
from .output import METRICS, OutputFolder
from .study import write_figure

COLUMNS = {
    "seed": "decides initialisation, batches and drawn directions",
    "step": "t: optimizer steps taken",
    "strategy": "direction of the displacement",
    "eps": "its length",
    "distance": "of the twin from the model that was not displaced",
    "along": "component of the difference along the displacement",
    "upper": "eps exp(lambda_1(t) t), where it was read",
    "lower": "eps exp(lambda_P(t) t), where it was read",
}


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Trains what is left, and writes every result.

    Args:
        args: as ``fig3_options`` has them parsed.
        parser: refuses arguments that only show themselves wrong now, by ending the process with exit status 2.

    Returns:
        The exit status, 0.

    Raises:
        UsageError: matplotlib is missing, or the output folder is not one to work in.
        DatasetNotFoundError: the data set's files are missing or damaged.
        ChaosExtError: training diverged, the run does not fit into memory, no good checkpoint.
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
        if manifest["status"] == "running":
            manifest = _work(settings, data, out, args.checkpoint_every)
            out.write_manifest({**manifest, "command": command_of(NAME, args, parser)})
        shutil.rmtree(out.parts, ignore_errors=True)
    for f in manifest["findings"]:
        print(f"{f['verdict']}: {f['claim']} ({f['numbers']})")
    print(f"written to {out.path}: {', '.join(sorted(p.name for p in out.path.iterdir()))}")
    return 0


def _settings(args: argparse.Namespace, fingerprint: str) -> Fig3Settings:
    copied = ("data", "model", "activation", "epochs", "lr", "batch_size", "momentum", "dtype", "settle", "seeds")
    return Fig3Settings(
        **{name: getattr(args, name) for name in copied},
        eps=args.eps,
        every=args.every,
        threads=args.threads or torch.get_num_threads(),
        data_fingerprint=fingerprint,
        max_steps=QUICK_STEPS if args.quick else None,
        runs=("sgd",),
        k=None,
        state="theta" if args.momentum else "auto",
        device=str(torch.device(args.device)),
        chaos_ext=ce.__version__,
        torch=str(torch.__version__),
    )


def _work(settings: Fig3Settings, data: Dataset, out: OutputFolder, every: float) -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        runs = []
        with Progress(2 * settings.steps(len(data.y_train)) * len(settings.seeds), lines=NAME) as progress:
            for seed in settings.seeds:
                own, folder = replace(settings, seeds=(seed,)), out.parts / f"seed{seed}"
                folder.mkdir(exist_ok=True)
                kept = baseline(own, data, folder, every, progress.report)
                twins = Twins(own, data, folder, kept)
                run_twins(twins, every, progress.report)
                runs.append({"seed": seed, "steps": kept["steps"], "epoch_accuracies": kept["epoch_accuracies"],
                             **_diverged(twins)})  # fmt: skip
        return _finish(settings, data, out, runs)
    finally:
        torch.set_num_threads(before)


def _diverged(twins: Twins) -> dict[str, Any]:
    """Which twins did, and when."""
    steps = twins.ensemble.diverged.tolist()[1:]
    named = [f"{s}, eps {e:g}: step {t}" for (s, e), t in zip(labels(twins.settings), steps, strict=True) if t >= 0]
    for text in named:
        print(f"chaos-ext: the twin {text} diverged", file=sys.stderr)
    return {"diverged": named}


def _finish(settings: Fig3Settings, data: Dataset, out: OutputFolder, runs: list[dict[str, Any]]) -> dict[str, Any]:
    atomic_write(out.path / METRICS, "".join(_rows(settings, out)))
    write_figure(out.path / "figure", figure_twins(out.path / METRICS, settings))
    return {
        "experiment": NAME,
        "status": "complete",
        "settings": settings.to_json(),
        "samples": {"train": len(data.y_train), "test": len(data.y_test)},
        "runs": runs,
        "columns": COLUMNS,
        "findings": [f.to_json() for f in findings_of(out.path / METRICS, settings)],
        **report.environment(settings, 1),
    }


def _rows(settings: Fig3Settings, out: OutputFolder) -> Iterator[str]:
    """A line for each twin at each reading, with the bounds where extremes were read at the same step."""
    yield ",".join(COLUMNS) + "\n"
    for seed in settings.seeds:
        folder = out.parts / f"seed{seed}"
        with (folder / EXTREMES).open(newline="") as f:
            ends = {r["step"]: (float(r["largest"]), float(r["smallest"])) for r in csv.DictReader(f)}
        with (folder / TWINS).open(newline="") as f:
            for row in csv.DictReader(f):
                for strategy, eps in labels(settings):
                    name, t = f"{strategy}_{eps:g}", int(row["step"])
                    growth = [math.exp(v * t) for v in ends.get(row["step"], ())]
                    bounds = [f"{eps * g!r}" for g in growth] if t else [f"{eps!r}"] * 2
                    values = (row[f"distance_{name}"], row[f"along_{name}"], *(bounds or ("", "")))
                    yield f"{seed},{t},{strategy},{eps!r},{','.join(values)}\n"
