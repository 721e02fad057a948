"""The options of ``chaos-ext reproduce random-walk``: nothing here takes long to import."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import count, positive

NAME = "random-walk"
HELP = "the law by which twins part, derived and drawn: a random walk with drift (appendix A.10), and fits of it"
QUICK_WALKS, QUICK_DRAWS = 300, 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce random-walk``."""
    add = parser.add_argument
    add("--walks", type=count, default=2000, help="walks of each kind (default: %(default)s)")
    add("--steps", type=count, default=200, help="of each walk (default: %(default)s)")
    add("--lr", type=positive, default=0.05, help="learning rate (default: %(default)s)")
    add("--eps", type=positive, default=0.5, help="distance at the start (default: %(default)s)")
    add("--draws", type=count, default=200, help="fits of each kind (default: %(default)s)")
    add("--seed", type=int, default=42, help="of the draws (default: %(default)s)")
    add("--out", type=Path, default=None, help=f"folder for the results (default: results/{NAME}[-quick])")
    add("--resume", action="store_true", help="keep what is in --out if it is the same, or make it")
    add("--quick", action="store_true", help=f"{QUICK_WALKS} walks, {QUICK_DRAWS} fits: a check that all works")
