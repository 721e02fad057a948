"""The law by which twins part (appendix A.10), by its derivation, by walks that are drawn, and by fits of these.

The difference of two twins starts with length eps in a direction of its own, and gets -lr (v + xi) at each step t, v a
constant drift and xi of covariance sigma^2 / P in each of P dimensions. With the start independent of all else

    E d(t)^2 = eps^2 + lr^2 |v|^2 t^2 + lr^2 sigma^2 t,

exactly and for every P, so the root mean square distance is sqrt(eps^2 + alpha t^2 + beta t), alpha = lr^2 |v|^2 and
beta = lr^2 sigma^2. Four things that are easily left out: it is the root mean square, above the mean; lr enters
squared; eps^2 stays; and v has to keep its direction: one that turns at random only adds to beta.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import chaos_ext as ce

from ..base.files import atomic_write
from ..data.batches import derive_seed
from .computed import run_computed
from .findings import Finding
from .output import METRICS, OutputFolder
from .random_walk_figure import figure_walks
from .random_walk_findings import findings_of
from .random_walk_options import NAME, QUICK_DRAWS, QUICK_WALKS
from .rows import format_row, header
from .settings import Recorded
from .study import write_figure

FITS = "fits.csv"
COLUMNS = ("drift", "dimensions", "step", "square", "square_error", "mean", "mean_error", "law")
FIT_COLUMNS = ("drift", "members", "draw", "alpha", "alpha_low", "alpha_high", "beta", "beta_low", "beta_high")
DRIFTS = ("constant", "none", "turning")
DIMENSIONS = (2, 100, 1000)
MEMBERS = (1, 16)
READINGS = 40
_FIT_DIMENSIONS = 100
_CROSSOVER = 40.0  # sigma^2 / |v|^2: the step from which on the drift is the larger part
_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class RandomWalkSettings(Recorded):
    """What decides the numbers of ``chaos-ext reproduce random-walk``."""

    walks: int
    steps: int
    lr: float
    eps: float
    draws: int
    seeds: tuple[int, ...]

    @property
    def alpha(self) -> float:
        """Of the law with drift, |v| = 1."""
        return self.lr**2

    @property
    def beta(self) -> float:
        """Of the law, sigma^2 = ``_CROSSOVER``."""
        return self.lr**2 * _CROSSOVER

    @property
    def readings(self) -> list[int]:
        """Steps that are looked at."""
        return sorted({round(i * self.steps / READINGS) for i in range(READINGS + 1)})


def law(s: RandomWalkSettings, drift: str, t: float) -> float:
    """E d(t)^2; of a drift that turns, too, were it constant."""
    return s.eps**2 + (0.0 if drift == "none" else s.alpha) * t**2 + s.beta * t


def walks(s: RandomWalkSettings, drift: str, dimensions: int, count: int, generator: torch.Generator) -> Tensor:
    """Distances of so many walks at the readings [readings, count]."""

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, dimensions, generator=generator, dtype=torch.float64, device="cpu")

    def unit(rows: int) -> Tensor:
        return torch.nn.functional.normalize(draw(rows), dim=1)

    x, v = s.eps * unit(count), unit(1)
    sigma, wanted, found = math.sqrt(_CROSSOVER / dimensions), set(s.readings), []
    for t in range(s.steps + 1):
        if t in wanted:
            found.append(x.norm(dim=1))
        way = {"none": torch.zeros_like(v), "constant": v}.get(drift)
        x -= s.lr * ((unit(count) if way is None else way) + sigma * draw(count))
    return torch.stack(found)


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
