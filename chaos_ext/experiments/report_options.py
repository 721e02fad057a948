"""The options of ``chaos-ext report``: nothing here takes long to import."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "report"
HELP = "one page with every figure and the verdict on every claim, from the folders of studies that were run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext report``."""
    add = parser.add_argument
    add("folders", nargs="*", type=Path, default=[Path("results")], metavar="FOLDER",
        help="--out of a study, or a folder with several of them (default: results)")  # fmt: skip
    add(
        "--out",
        type=Path,
        default=Path("report.html"),
        help="the page, and beside it .md (default: %(default)s)",
    )
