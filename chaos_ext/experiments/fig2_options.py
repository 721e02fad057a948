"""The options of ``chaos-ext reproduce fig2``: nothing here takes long to import."""

from __future__ import annotations

import argparse

from .fig1_options import SETS, add_pruning
from .options import add_study, add_training, ascending

NAME = "fig2"
HELP = "loss of SGD with directions pruned from some step on"
QUICK_STEPS = 240
START = (2000, 5000, 10000)
QUICK_START = (50, 100, 150)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce fig2``."""
    add_training(parser, activation="sigmoid")
    add_pruning(parser, SETS[:1])
    parser.add_argument("--start", type=ascending, default=None, metavar="T,...",
        help=f"steps at which pruning begins, a run each (default: {','.join(map(str, START))})")  # fmt: skip
    add_study(parser, NAME, QUICK_STEPS)
