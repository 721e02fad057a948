"""Local exponents of one step, the dimension that they give a state, and the curvature along batch gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..chaos import local_lyapunov_exponents
from ..curvature.hessian import HessianOperator
from ..dynamics.exponents import kaplan_yorke_dimension
from ..spectra.spectrum import Spectrum
from .intervals import Estimate, check_level, student_interval

DEFINITIONS = ("mean_of_ratios", "ratio_of_means")


def lle_spectrum(spec: Spectrum, lr: float) -> Tensor:
    """ln|1 - lr lambda| of all P eigen-directions of one step, float64 [P], descending, in nats per step.

    The ``nullity`` directions beyond the zero tolerance have exponent exactly 0.

    Args:
        spec: a complete spectrum.
        lr: learning rate.

    Raises:
        ValueError: a partial spectrum, lr < 0.
    """
    if spec.nullity is None:
        raise ValueError("spec: expected a complete spectrum, got a partial one; call spectrum(op) without k")
    local = local_lyapunov_exponents(spec.eigenvalues, lr)
    return torch.cat([local, local.new_zeros(spec.nullity)]).sort(descending=True).values


def batch_sharpness(op: HessianOperator) -> float:
    """g^T H g / g^T g of one batch: the curvature along its own gradient, at one Hessian-vector product.

    Averaged over batches this is the quantity that stays near 2 / lr in mini-batch training (Andreyev, Beneventano,
    "Edge of Stochastic Stability", 2024). NaN for a zero gradient.

    Args:
        op: the operator of the batch.

    Raises:
        StaleOperatorError: the parameters or the batch changed since it was made.
    """
    g = op.gradient
    norm = g.double().square().sum()
    return float(g.double() @ (op @ g).double() / norm)


@dataclass(frozen=True)
class BatchSharpness:
    """Batch sharpness over several batches.

    Attributes:
        estimate: with its interval over batches (Student's; NaN of a single batch).
        definition: "mean_of_ratios" or "ratio_of_means".
        level: of the interval.
        curvatures: g^T H g of each batch, float64 [n].
        squares: g^T g of each batch, float64 [n].
    """

    estimate: Estimate
    definition: str
    level: float
    curvatures: Tensor
    squares: Tensor


def batch_sharpness_over(
    operators: Iterable[HessianOperator], definition: str = "mean_of_ratios", level: float = 0.95
) -> BatchSharpness:
    """Curvature along their own gradients of several batches, with an interval over batches.

    Two definitions are in use, and differ where batches with large gradients are sharper than others:
    "mean_of_ratios", the mean over b of (g_b^T H_b g_b / g_b^T g_b), and "ratio_of_means", (mean over b of
    g_b^T H_b g_b) / (mean over b of g_b^T g_b). The interval takes the batches as independent draws: value +-
    t s / sqrt n, with the first-order deviations (g_b^T H_b g_b - value g_b^T g_b) / mean(g^T g) for the second.

    Args:
        operators: of batches at one state, or a generator that makes one at a time.
        definition: "mean_of_ratios" or "ratio_of_means".
        level: of the interval.

    Raises:
        ValueError: no batch, an unknown definition, a level outside (0, 1); a batch whose gradient is zero, with
            "mean_of_ratios", or all of them. TypeError: something else than operators.
        StaleOperatorError: the parameters or the batch of one changed since it was made.

    Example:
        >>> found = ce.batch_sharpness_over([op, op, op])
        >>> round(found.estimate.high - found.estimate.low, 6)  # the same batch three times
        0.0
    """
    if definition not in DEFINITIONS:
        raise ValueError(f"definition: expected one of {DEFINITIONS}, got {definition!r}")
    level = check_level(level)
    pairs = [_along_gradient(i, op) for i, op in enumerate(operators)]
    if not pairs:
        raise ValueError("operators: expected at least one HessianOperator, got none")
    curvatures, squares = torch.tensor(pairs, dtype=torch.float64, device="cpu").T
    if definition == "mean_of_ratios":
        zero = (squares == 0).nonzero().flatten().tolist()
        if zero:
            raise ValueError(f"operators: batches {zero} have zero gradients, and no ratio; use 'ratio_of_means'")
        ratios = curvatures / squares
        value = float(ratios.mean())
        estimate = student_interval(value, ratios - value, level)
    else:
        if not bool((squares > 0).any()):
            raise ValueError("operators: every gradient is zero, so there is no direction to look along")
        value = float(curvatures.sum() / squares.sum())
        estimate = student_interval(value, (curvatures - value * squares) / squares.mean(), level)
    return BatchSharpness(estimate, definition, level, curvatures, squares)


def _along_gradient(i: int, op: HessianOperator) -> tuple[float, float]:
    """g^T H g and g^T g."""
    if not isinstance(op, HessianOperator):
        raise TypeError(f"operators: expected HessianOperators, got {type(op).__name__} at {i}")
    g = op.gradient.double()
    return float(g @ (op @ op.gradient).double()), float(g @ g)


@dataclass(frozen=True)
class SharpnessDimension:
    """The sharpness dimension of a state.

    Attributes:
        with_zeros: of all P exponents.
        without_zeros: without the indices at which every batch's sorted list is exactly zero.
        zeros: how many these are.
        exponents: means over batches of the sorted lists, float64 [P], descending.
        batches: how many.
        kaplan_yorke: the Kaplan-Yorke dimension of the run's own Lyapunov exponents; NaN where none were given.
    """

    with_zeros: float
    without_zeros: float
    zeros: int
    exponents: Tensor
    batches: int
    kaplan_yorke: float


def sharpness_dimension(
    source: Iterable[Spectrum] | Tensor, lr: float | None = None, lyapunov: Tensor | None = None
) -> SharpnessDimension:
    """j + sum_(i <= j) l_i / |l_(j+1)| of l_i, the mean over batches of the sorted ln sigma_i(I - lr H_b).

    j is the last index with a non-negative partial sum; 0 if l_1 < 0, the number of exponents if no partial sum is
    negative. The directions that no batch sees (sigma = 1, l = 0) lie between the expanding and the contracting ones
    and decide the value: so it is also given without the indices that are zero in every batch's list. Averaged over the
    stationary distribution of a run it bounds the Kaplan-Yorke dimension of the true exponents from above; at a single
    state it does not.

    Args:
        source: complete spectra of several batches at one state (a generator will do), or exponents ln sigma_i, [P] or
            [batches, P].
        lr: learning rate, with spectra.
        lyapunov: Lyapunov exponents of the run, for the Kaplan-Yorke dimension beside it; all, or leading ones.

    Raises:
        ValueError: lr missing with spectra, or given with exponents; partial spectra; different P; NaN or +infinity;
            leading exponents that are too few. TypeError: something else than spectra.

    Example:
        >>> found = ce.sharpness_dimension(torch.tensor([0.2, 0.0, 0.0, -0.1, -0.4]))
        >>> found.with_zeros, found.without_zeros, found.zeros  # 4 + 0.1 / 0.4, of which two are zeros
        (4.25, 2.25, 2)
    """
    total, silent, batches = _sorted_lists(source, lr)
    means = total / batches
    kept = means[~silent]
    run = float("nan") if lyapunov is None else kaplan_yorke_dimension(lyapunov, len(means))
    return SharpnessDimension(
        kaplan_yorke_dimension(means),
        kaplan_yorke_dimension(kept) if len(kept) else 0.0,
        int(silent.sum()),
        means,
        batches,
        run,
    )


def _sorted_lists(source: Iterable[Spectrum] | Tensor, lr: float | None) -> tuple[Tensor, Tensor, int]:
    """Sum of the batches' descending lists, where each of them is zero, and how many there are."""
    total = silent = None
    batches = 0
    for values in _lists(source, lr):
        if bool(torch.isnan(values).any()) or bool((values == torch.inf).any()):
            raise ValueError(f"source: expected exponents below infinity, got NaN or infinity in batch {batches}")
        if total is not None and len(values) != len(total):
            raise ValueError(f"source: batch {batches} has {len(values)} exponents, the others have {len(total)}")
        total = values if total is None else total + values
        silent = values == 0 if silent is None else silent & (values == 0)
        batches += 1
    if total is None or silent is None or not len(total):
        raise ValueError("source: expected exponents of at least one batch, got none")
    return total, silent, batches


def _lists(source: Iterable[Spectrum] | Tensor, lr: float | None) -> Iterable[Tensor]:
    if isinstance(source, Tensor):
        if lr is not None:
            raise ValueError("lr: expected None with exponents, which hold it already; give spectra, or no lr")
        if source.dim() not in (1, 2) or source.is_complex():
            raise ValueError(f"source: expected real exponents [P] or [batches, P], got {tuple(source.shape)}")
        rows = source.detach().double()
        yield from (rows.unsqueeze(0) if rows.dim() == 1 else rows).sort(dim=1, descending=True).values
        return
    if lr is None:
        raise ValueError("lr: expected the learning rate with spectra, got None")
    for spec in [source] if isinstance(source, Spectrum) else source:
        if not isinstance(spec, Spectrum):
            raise TypeError(f"source: expected spectra or a tensor of exponents, got {type(spec).__name__}")
        yield lle_spectrum(spec, lr)
