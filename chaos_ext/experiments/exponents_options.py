"""The options of ``chaos-ext reproduce exponents``: nothing here takes long to import."""

from __future__ import annotations

import argparse

from .options import add_study, add_training, count

NAME = "exponents"
HELP = "leading Lyapunov exponents of a training run, so far and stretch by stretch, beside its loss"
QUICK_STEPS = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce exponents``."""
    add_training(parser)
    add = parser.add_argument
    add("--k", type=count, default=20, help="how many exponents (default: %(default)s)")
    add("--every", type=count, default=None, metavar="T",
        help="steps between readings, and of a local exponent (default: 100; 5 with --quick)")  # fmt: skip
    add_study(parser, NAME, QUICK_STEPS)
