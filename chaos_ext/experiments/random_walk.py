"""The law by which twins part (appendix A.10): derived (``random_walk_law``), drawn, and fitted."""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import torch

import chaos_ext as ce

from ..base.files import atomic_write
from ..data.batches import derive_seed
from .computed import run_computed
from .findings import Finding
from .output import METRICS, OutputFolder
from .random_walk_figure import figure_walks
from .random_walk_findings import findings_of
from .random_walk_law import DRIFTS, READINGS, RandomWalkSettings, law, walks
from .random_walk_options import NAME, QUICK_DRAWS, QUICK_WALKS
from .rows import format_row, header
from .study import write_figure

FITS = "fits.csv"
COLUMNS = ("drift", "dimensions", "step", "square", "square_error", "mean", "mean_error", "law")
FIT_COLUMNS = ("drift", "members", "draw", "alpha", "alpha_low", "alpha_high", "beta", "beta_low", "beta_high")
DIMENSIONS = (2, 100, 1000)
MEMBERS = (1, 16)
_FIT_DIMENSIONS = 100
_RESAMPLES = 200


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Draws, fits, and writes every result.

    Args:
        args: as ``random_walk_options`` has them parsed.
        parser: refuses arguments that do not fit together, by ending the process with exit status 2.

    Returns:
        The exit status, 0.

    Raises:
        UsageError: matplotlib is missing, or the output folder is not one to work in.
    """
    if args.steps < READINGS:
        parser.error(f"argument --steps: expected at least {READINGS}, one a reading, got {args.steps}")
    settings = RandomWalkSettings(
        walks=QUICK_WALKS if args.quick else args.walks,
        steps=args.steps,
        lr=args.lr,
        eps=args.eps,
        draws=QUICK_DRAWS if args.quick else args.draws,
        seeds=(args.seed,),
        threads=torch.get_num_threads(),
        device="cpu",
        chaos_ext=ce.__version__,
        torch=str(torch.__version__),
    )
    return run_computed(NAME, settings, args, parser, NAME, functools.partial(_make, settings))


def _make(settings: RandomWalkSettings, out: OutputFolder) -> list[Finding]:
    atomic_write(out.path / METRICS, header(COLUMNS) + b"".join(_walk_rows(settings)))
    atomic_write(out.path / FITS, header(FIT_COLUMNS) + b"".join(_fit_rows(settings)))
    drawn, fits = _read(out.path / METRICS), _read(out.path / FITS)
    write_figure(out.path / "figure", figure_walks(drawn, fits, settings.alpha))
    return findings_of(drawn, fits, settings)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def _generator(s: RandomWalkSettings, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed("walk", s.seeds[0], name))


def _walk_rows(s: RandomWalkSettings) -> Iterator[bytes]:
    for drift in DRIFTS:
        for dimensions in DIMENSIONS:
            d = walks(s, drift, dimensions, s.walks, _generator(s, f"{drift}-{dimensions}"))
            for t, own in zip(s.readings, d, strict=True):
                sides = [v for x in (own.square(), own) for v in (float(x.mean()), float(x.std()) / math.sqrt(s.walks))]
                yield format_row((drift, dimensions, t, *sides, law(s, drift, t)))


def _fit_rows(s: RandomWalkSettings) -> Iterator[bytes]:
    """Of walks with constant and without drift, of one walk and of several at a time."""
    t = torch.tensor(s.readings, dtype=torch.float64, device="cpu")
    for drift in DRIFTS[:2]:
        for members in MEMBERS:
            generator = _generator(s, f"fit-{drift}-{members}")
            for draw in range(s.draws):
                d = walks(s, drift, _FIT_DIMENSIONS, members, generator)
                with _quietly():
                    found = ce.fit_divergence(t, d, resamples=_RESAMPLES, seed=draw).offset
                ends = [x for e in (found.alpha, found.beta) for x in (e.value, e.low, e.high)]
                yield format_row((drift, members, draw, *ends))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the warning that an interval is missing: how often it is, is one of the results."""
    log = logging.getLogger("chaos_ext")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
