"""The options of ``chaos-ext reproduce global-prune``: nothing here takes long to import."""

from __future__ import annotations

import argparse

from .options import add_study, add_training, count
from .twin_options import add_width

NAME = "global-prune"
HELP = "directions that the first steps stretch or shrink, pruned from the gradient of a whole training"
QUICK_STEPS, QUICK_FIRST = 240, 60
FIRST = 912  # an epoch of USPS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce global-prune``."""
    add_training(parser)
    parser.add_argument("--first", type=count, default=None, metavar="T",
        help=f"steps whose directions are pruned (default: {FIRST}, with --quick {QUICK_FIRST})")  # fmt: skip
    add_width(parser)
    add_study(parser, NAME, QUICK_STEPS)
