"""The options of ``chaos-ext reproduce finite-time``: nothing here takes long to import."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_resuming, add_training, count, positive

NAME = "finite-time"
HELP = "all finite-time Lyapunov exponents of a training run, and the extreme ones on the way"
QUICK_STEPS, QUICK_COLUMNS = 60, 48


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce finite-time``."""
    add_training(parser)
    add = parser.add_argument
    add("--steps", type=count, default=None, help="stop after so many steps (default: all epochs)")
    add("--settle", type=positive, default=None, metavar="SHARE",
        help="stop after an epoch whose mean accuracy is less than this from that of the one before")  # fmt: skip
    add("--state", default="auto", choices=("auto", "full", "theta"),
        help="with momentum: the whole state (2P exponents), or the block of theta, the paper's Eq. (8)")  # fmt: skip
    add("--seed", type=int, default=42, help="of initialisation and batches, as of fig1 (default: %(default)s)")
    add("--k", type=count, default=None, help="columns; fewer than all give exponents of the restricted map")
    add("--every", type=count, default=20, help="steps between readings of the extremes (default: %(default)s)")
    add("--threads", type=count, default=None, help="torch threads (default: as many as torch takes)")
    add("--out", type=Path, default=None, help="folder for the results (default: results/finite-time-DATA[-quick])")
    add_resuming(parser, 300.0)
    add("--keep-checkpoint", action="store_true", help="leave the last checkpoint, the product itself, in --out")
    add("--quick", action="store_true", help=f"{QUICK_STEPS} steps, {QUICK_COLUMNS} columns: a check that all works")
