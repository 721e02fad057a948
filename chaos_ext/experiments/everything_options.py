"""The options of ``chaos-ext reproduce all``: nothing here takes long to import."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import DATA, MODELS, add_resuming, count, seeds

NAME = "all"
HELP = "every study, one after the other, and the report on them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce all``."""
    add = parser.add_argument
    add("--data", default="digits", choices=DATA, help="data set (default: %(default)s)")
    add("--root", help="folder that holds the data set's files (default: $CHAOS_EXT_DATA, the cache, a download)")
    add("--model", default="mlp", choices=MODELS, help="the paper's MLP (P = 5350) or CNN (P = 1158)")
    add("--epochs", type=count, default=40, help="passes over the training split (default: %(default)s)")
    add("--seeds", type=seeds, default=(42,), metavar="A,B,...", help="of each study (default: 42)")
    add("--jobs", type=count, default=1, help="processes that share the runs; no effect on results (default: 1)")
    add("--out", type=Path, default=None, help="folder for the results (default: results/all-DATA[-quick])")
    add_resuming(parser, 60.0)
    add("--quick", action="store_true", help="few steps of each: a check that all works")
