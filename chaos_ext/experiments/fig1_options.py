"""The options of ``chaos-ext reproduce fig1``: nothing here takes long to import, so that help is there at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_resuming, add_training, count
from .settings import RUNS

NAME = "fig1"
HELP = "accuracy and loss of SGD and of SGD with pruned directions"
QUICK_STEPS = 200  # just over one epoch of digits, so that the end of an epoch is passed, too


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce fig1``."""
    add_training(parser)
    add = parser.add_argument
    add("--seeds", type=_seeds, default=(42,), metavar="A,B,...", help="seeds, each a full set of runs (default: 42)")
    add("--prune", type=_prune, default=RUNS[1:], metavar="SET,...",
        help="runs beside sgd: some of chaotic, negative, positive, or none (default: all three)")  # fmt: skip
    add("--k", type=count, default=None, help="prune at most k directions a step (default: all of the set)")
    add("--order", default="top_abs", choices=("top_abs", "random"), help="which k (default: %(default)s)")
    add("--threads", type=count, default=1, help="torch threads of each process (default: %(default)s)")
    add("--jobs", type=count, default=1, help="processes that share the runs; no effect on results (default: 1)")
    add("--out", type=Path, default=None, help="folder for the results (default: results/fig1-DATA[-quick])")
    add_resuming(parser, 10.0)
    add("--quick", action="store_true", help=f"stop each run after {QUICK_STEPS} steps: a check that all works")


def _seeds(text: str) -> tuple[int, ...]:
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() for p in parts) or len({int(p) for p in parts}) != len(parts):
        raise argparse.ArgumentTypeError(f"expected different non-negative integers, comma-separated, got {text!r}")
    return tuple(int(p) for p in parts)


def _prune(text: str) -> tuple[str, ...]:
    parts = [] if text.strip() == "none" else [p.strip() for p in text.split(",")]
    if not set(parts) <= set(RUNS[1:]) or len(set(parts)) != len(parts):
        raise argparse.ArgumentTypeError(f"expected none or, comma-separated, {', '.join(RUNS[1:])}, got {text!r}")
    return tuple(r for r in RUNS[1:] if r in parts)
