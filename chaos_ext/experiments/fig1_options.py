"""The options of ``chaos-ext reproduce fig1``: nothing here takes long to import, so that help is there at once."""

from __future__ import annotations

import argparse

from .options import add_study, add_training, count, positive, some_of

NAME = "fig1"
HELP = "accuracy and loss of SGD and of SGD with pruned directions"
QUICK_STEPS = 200  # just over one epoch of digits, so that the end of an epoch is passed, too
SETS = ("chaotic", "negative", "positive")
DOMINANT = ("dominant", "bulk")  # of the k largest eigenvalues: these, and all but these
CONTROLS = ("rank", "energy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce fig1``."""
    add_training(parser)
    add_pruning(parser, SETS, (*SETS, *DOMINANT))
    parser.add_argument("--controls", type=some_of(CONTROLS), default=(), metavar="KIND,...",
        help="for each set also random directions: as many (rank), or as much of the gradient (energy)")  # fmt: skip
    parser.add_argument("--noise", type=positive, default=None, metavar="SD",
        help="for each set also a run with Gaussian noise in its directions instead of pruning")  # fmt: skip
    parser.add_argument("--together", type=count, default=None, metavar="B",
        help="train B seeds of a run at once, as one ensemble; a seed's results are the same to rounding (default: 8 "
        "of the MLP, on a GPU all)")  # fmt: skip
    add_study(parser, NAME, QUICK_STEPS)


def add_pruning(parser: argparse.ArgumentParser, default: tuple[str, ...], sets: tuple[str, ...] = SETS) -> None:
    """Which directions are pruned."""
    add = parser.add_argument
    needing = "; dominant and bulk need it" if set(DOMINANT) <= set(sets) else ""
    add("--prune", type=some_of(sets), default=default, metavar="SET,...",
        help=f"runs beside sgd: some of {', '.join(sets)}, or none (default: {', '.join(default)})")  # fmt: skip
    add("--k", type=count, default=None,
        help=f"prune at most k directions a step (default: all of the set{needing})")  # fmt: skip
    add("--order", default="top_abs", choices=("top_abs", "random"), help="which k (default: %(default)s)")
