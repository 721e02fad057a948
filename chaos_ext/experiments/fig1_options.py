"""The options of ``chaos-ext reproduce fig1``: nothing here takes long to import, so that help is there at once."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from .settings import RUNS

NAME = "fig1"
HELP = "accuracy and loss of SGD and of SGD with pruned directions"
QUICK_STEPS = 200  # just over one epoch of digits, so that the end of an epoch is passed, too
# What ``data`` and ``models`` have, which import torch.
DATA = ("digits", "usps", "fashion_mnist")
MODELS = ("mlp", "cnn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``chaos-ext reproduce fig1``."""
    add = parser.add_argument
    add("--data", default="digits", choices=DATA, help="data set (default: %(default)s)")
    add("--root", help="folder that holds the data set's files (default: $CHAOS_EXT_DATA, the cache, a download)")
    add("--model", default="mlp", choices=MODELS, help="the paper's MLP (P = 5350) or CNN (P = 1158)")
    add("--activation", default="relu", metavar="NAME", help="activation function (default: %(default)s)")
    add("--epochs", type=_count, default=40, help="passes over the training split (default: %(default)s)")
    add("--lr", type=_positive, default=1e-3, help="learning rate (default: %(default)s)")
    add("--batch-size", type=_count, default=8, metavar="N", help="samples per step (default: %(default)s)")
    add("--momentum", type=_momentum, default=0.0, help="in [0, 1) (default: %(default)s)")
    add("--seeds", type=_seeds, default=(42,), metavar="A,B,...", help="seeds, each a full set of runs (default: 42)")
    add("--prune", type=_prune, default=RUNS[1:], metavar="SET,...",
        help="runs beside sgd: some of chaotic, negative, positive, or none (default: all three)")  # fmt: skip
    add("--k", type=_count, default=None, help="prune at most k directions a step (default: all of the set)")
    add("--order", default="top_abs", choices=("top_abs", "random"), help="which k (default: %(default)s)")
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    add("--dtype", default="float64", choices=("float32", "float64"), help="default: %(default)s")
    add("--threads", type=_count, default=1, help="torch threads of each process (default: %(default)s)")
    add("--jobs", type=_count, default=1, help="processes that share the runs; no effect on results (default: 1)")
    add("--out", type=Path, default=None, help="folder for the results (default: results/fig1-DATA[-quick])")
    add("--resume", action="store_true", help="continue the run in --out, or start it")
    add("--checkpoint-every", type=_positive, default=10.0, metavar="SECONDS", help="default: %(default)s")
    add("--quick", action="store_true", help=f"stop each run after {QUICK_STEPS} steps: a check that all works")


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text!r}")
    return value


def _momentum(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1), got {text!r}")
    return value


def _seeds(text: str) -> tuple[int, ...]:
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() for p in parts) or len({int(p) for p in parts}) != len(parts):
        raise argparse.ArgumentTypeError(f"expected different non-negative integers, comma-separated, got {text!r}")
    return tuple(int(p) for p in parts)


def _prune(text: str) -> tuple[str, ...]:
    parts = [] if text.strip() == "none" else [p.strip() for p in text.split(",")]
    if not set(parts) <= set(RUNS[1:]) or len(set(parts)) != len(parts):
        raise argparse.ArgumentTypeError(f"expected none or, comma-separated, {', '.join(RUNS[1:])}, got {text!r}")
    return tuple(r for r in RUNS[1:] if r in parts)
