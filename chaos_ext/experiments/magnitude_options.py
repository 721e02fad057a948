"""The options of ``chaos-ext reproduce magnitude``: nothing here takes long to import."""

from __future__ import annotations

import argparse

from .twin_options import add_twins

NAME = "magnitude"
HELP = "twins displaced by up to three times the distance of two initialisations: how far apart they end, and how good"
QUICK_STEPS = 60
EPS = (1e-3, 5e-3, 0.025, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 15.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce magnitude``."""
    add_twins(parser, NAME, QUICK_STEPS, EPS, "12 from 0.001 to 15")
