"""The options of ``chaos-ext reproduce generalisation``: nothing here takes long to import."""

from __future__ import annotations

import argparse

from .options import add_study, add_training, count, counts, numbers

NAME = "generalisation"
HELP = "the gap between training and test split against measures of chaos, over learning rates, batch sizes and seeds"
QUICK_STEPS = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce generalisation``."""
    add_training(parser)
    add = parser.add_argument
    add("--more-lr", type=numbers, default=(0.01, 0.1), metavar="A,B,...",
        help="further learning rates (default: 0.01,0.1)")  # fmt: skip
    add("--more-batch-size", type=counts, default=(4, 16), metavar="M,N,...",
        help="further batch sizes; each learning rate is run with each of them (default: 4,16)")  # fmt: skip
    add("--k", type=count, default=8, help="leading Lyapunov exponents (default: %(default)s)")
    add("--every", type=count, default=None, metavar="T",
        help="steps between looks at the spectrum (default: 100; 10 with --quick)")  # fmt: skip
    add("--reference", type=count, default=512, metavar="N",
        help="samples of the batch whose largest eigenvalue is read at the end (default: %(default)s)")  # fmt: skip
    add_study(parser, NAME, QUICK_STEPS)
