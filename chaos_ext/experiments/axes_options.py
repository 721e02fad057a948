"""The options of ``chaos-ext reproduce axes``: nothing here takes long to import."""

from __future__ import annotations

import argparse

from .options import add_study, add_training, count

NAME = "axes"
HELP = "curvature along fixed axes during training, negative before positive; a training is run twice, bit for bit"
QUICK_STEPS = 180


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce axes``."""
    add_training(parser)
    add = parser.add_argument
    add("--k", type=count, default=20, help="axes of each set (default: %(default)s)")
    add("--reference", type=count, default=512, metavar="N",
        help="training samples of the batch whose curvature is read (default: %(default)s)")  # fmt: skip
    add("--every", type=count, default=None, metavar="T",
        help="steps between readings (default: 100; 10 with --quick)")  # fmt: skip
    add_study(parser, NAME, QUICK_STEPS)
