"""The options of ``chaos-ext reproduce bounds``: nothing here takes long to import."""

from __future__ import annotations

import argparse

from .twin_options import add_twins

NAME = "bounds"
HELP = "twins displaced by 1e-4 to 10: where the extreme finite-time exponents bound their distance"
QUICK_STEPS = 60
EPS = (1e-4, 1e-3, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce bounds``."""
    add_twins(parser, NAME, QUICK_STEPS, EPS, "8 from 0.0001 to 10")
