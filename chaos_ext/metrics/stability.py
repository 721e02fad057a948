"""Where the sharpness stands relative to the edge at which the optimizer would diverge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from ..base.arguments import require_number
from ..base.parameters import Group
from ..chaos import Threshold, chaotic_threshold
from ..curvature.dataset import DatasetHessian
from ..curvature.hessian import HessianOperator
from ..dynamics.projected import Projected
from ..errors import UnsupportedError
from ..spectra.decompose import spectrum
from ..spectra.spectrum import Spectrum
from .preconditioned import edge, preconditioned_sharpness

REGIMES = ("large_batch", "small_batch")


@dataclass(frozen=True)
class StabilityMargin:
    """Where the sharpness stands relative to the edge of stability.

    Attributes:
        sharpness: the largest curvature that the optimizer steps on: lambda_max, plus weight decay; of Adam the
            preconditioned one.
        threshold: above it a direction is unstable: 2 / lr for plain SGD.
        distance: threshold - sharpness; negative beyond the edge.
        ratio: sharpness / threshold.
    """

    sharpness: float
    threshold: float
    distance: float
    ratio: float


def distance_to_threshold(
    source: Spectrum | HessianOperator | DatasetHessian | float, opt: Optimizer, regime: str = "large_batch"
) -> StabilityMargin:
    """Distance of the sharpness to the threshold at which a quadratic would diverge under this optimizer.

    The threshold is where a companion root of the recurrence leaves the unit circle: lr kappa > 2 for SGD, lr (1 - d)
    kappa > 2 (1 + mu) for heavy ball with dampening d, lr kappa > (2 + 2 mu) / (1 + 2 mu) for Nesterov; kappa is the
    curvature plus weight decay, and minus the curvature under ``maximize``. Of Adam and AdamW kappa is the largest
    eigenvalue of P^-1 H, P being the preconditioner of the next step, held fixed (``preconditioned_sharpness``), and
    the edge lr (1 - b1) kappa > (1 + b1) (2 - lr w) with the decoupled weight decay w of AdamW: 38 / lr at b1 = 0.9.

    Args:
        source: a spectrum that holds the largest eigenvalue (the smallest under ``maximize``), an operator (of a batch,
            or of a data set), or that eigenvalue. Adam needs the operator, or the largest eigenvalue of P^-1 H itself,
            weight decay included.
        opt: torch.optim.SGD, Adam or AdamW, or CGD.
        regime: "large_batch", the edge above; "small_batch": 2 (1 - mu) / ((1 - d) lr), at which the *batch* sharpness
            of heavy ball was seen to settle in training with small batches (an observation, no theorem): compare with
            ``batch_sharpness_over``.

    Raises:
        UnsupportedError: another optimizer; parameter groups that differ; a spectrum for Adam; "small_batch" for
            Nesterov or Adam, where no edge is known.
        ValueError: an unknown regime, no eigenvalue.
    """
    if regime not in REGIMES:
        raise ValueError(f"regime: expected one of {REGIMES}, got {regime!r}")
    if type(opt) in (Adam, AdamW):
        return _of_adam(source, opt, regime)
    if type(opt) is not SGD and not isinstance(opt, Projected):
        known = "torch.optim.SGD, Adam, AdamW and CGD"
        raise UnsupportedError(f"distance_to_threshold: known for {known}, got {type(opt).__name__}")
    t = chaotic_threshold(opt.param_groups, "optimizer")
    return _margin(_sharpness(source, t), _upper(t, opt.param_groups[0], regime))


def _margin(sharpness: float, threshold: float) -> StabilityMargin:
    return StabilityMargin(sharpness, threshold, threshold - sharpness, sharpness / threshold)


def _of_adam(
    source: Spectrum | HessianOperator | DatasetHessian | float, opt: Optimizer, regime: str
) -> StabilityMargin:
    if regime != "large_batch":
        raise UnsupportedError(f"regime='small_batch': no edge is known for {type(opt).__name__}; use 'large_batch'")
    if isinstance(source, Spectrum):
        raise UnsupportedError(
            f"source: {type(opt).__name__} steps on P^-1 H, whose eigenvalues are not those of H: give the "
            "HessianOperator instead of its spectrum"
        )
    operator = isinstance(source, (HessianOperator, DatasetHessian))
    return _margin(preconditioned_sharpness(source, opt) if operator else _number(source), edge(opt))  # type: ignore[arg-type]


def _number(source: object) -> float:
    require_number("source", source)
    return float(source)  # type: ignore[arg-type]


def _upper(t: Threshold, group: Group, regime: str) -> float:
    mu = float(group["momentum"])
    if regime == "large_batch" or mu == 0:
        return t.upper
    if group["nesterov"]:
        raise UnsupportedError("regime='small_batch': no edge is known for nesterov=True; use 'large_batch'")
    return t.upper * (1 - mu) / (1 + mu)


def _sharpness(source: Spectrum | HessianOperator | DatasetHessian | float, t: Threshold) -> float:
    if isinstance(source, (HessianOperator, DatasetHessian)):
        source = spectrum(source, k=1, which="largest" if t.sign > 0 else "smallest")
    values = (
        source.eigenvalues.double()
        if isinstance(source, Spectrum)
        else torch.tensor([_number(source)], dtype=torch.float64, device="cpu")
    )
    kappa: Tensor = t.sign * values
    if isinstance(source, Spectrum) and source.nullity:
        kappa = torch.cat([kappa, kappa.new_zeros(1)])
    if not len(kappa):
        raise ValueError("source: expected a spectrum with at least one eigenvalue")
    return float(kappa.max()) + t.shift
