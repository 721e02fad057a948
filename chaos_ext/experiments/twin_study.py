"""What studies of twins do alike: trainings with finite-time spectra, displaced models, rows, figure, verdicts.

A study is a subclass of ``TwinStudy``. Its seeds may be spread over processes, and studies may share trainings
(``--baselines``), since the finite-time spectrum takes most of the time.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ..base.files import atomic_write
from ..base.progress import Progress
from ..data import Dataset
from . import report
from .command import command_of
from .fig3_run import EXTREMES, TWINS, Fig3Settings, How, Twins, run_seed
from .findings import Finding
from .output import METRICS, OutputFolder, UsageError
from .pool import run_units
from .study import common_settings, opened, write_figure
from .twin_options import QUICK_HIDDEN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure


class Seed(NamedTuple):
    """What there is of one seed.

    Attributes:
        seed: which.
        twins, extremes: files with readings of twins, and of extreme exponents.
        final: what ``Twins.final`` gave.
    """

    seed: int
    twins: Path
    extremes: Path
    final: dict[str, Any]


class TwinStudy(ABC):
    """A study of twins.

    Attributes:
        name: of its command.
        columns: of its metrics.csv, and what they are.
        quick_steps: of each training with ``--quick``.
        twins: the class of its twins.
    """

    name: ClassVar[str]
    columns: ClassVar[Mapping[str, str]]
    quick_steps: ClassVar[int]
    twins: ClassVar[type[Twins]] = Twins

    def settings(self, args: argparse.Namespace, common: dict[str, Any]) -> Fig3Settings:
        """Of these arguments; ``common``: what every study has."""
        training: dict[str, Any] = {"runs": ("sgd",), "k": None, "state": "theta" if args.momentum else "auto"}
        twins: dict[str, Any] = {"eps": args.eps, "every": args.every, "settle": args.settle, "hidden": width_of(args)}
        return Fig3Settings(**common, **training, **twins)

    @abstractmethod
    def rows(self, settings: Fig3Settings, seed: Seed) -> Iterator[str]:
        """Lines of metrics.csv of one seed."""

    @abstractmethod
    def draw(self, metrics: Path, settings: Fig3Settings) -> Figure:
        """Its figure, from the rows of all seeds."""

    @abstractmethod
    def findings(self, metrics: Path, settings: Fig3Settings) -> list[Finding]:
        """What the rows say of the paper's claims."""


def width_of(args: argparse.Namespace) -> int | None:
    """Hidden units of the MLP; None: the paper's network."""
    if args.hidden is not None and args.model != "mlp":
        raise UsageError(f"argument --hidden: expected --model mlp with it, got --model {args.model}")
    return args.hidden or (QUICK_HIDDEN if args.quick and args.model == "mlp" else None)


def run_twin_study(study: TwinStudy, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Trains what is left, and writes every result.

    Args:
        study: which one.
        args: as its options have them parsed.
        parser: refuses arguments that only show themselves wrong now, by ending the process with exit status 2.

    Returns:
        The exit status, 0.

    Raises:
        UsageError: matplotlib is missing, or the output folder is not one to work in.
        DatasetNotFoundError: the data set's files are missing or damaged.
        ChaosExtError: training diverged, the run does not fit into memory, no good checkpoint.
        WorkerError: a worker process died or raised; the same command with --resume continues.
        Interrupted: Ctrl-C or SIGTERM came; the same command with --resume continues.
    """
    with opened(study.name, args, parser) as (out, data):
        settings = study.settings(args, common_settings(args, data.fingerprint(), study.quick_steps))
        manifest = out.begin(study.name, settings)
        if manifest["status"] == "running":
            manifest = _work(study, args, settings, data, out)
            out.write_manifest({**manifest, "command": command_of(study.name, args, parser)})
        shutil.rmtree(out.parts, ignore_errors=True)
    for f in manifest["findings"]:
        print(f"{f['verdict']}: {f['claim']} ({f['numbers']})")
    print(f"written to {out.path}: {', '.join(sorted(p.name for p in out.path.iterdir()))}")
    return 0


def _work(
    study: TwinStudy, args: argparse.Namespace, settings: Fig3Settings, data: Dataset, out: OutputFolder
) -> dict[str, Any]:
    how, steps = How(study.twins, args.baselines), settings.steps(len(data.y_train))
    with Progress(2 * steps * len(settings.seeds), lines=study.name) as progress:
        records = run_units(
            how, settings, data, args.root, out, args.jobs, args.checkpoint_every, progress.report, run_seed
        )
    for unit, record in records.items():
        for text in record["run"]["diverged"]:
            print(f"chaos-ext: seed {unit.seed}, the twin {text} diverged", file=sys.stderr)
    seeds = [Seed(u.seed, *_files(how, settings, u.seed, out), r["final"]) for u, r in records.items()]
    manifest = _finish(study, settings, data, out, seeds, [r["run"] for r in records.values()])
    return {**manifest, **report.environment(settings, args.jobs)}


def _files(how: How, settings: Fig3Settings, seed: int, out: OutputFolder) -> tuple[Path, Path]:
    own = replace(settings, seeds=(seed,))
    return out.parts / f"seed{seed}" / TWINS, how.folder(own, out) / EXTREMES


def _finish(
    study: TwinStudy,
    settings: Fig3Settings,
    data: Dataset,
    out: OutputFolder,
    seeds: list[Seed],
    runs: list[dict[str, Any]],
) -> dict[str, Any]:
    head = ",".join(study.columns) + "\n"
    atomic_write(out.path / METRICS, head + "".join(line for seed in seeds for line in study.rows(settings, seed)))
    write_figure(out.path / "figure", study.draw(out.path / METRICS, settings))
    return {
        "experiment": study.name,
        "status": "complete",
        "settings": settings.to_json(),
        "samples": {"train": len(data.y_train), "test": len(data.y_test)},
        "runs": runs,
        "columns": study.columns,
        "findings": [f.to_json() for f in study.findings(out.path / METRICS, settings)],
    }
