"""The options of ``chaos-ext doctor``: nothing here takes long to import."""

from __future__ import annotations

import argparse

NAME = "doctor"
HELP = "whether this installation computes right numbers, and what to install for what is missing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``chaos-ext doctor`` has no options of its own."""
