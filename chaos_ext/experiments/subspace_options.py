"""The options of ``chaos-ext reproduce subspace``: nothing here takes long to import."""

from __future__ import annotations

import argparse

from .options import add_study, add_training, ascending, count, some_of

NAME = "subspace"
HELP = "whether chaotic directions persist: overlaps of eigenspaces over time, and with what training has expanded"
QUICK_STEPS, QUICK_COLUMNS = 120, 48
PARTS = ("eigenspaces", "expanding")
TAU = (1, 10, 100, 1000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce subspace``."""
    add_training(parser)
    parser.set_defaults(epochs=2)  # short, for what the part "expanding" takes
    add = parser.add_argument
    add("--parts", type=some_of(PARTS), default=PARTS, metavar="PART,...",
        help="eigenspaces at two steps; expanding: with the finite-time expanding directions, which takes 65 ms a step "
        "for the paper's MLP, 2.5 GB and some minutes a reading (default: both)")  # fmt: skip
    add("--tau", type=ascending, default=TAU, metavar="T,...",
        help="steps between the two eigenspaces (default: 1,10,100,1000)")  # fmt: skip
    add("--every", type=count, default=None, metavar="T",
        help="steps between the first of them (default: 50; 4 with --quick)")  # fmt: skip
    add("--vectors", type=count, default=3, metavar="N",
        help="readings of the expanding directions, evenly over training (default: %(default)s)")  # fmt: skip
    add("--k", type=count, default=None,
        help="columns of the finite-time map (default: all; fewer restrict it to as many directions)")  # fmt: skip
    add_study(parser, NAME, QUICK_STEPS, 300.0)
