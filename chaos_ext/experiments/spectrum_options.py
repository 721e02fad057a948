"""The options of ``chaos-ext reproduce spectrum``: nothing here takes long to import."""

from __future__ import annotations

import argparse

from .options import add_study, add_training, numbers

NAME = "spectrum"
HELP = "eigenvalues of the mini-batch Hessian during training: counts, shares of the gradient, histograms, 2/lr"
QUICK_STEPS = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce spectrum``."""
    add_training(parser)
    parser.add_argument("--more-lr", type=numbers, default=(0.1,), metavar="A,B,...",
        help="further learning rates, a run each, at which eigenvalues pass 2/lr (default: 0.1)")  # fmt: skip
    add_study(parser, NAME, QUICK_STEPS)
