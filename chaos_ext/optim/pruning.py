"""What a CGD step takes out of the gradient, and how it is described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.parameters import ParameterSpace
from ..curvature.basis import Basis
from ..spectra.spectrum import Spectrum


@dataclass(frozen=True)
class StepInfo:
    """What one step did.

    Attributes:
        step: index of the step, from 0.
        loss: the loss before the step, None where it is not known.
        pruned: number of directions removed.
        share: ||V^T g||^2 / ||g||^2 of these directions (0 where nothing was pruned).
        n_negative, n_positive: eigenvalues beyond the zero tolerance; None where no spectrum was needed.
        lambda_min, lambda_max: extreme eigenvalues beyond the tolerance; None likewise, or where there is none.
    """

    step: int
    loss: float | None
    pruned: int = 0
    share: float = 0.0
    n_negative: int | None = None
    n_positive: int | None = None
    lambda_min: float | None = None
    lambda_max: float | None = None


@dataclass(frozen=True)
class Pruned:
    """V c' to be subtracted from the gradient: the spectrum, c' [r] and the share of ||g||^2 that V holds."""

    spec: Spectrum
    coefficients: Tensor
    count: int
    share: Tensor


def norm_squared(spec: Spectrum, gradient: Tensor, fixed: bool) -> Tensor:
    """||g||^2 in float64, of the very gradient whose coefficients are used."""
    return gradient.double().square().sum() if fixed else spec.gradient_norm_squared


def factors(space: ParameterSpace, pruned: Pruned) -> list[tuple[Tensor, Tensor] | None]:
    """V c' of each parameter as L [O, q] times R [q, I]: low-rank for a compressed spectrum, a column otherwise."""
    spec, dtype = pruned.spec, space.dtype
    c = spec.Z @ pruned.coefficients
    if not isinstance(spec.basis, Basis):
        one = torch.ones(1, 1, dtype=dtype, device=space.device)
        flat = spec.basis.lift(c.unsqueeze(1)).to(dtype)
        return [(flat[space.slice(i)].contiguous(), one) for i in range(len(space.params))]
    slot = {offset: i for i, offset in enumerate(space.offsets)}
    removed: list[tuple[Tensor, Tensor] | None] = [None] * len(space.params)
    for layer in spec.basis.layers:
        L, R = (t.to(dtype) for t in layer.factors(c))
        L = L.contiguous()
        if layer.weight >= 0:
            removed[slot[layer.weight]] = (L, R[:, : layer.inputs].contiguous())
        if layer.bias >= 0:
            removed[slot[layer.bias]] = (L, R[:, -1:].contiguous())
    return removed


def frozen_projection(spec: Spectrum, mask: Tensor, mix: float) -> Callable[[Tensor], None]:
    """I - mix V V^T of the selected directions as a function that acts in place on a block [P, k]."""

    def project_(block: Tensor) -> None:
        block.sub_(spec.project(block.to(spec.dtype), mask).to(block.dtype), alpha=mix)

    return project_


def check_pruning(start: int, stop: int | None, mix: float, noise: float | None, threshold: str) -> None:
    if threshold not in ("paper", "optimizer"):
        raise ValueError(f"threshold: expected 'paper' or 'optimizer', got {threshold!r}")
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise ValueError(f"start: expected an int >= 0, got {start!r}")
    if stop is not None and (not isinstance(stop, int) or stop < start):
        raise ValueError(f"stop: expected an int >= start = {start} or None, got {stop!r}")
    if not 0 <= mix <= 1:
        raise ValueError(f"mix: expected 0 <= mix <= 1, got {mix!r}")
    if noise is not None and not 0 <= noise < float("inf"):
        raise ValueError(f"noise: expected a finite standard deviation >= 0 or None, got {noise!r}")


def check_fixed(spec: Spectrum | None, size: int) -> None:
    if spec is not None and not isinstance(spec, Spectrum):
        raise TypeError(f"spectrum: expected a Spectrum, got {type(spec).__name__}")
    if spec is not None and spec.size != size:
        raise ValueError(f"spectrum: expected one of P = {size} like the parameters, got P = {spec.size}")
