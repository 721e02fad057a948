"""The options of ``chaos-ext reproduce fig3``: nothing here takes long to import."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_resuming, add_training, count, numbers, positive, seeds

NAME = "fig3"
HELP = (
    "twins displaced along what training stretches and shrinks: their distances, bounds, and the law by which they part"
)
QUICK_STEPS = 40
EPS = (0.001, 0.01, 0.1, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce fig3``."""
    add_training(parser)
    add = parser.add_argument
    add("--settle", type=positive, default=1e-3, metavar="SHARE",
        help="training ends after an epoch whose accuracy is as close to the last one's (default: 0.001)")  # fmt: skip
    add("--eps", type=numbers, default=EPS, metavar="A,B,...", help="sizes of the displacements (default: 0.001 to 1)")
    add("--every", type=count, default=20, help="steps between readings (default: %(default)s)")
    add(
        "--seeds",
        type=seeds,
        default=(42,),
        metavar="A,B,...",
        help="seeds, each a training and its twins (default: 42)",
    )
    add("--threads", type=count, default=None, help="torch threads (default: as many as torch takes)")
    add("--out", type=Path, default=None, help="folder for the results (default: results/fig3-DATA[-quick])")
    add_resuming(parser, 300.0)
    add("--quick", action="store_true", help=f"{QUICK_STEPS} steps: a check that all works")
