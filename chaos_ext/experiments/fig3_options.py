"""The options of ``chaos-ext reproduce fig3``: nothing here takes long to import."""

from __future__ import annotations

import argparse

from .twin_options import add_twins

NAME = "fig3"
HELP = (
    "twins displaced along what training stretches and shrinks: their distances, bounds, and the law by which they part"
)
QUICK_STEPS = 40
EPS = (0.001, 0.01, 0.1, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce fig3``."""
    add_twins(parser, NAME, QUICK_STEPS, EPS, "0.001 to 1")
