"""What all studies do alike: units, worker processes, rows, a manifest, a summary, figures, verdicts.

A study is a subclass of ``Study`` in a file of its own, with its options in a file that imports nothing of torch.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import logging
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import torch

import chaos_ext as ce

from ..base.files import atomic_write
from ..base.progress import Progress
from ..data import Dataset, load
from . import report
from .arguments import check_arguments, require_figures
from .command import command_of
from .findings import Finding
from .output import METRICS, SUMMARY, OutputFolder
from .pool import run_units
from .rows import TRAINING
from .settings import Settings, Unit
from .summary import write_summary
from .unit import Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("chaos_ext")

_SHOWN = {"train_loss": "train loss", "val_loss": "val loss", "val_accuracy": "val accuracy"}


class Study(ABC):
    """A study of trainings.

    Attributes:
        name: of its command.
        head: what its rows begin with: of a training with a row a step ``TRAINING``, of which there is a summary.
        columns: what they have beside that, and what it is.
        means: those of them whose means over steps the summary has.
        quick_steps: of each run with ``--quick``.
        shown: a mean of the summary that is told at the end, and its heading.
    """

    name: ClassVar[str]
    head: ClassVar[Mapping[str, str]] = TRAINING
    columns: ClassVar[Mapping[str, str]]
    means: ClassVar[tuple[str, ...]] = ()
    quick_steps: ClassVar[int]
    shown: ClassVar[tuple[str, str] | None] = None

    @abstractmethod
    def settings(self, args: argparse.Namespace, common: dict[str, Any]) -> Settings:
        """Of these arguments; ``common``: what every study has."""

    def refusal(self, args: argparse.Namespace, data: Dataset) -> str | None:
        """What is wrong with these arguments for these data, or None."""
        return None

    def steps(self, settings: Settings, samples: int) -> int:
        """Of all its runs together, for the progress bar."""
        return settings.steps(samples) * len(settings.units)

    def batches(self, unit: Unit) -> str:
        """Names the batches that a unit sees: all of one name must see the same ones."""
        return str(unit.seed)

    @abstractmethod
    def work(self, settings: Settings, unit: Unit, data: Dataset) -> Work:
        """Of one unit, at its start."""

    def records(self, settings: Settings, run: Callable[..., report.Records]) -> report.Records:
        """Does all units: ``run(do=..., units=...)`` as of ``pool.run_units``."""
        return run()

    def figures(self, settings: Settings) -> tuple[str, ...]:
        """Names of its figures."""
        return ("figure",)

    @abstractmethod
    def draw(self, name: str, metrics: Path, settings: Settings) -> Figure:
        """One of its figures, from the rows of all units."""

    def findings(self, metrics: Path, settings: Settings) -> list[Finding]:
        """What the rows say of the paper's claims."""
        return []

    def describe(self, record: dict[str, Any]) -> dict[str, Any]:
        """What the manifest says of one run beside steps, time and failure."""
        return {}

    def remarks(self, records: report.Records) -> dict[str, Any]:
        """What the manifest says of all runs."""
        return {}


def run_study(study: Study, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Does the work that is left of a study and writes every result.

    Args:
        study: which one.
        args: as its options have them parsed.
        parser: refuses arguments that only show themselves wrong now, by ending the process with exit status 2.

    Returns:
        The exit status: 0, or 1 if a run diverged.

    Raises:
        UsageError: matplotlib is missing, or the output folder is not one to work in.
        DatasetNotFoundError: the data set's files are missing or damaged.
        WorkerError: a worker process died or raised; the same command with --resume continues.
        Interrupted: Ctrl-C or SIGTERM came; the same command with --resume continues.
    """
    with opened(study.name, args, parser) as (out, data):
        if refused := study.refusal(args, data):
            parser.error(refused)
        settings = study.settings(args, common_settings(args, data.fingerprint(), study.quick_steps))
        manifest = out.begin(study.name, settings)
        if manifest["status"] == "running":
            manifest = _do(study, args, settings, data, out)
            manifest["command"] = command_of(study.name, args, parser)
        _finish(study, settings, data, out, manifest)
    return _conclude(study, out, manifest)


@contextlib.contextmanager
def opened(
    name: str, args: argparse.Namespace, parser: argparse.ArgumentParser
) -> Iterator[tuple[OutputFolder, Dataset]]:
    """How a study of trainings begins: its folder, held by this process, and its data; bad arguments are refused."""
    require_figures()
    check_arguments(args, parser)
    out = OutputFolder(args.out or Path("results") / f"{name}-{args.data}{'-quick' if args.quick else ''}")
    with out.claimed(args.resume):
        data = load(args.data, args.root)
        if args.batch_size > len(data.y_train):
            parser.error(f"argument --batch-size: expected at most {len(data.y_train)} samples, got {args.batch_size}")
        yield out, data


def common_settings(args: argparse.Namespace, fingerprint: str, quick_steps: int) -> dict[str, Any]:
    """What ``Settings`` has, but ``runs``."""
    copied = ("data", "model", "activation", "epochs", "lr", "batch_size", "momentum")
    return {
        **{name: getattr(args, name) for name in copied},
        "dtype": getattr(args, "dtype", "float64"),  # of studies that have runs in both: that of what is common to them
        "seeds": args.seeds if hasattr(args, "seeds") else (args.seed,),
        "data_fingerprint": fingerprint,
        "max_steps": quick_steps if args.quick else getattr(args, "steps", None),
        "device": str(torch.device(args.device)),
        "threads": args.threads or torch.get_num_threads(),
        "chaos_ext": ce.__version__,
        "torch": str(torch.__version__),  # a str subclass, which a checkpoint would not load
    }


def _do(study: Study, args: argparse.Namespace, settings: Settings, data: Dataset, out: OutputFolder) -> dict[str, Any]:
    """Runs all units, writes metrics.csv and returns the manifest that describes them."""
    samples, columns = len(data.y_train), {**study.head, **study.columns}
    with Progress(study.steps(settings, samples), lines=study.name) as progress:
        how = (study.work, settings, data, args.root, out, args.jobs, args.checkpoint_every, progress.report)
        records = study.records(settings, functools.partial(run_units, *how))
    failed = any(r["failure"] for r in records.values())
    return {
        "experiment": study.name,
        "status": "failed" if failed else "complete",
        "settings": settings.to_json(),
        "samples": {"train": samples, "test": len(data.y_test)},
        "normalisation": {"mean": data.mean, "std": data.std},
        "steps_per_run": settings.steps(samples),
        **study.remarks(records),
        "runs": report.describe_runs(settings.units, records, study.describe),
        "batch_hashes_per_epoch": report.require_twins(settings.units, records, study.batches),
        "metrics": report.write_metrics(out, settings.units, columns),
        "columns": columns,
        **report.environment(settings, args.jobs),
    }


def _finish(study: Study, settings: Settings, data: Dataset, out: OutputFolder, manifest: dict[str, Any]) -> None:
    """Writes what follows from metrics.csv, then the manifest, then lets go of the parts: safe to repeat."""
    figures = study.figures(settings)
    wanted = [f"{name}.{kind}" for name in figures for kind in ("png", "pdf")]
    summarised = study.head is TRAINING
    wanted += [SUMMARY] if summarised else []
    if out.parts.exists() or not all((out.path / name).exists() for name in wanted):
        steps_per_epoch = -(-len(data.y_train) // settings.batch_size)
        manifest["summary"] = write_summary(out, steps_per_epoch, study.means) if summarised else []
        whole = manifest["status"] == "complete"
        manifest["findings"] = [f.to_json() for f in study.findings(out.path / METRICS, settings)] if whole else []
        for name in figures:
            write_figure(out.path / name, study.draw(name, out.path / METRICS, settings))
        out.write_manifest(manifest)
        shutil.rmtree(out.parts, ignore_errors=True)


def write_figure(path: Path, figure: Figure) -> None:
    """As PNG and PDF, whole or not at all; equal runs make equal files."""
    atomic_write(path.with_suffix(".png"), functools.partial(_write_png, figure))
    write = functools.partial(figure.savefig, format="pdf", metadata={"CreationDate": None}, dpi=200)
    atomic_write(path.with_suffix(".pdf"), write)


def _write_png(figure: Figure, f: BinaryIO) -> None:
    """In 256 colours: curves need no more, and a page of figures is half the size."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=200)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(f, "PNG", optimize=True)


def _conclude(study: Study, out: OutputFolder, manifest: dict[str, Any]) -> int:
    """Tells what came out."""
    if manifest["summary"]:
        _tell(study, manifest["summary"])
    for finding in manifest["findings"]:
        print(f"{finding['verdict']}: {finding['claim']} ({finding['numbers']})")
    print(f"written to {out.path}: {', '.join(sorted(p.name for p in out.path.iterdir()))}")
    failures = [r for r in manifest["runs"] if r["failure"]]
    for r in failures:
        message = f"run {r['run']}, seed {r['seed']} broke off at step {r['failure']['step']}: {r['failure']['error']}"
        print(f"chaos-ext: {message}", file=sys.stderr)
    return 1 if failures else 0


def _tell(study: Study, summary: list[dict[str, Any]]) -> None:
    shown = _SHOWN | ({} if study.shown is None else {f"mean_{study.shown[0]}": study.shown[1]})
    width = max(10, *(len(row["run"]) + 2 for row in summary))
    print(f"{'run':<{width}}{'steps':>8}" + "".join(f"{text:>14}" for text in shown.values()))
    for row in summary:
        numbers = "".join(f"{'-' if row[c] is None else f'{row[c]:.4g}':>14}" for c in shown)
        print(f"{row['run']:<{width}}{row['steps']:>8}{numbers}")
