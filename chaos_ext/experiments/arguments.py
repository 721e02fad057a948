"""What argparse cannot know of a command's arguments, looked at before the work begins."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..figures import import_numpy
from ..models import ACTIVATIONS, MODELS
from .output import UsageError


def require_figures() -> None:
    """Raises UsageError where figures cannot be drawn: before hours of training, not after."""
    try:
        import_numpy()
    except ImportError as error:
        raise UsageError(str(error)) from error


def check_arguments(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """The checks of what argparse cannot know; parser.error ends the process with exit status 2."""
    if args.activation not in ACTIVATIONS:
        parser.error(f"argument --activation: expected one of {', '.join(ACTIVATIONS)}, got {args.activation!r}")
    if args.root is not None and not Path(args.root).is_dir():
        parser.error(f"argument --root: expected a folder, got {args.root!r}")
    try:
        device = torch.device(args.device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        parser.error(f"argument --device: {args.device!r} cannot be used: {reason}")
    if device.type not in ("cpu", "cuda"):
        parser.error(f"argument --device: expected cpu or cuda, got {args.device!r}")
    size = sum(p.numel() for p in MODELS[args.model](seed=0).parameters())
    what = f"P = {size}, the number of parameters"
    if getattr(args, "state", "theta") != "theta" and args.momentum > 0:  # exponents of the whole state
        size, what = 2 * size, f"2 P = {2 * size}, parameters and momentum buffers"
    k = getattr(args, "k", None)
    if k is not None and k > size:
        parser.error(f"argument --k: expected at most {what}, got {k}")
