"""The options of ``chaos-ext analyze``: nothing here takes long to import."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import count, momentum, positive, some_of

NAME = "analyze"
HELP = "local and global Lyapunov exponents, spectrum and stability of a model of your own while it trains"
WHAT = ("lle", "spectrum", "exponents", "stability")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext analyze``."""
    add = parser.add_argument
    add("--model", required=True, metavar="MODULE:NAME", help="a function without arguments that returns the nn.Module")
    add("--data", required=True, metavar="MODULE:NAME",
        help="batches (x, y): an iterable, such as a DataLoader, or a function that returns one")  # fmt: skip
    add("--loss", default="torch.nn:CrossEntropyLoss", metavar="MODULE:NAME",
        help="a function that returns loss_fn(output, y), such as a loss class (default: %(default)s)")  # fmt: skip
    add("--optimizer", default="sgd", choices=("sgd", "adam", "adamw"), help="default: %(default)s")
    add("--lr", type=positive, default=1e-2, help="learning rate (default: %(default)s)")
    add("--momentum", type=momentum, default=0.0, help="of sgd, in [0, 1) (default: %(default)s)")
    add("--steps", type=count, default=200, help="optimizer steps (default: %(default)s)")
    add("--every", type=count, default=1, help="steps between records (default: %(default)s)")
    add(
        "--what", type=some_of(WHAT), default=WHAT, metavar="NAME,...", help=f"some of {', '.join(WHAT)} (default: all)"
    )
    add("--k", type=count, default=1, help="Lyapunov exponents to follow (default: %(default)s)")
    add("--seed", type=int, default=42, help="of torch, before model and data are made (default: %(default)s)")
    add("--out", type=Path, default=Path("results") / NAME, help="folder for the results (default: %(default)s)")
