"""The options of ``chaos-ext reproduce init-distance``: nothing here takes long to import."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import MODELS, count

NAME = "init-distance"
HELP = "how far apart two default initialisations are (appendix A.8)"
QUICK_DRAWS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce init-distance``."""
    add = parser.add_argument
    add("--model", default="mlp", choices=MODELS, help="the paper's MLP (P = 5350) or CNN (P = 1158)")
    add("--draws", type=count, default=1000, help="pairs of initialisations (default: %(default)s)")
    add("--seed", type=int, default=42, help="of the draws (default: %(default)s)")
    add("--out", type=Path, default=None, help=f"folder for the results (default: results/{NAME}-MODEL[-quick])")
    add("--resume", action="store_true", help="keep what is in --out if it is the same, or make it")
    add("--quick", action="store_true", help=f"{QUICK_DRAWS} draws: a check that all works")
