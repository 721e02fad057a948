"""Options that studies of twins share: nothing here takes long to import."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_resuming, add_training, count, numbers, positive, seeds

QUICK_HIDDEN = 2  # hidden units with --quick: all finite-time directions of the paper's MLP take ten minutes


def add_twins(parser: argparse.ArgumentParser, name: str, quick_steps: int, eps: tuple[float, ...], said: str) -> None:
    """What is trained, how twins are displaced, and where results go; ``said``: of the default of ``--eps``."""
    add_training(parser)
    add = parser.add_argument
    add("--settle", type=positive, default=1e-3, metavar="SHARE",
        help="training ends after an epoch whose accuracy is as close to the last one's (default: 0.001)")  # fmt: skip
    add("--eps", type=numbers, default=eps, metavar="A,B,...", help=f"sizes of the displacements (default: {said})")
    add("--every", type=count, default=20, help="steps between readings (default: %(default)s)")
    add(
        "--seeds",
        type=seeds,
        default=(42,),
        metavar="A,B,...",
        help="seeds, each a training and its twins (default: 42)",
    )
    add("--threads", type=count, default=None, help="torch threads (default: as many as torch takes)")
    add("--jobs", type=count, default=1, help="processes that share the seeds; no effect on results (default: 1)")
    add("--out", type=Path, default=None, help=f"folder for the results (default: results/{name}-DATA[-quick])")
    add("--baselines", type=Path, default=None, metavar="FOLDER",
        help="where trainings with their directions are kept, and taken from; studies may share it")  # fmt: skip
    add_resuming(parser, 300.0)
    add_width(parser)
    add(
        "--quick",
        action="store_true",
        help=f"{quick_steps} steps, {QUICK_HIDDEN} hidden units: a check that all works",
    )


def add_width(parser: argparse.ArgumentParser) -> None:
    """Another width than the paper's."""
    parser.add_argument("--hidden", type=count, default=None, metavar="N", help="hidden units of the MLP (default: 20)")
