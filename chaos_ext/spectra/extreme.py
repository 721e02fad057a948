"""The directions of a selection of k: of all eigenpairs, or, where these are costly, of the extreme ones alone."""

from __future__ import annotations

import torch

from ..curvature.ggn import GGNOperator
from .cost import decomposed_size
from .decompose import Operator, directions
from .lanczos import rows_for
from .options import check_options
from .partial import partial_spectrum
from .spectrum import Spectrum

_COSTLY = 2048  # of the matrix that would be decomposed: from here on Lanczos takes a small part of the time
_FEW = 8  # times smaller than that matrix is the basis that Lanczos works in


def needed(prune: str | None, k: int) -> tuple[int, str]:
    """How many pairs, and which, a selection of k directions by size needs.

    "dominant" and "bulk" are decided by the k largest eigenvalues. Of the others 2 k, k at either end, are enough:

    - "negative" takes the k of largest |lambda| with lambda < 0. Of two negative eigenvalues the smaller one has the
      larger |lambda|, so these are among the k smallest; where fewer than k are negative, the k smallest hold all of
      them. "positive" likewise at the other end.
    - "chaotic" takes the k largest exponents ln|1 - lr kappa| over kappa < 0 or kappa > upper >= 1 / lr, with
      kappa = lambda + shift or -lambda + shift. On kappa < 0 the exponent falls with kappa, beyond 1 / lr it grows: a
      member at one end whose k neighbours further out are members, too, is not among the k.
    - The zero tolerance is relative to max|lambda|, which lies at one of the ends.
    """
    return (k, "largest") if prune in ("dominant", "bulk") else (2 * k, "both_ends")


def extreme(
    op: Operator, prune: str | None, k: int, *, zero_tol: float | None, spectrum_dtype: torch.dtype | None
) -> Spectrum:
    """What ``select(..., prune, k)`` needs, or all: the same selection to the tolerance of ``spectrum(op, k)``.

    The sizes decide, and nothing else: the same operator has the same spectrum in every run.

    Args:
        op: the operator.
        prune, k: as of ``select``.
        zero_tol, spectrum_dtype: as of ``spectrum``.

    Raises:
        ValueError, NotConvergedError, MemoryBudgetError, StaleOperatorError: as of ``spectrum``.
    """
    count, which = needed(prune, k)
    dtype = op.dtype if spectrum_dtype is None else spectrum_dtype
    if isinstance(op, GGNOperator) or dtype != op.dtype or not _pays(decomposed_size(op, dtype), count):
        return directions(op, zero_tol=zero_tol, spectrum_dtype=spectrum_dtype)
    tolerance = check_options(dtype, zero_tol)

    def partial() -> Spectrum:
        return partial_spectrum(
            op, count, which, zero_tol=tolerance, dtype=None, tol=None, max_products=None, start=None
        )

    spec = op.results.once(("extreme", count, which, tolerance), partial)
    spec.require_unedited()
    return spec


def _pays(size: int, count: int) -> bool:
    return size >= _COSTLY and _FEW * rows_for(count, size) <= size
