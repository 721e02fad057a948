"""How far apart two default initialisations of a network are (appendix A.8): a closed form, and draws.

PyTorch draws weights and biases of a layer with n inputs from U(-a, a), a = 1 / sqrt(n), of variance a^2 / 3. So

    E ||theta_1 - theta_2||^2 = sum over parameters of 2 / (3 n),

and since P is large its root is the expected distance up to a relative 1 / (4 P). For the MLP 256-20-10 that is 4.515;
the paper has 6.38, larger by sqrt(2), which is the variance of U(-a, a) taken as 2 a^2 / 3.
"""

from __future__ import annotations

import argparse
import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

import chaos_ext as ce

from ..base.files import atomic_write
from ..data.batches import derive_seed
from ..figures import COLORS, import_numpy
from ..models import MODELS
from .computed import run_computed
from .findings import Finding
from .init_distance_options import NAME, QUICK_DRAWS
from .output import OutputFolder
from .series import spread
from .settings import Recorded
from .study import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISTANCES = "distances.csv"
PAPER = 6.38


@dataclass(frozen=True, kw_only=True)
class InitDistanceSettings(Recorded):
    """What decides the numbers of ``chaos-ext reproduce init-distance``."""

    model: str
    draws: int
    seeds: tuple[int, ...]


def expected(model: nn.Module) -> float:
    """sqrt(sum of 2 / (3 n)) over the parameters of Linear and convolutional layers with n inputs."""
    total = 0.0
    for m in model.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)):
            inputs = m.weight[0].numel()
            total += 2 / (3 * inputs) * sum(p.numel() for p in m.parameters())
    return math.sqrt(total)


def distances(settings: InitDistanceSettings) -> list[float]:
    """Of pairs of models, each with a seed of its own."""
    make, (seed,) = MODELS[settings.model], settings.seeds
    found = []
    for i in range(settings.draws):
        pair = [make(seed=derive_seed("pair", seed, str(2 * i + j)), dtype=torch.float64) for j in range(2)]
        a, b = (parameters_to_vector(m.parameters()).detach() for m in pair)
        found.append(float((a - b).norm()))
    return found


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Draws, compares, and writes every result.

    Args:
        args: as ``init_distance_options`` has them parsed.
        parser: of these.

    Returns:
        The exit status, 0.

    Raises:
        UsageError: matplotlib is missing, or the output folder is not one to work in.
    """
    settings = InitDistanceSettings(
        model=args.model,
        draws=QUICK_DRAWS if args.quick else args.draws,
        seeds=(args.seed,),
        threads=torch.get_num_threads(),
        device="cpu",
        chaos_ext=ce.__version__,
        torch=str(torch.__version__),
    )
    make = functools.partial(_make, settings)
    return run_computed(NAME, settings, args, parser, f"{NAME}-{args.model}", make)


def _make(settings: InitDistanceSettings, out: OutputFolder) -> list[Finding]:
    found, theory = distances(settings), expected(MODELS[settings.model](seed=0))
    lines = [f"{i},{d!r}\n" for i, d in enumerate(found)]
    atomic_write(out.path / DISTANCES, "".join(["pair,distance\n", *lines]))
    write_figure(out.path / "figure", _figure(found, theory, settings.model))
    return [_finding(found, theory, settings.model)]


def _finding(found: list[float], theory: float, model: str) -> Finding:
    mean, sd = spread(found)
    error = sd / math.sqrt(len(found))
    claimed = PAPER if model == "mlp" else math.sqrt(2) * theory
    agrees = abs(mean - claimed) < 4 * error
    return Finding(
        claim=f"Two default initialisations are expected to be {claimed:.3g} apart",
        where="appendix A.8",
        criterion="the mean distance of the draws is within 4 standard errors of it",
        numbers=f"{mean:.4f} +- {error:.1g} in {len(found)} draws, {theory:.4f} by the closed form: sqrt(2) less",
        verdict="reproduced" if agrees else "not reproduced",
    )


def _figure(found: list[float], theory: float, model: str) -> Figure:
    import_numpy()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=150)
    ax = figure.subplots()
    ax.hist(found, bins="auto", color=COLORS["negative"], alpha=0.6, label=f"{len(found)} pairs drawn")
    ax.axvline(theory, color=COLORS["sgd"], linewidth=1.5, label=f"closed form: {theory:.3f}")
    claimed = PAPER if model == "mlp" else math.sqrt(2) * theory
    ax.axvline(claimed, color=COLORS["chaotic"], linewidth=1.5, linestyle="--", label=f"with sqrt(2): {claimed:.3g}")
    ax.set_xlabel("distance of two initialisations")
    ax.set_ylabel("pairs")
    ax.set_title(f"default initialisation, {model}", fontsize="medium")
    ax.legend(frameon=False)
    return figure
