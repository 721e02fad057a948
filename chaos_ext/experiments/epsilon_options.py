"""The options of ``chaos-ext reproduce epsilon``: nothing here takes long to import."""

from __future__ import annotations

import argparse

from .options import add_study, add_training, count

NAME = "epsilon"
HELP = (
    "twins displaced by 1e-14 to 1 in both dtypes: where distances are proportional to eps, and where they are rounding"
)
QUICK_STEPS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce epsilon``."""
    add_training(parser, dtype=False)
    parser.add_argument("--every", type=count, default=20, help="steps between readings (default: %(default)s)")
    add_study(parser, NAME, QUICK_STEPS)
