"""Options that experiments share, and the types of their values: nothing here takes long to import."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

# What ``data`` and ``models`` have, which import torch.
DATA = ("digits", "usps", "fashion_mnist")
MODELS = ("mlp", "cnn")


def add_training(parser: argparse.ArgumentParser, activation: str = "relu", dtype: bool = True) -> None:
    """What is trained, on what, and how; without ``dtype`` where a study has runs in both."""
    add = parser.add_argument
    add("--data", default="digits", choices=DATA, help="data set (default: %(default)s)")
    add("--root", help="folder that holds the data set's files (default: $CHAOS_EXT_DATA, the cache, a download)")
    add("--model", default="mlp", choices=MODELS, help="the paper's MLP (P = 5350) or CNN (P = 1158)")
    add("--activation", default=activation, metavar="NAME", help="activation function (default: %(default)s)")
    add("--epochs", type=count, default=40, help="passes over the training split (default: %(default)s)")
    add("--lr", type=positive, default=1e-3, help="learning rate (default: %(default)s)")
    add("--batch-size", type=count, default=8, metavar="N", help="samples per step (default: %(default)s)")
    add("--momentum", type=momentum, default=0.0, help="in [0, 1) (default: %(default)s)")
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    if dtype:
        add("--dtype", default="float64", choices=("float32", "float64"), help="default: %(default)s")


def add_study(parser: argparse.ArgumentParser, name: str, quick_steps: int, seconds: float = 10.0) -> None:
    """Seeds, processes, and where results go; ``seconds`` between checkpoints."""
    add = parser.add_argument
    add("--seeds", type=seeds, default=(42,), metavar="A,B,...", help="seeds, each a full set of runs (default: 42)")
    add("--threads", type=count, default=1, help="torch threads of each process (default: %(default)s)")
    add("--jobs", type=count, default=1, help="processes that share the runs; no effect on results (default: 1)")
    add("--out", type=Path, default=None, help=f"folder for the results (default: results/{name}-DATA[-quick])")
    add_resuming(parser, seconds)
    add("--quick", action="store_true", help=f"stop each run after {quick_steps} steps: a check that all works")


def add_resuming(parser: argparse.ArgumentParser, seconds: float) -> None:
    """How a run that was cut short goes on; ``seconds`` between checkpoints."""
    add = parser.add_argument
    add("--resume", action="store_true", help="continue the run in --out, or start it")
    add("--checkpoint-every", type=positive, default=seconds, metavar="SECONDS", help="default: %(default)s")


def count(text: str) -> int:
    """An integer of at least 1."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None


def positive(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text!r}")
    return value


def momentum(text: str) -> float:
    """A number in [0, 1)."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1), got {text!r}")
    return value


def seeds(text: str) -> tuple[int, ...]:
    """Different integers of at least 0, comma-separated."""
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() for p in parts) or len({int(p) for p in parts}) != len(parts):
        raise argparse.ArgumentTypeError(f"expected different non-negative integers, comma-separated, got {text!r}")
    return tuple(int(p) for p in parts)


def some_of(names: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """Names out of these, comma-separated, or none; in the order of ``names``."""

    def parsed(text: str) -> tuple[str, ...]:
        parts = [] if text.strip() == "none" else [p.strip() for p in text.split(",")]
        if not set(parts) <= set(names) or len(set(parts)) != len(parts):
            raise argparse.ArgumentTypeError(f"expected none or, comma-separated, {', '.join(names)}, got {text!r}")
        return tuple(n for n in names if n in parts)

    return parsed


def ascending(text: str) -> tuple[int, ...]:
    """Integers of at least 0 in ascending order, comma-separated."""
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() for p in parts) or sorted({int(p) for p in parts}) != [int(p) for p in parts]:
        raise argparse.ArgumentTypeError(f"expected ascending integers of at least 0, comma-separated, got {text!r}")
    return tuple(int(p) for p in parts)


def numbers(text: str) -> tuple[float, ...]:
    """Different finite numbers above 0, comma-separated."""
    values = tuple(positive(p) for p in text.split(","))
    if len(set(values)) != len(values):
        raise argparse.ArgumentTypeError(f"expected different numbers, got {text!r}")
    return values


def counts(text: str) -> tuple[int, ...]:
    """Different integers of at least 1, comma-separated."""
    values = tuple(count(p) for p in text.split(","))
    if len(set(values)) != len(values):
        raise argparse.ArgumentTypeError(f"expected different integers, got {text!r}")
    return values
