"""Spectra of Hessians: every nonzero eigenpair exactly, or a few extreme ones matrix-free."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..curvature.basis import Columns, Coordinates
from ..curvature.dataset import DatasetHessian
from ..curvature.ggn import GGNOperator
from ..curvature.hessian import HessianOperator
from ..errors import NonFiniteError
from .cost import announce, decomposed_size, eigenpairs
from .gauss_newton import eigenpairs as gauss_newton_pairs
from .options import check_options
from .partial import check_lanczos, partial_spectrum
from .spectrum import Spectrum
from .tridiagonal import EigenColumns, Tridiagonal

Operator = HessianOperator | DatasetHessian | GGNOperator


def spectrum(
    op: Any,
    k: int | None = None,
    which: str = "both_ends",
    *,
    zero_tol: float | None = None,
    spectrum_dtype: torch.dtype | None = None,
    tol: float | None = None,
    max_products: int | None = None,
    start: Spectrum | None = None,
) -> Spectrum:
    """Eigenpairs of H: all nonzero ones exactly, or k extreme ones by matrix-free Lanczos.

    Without k, the eigendecomposition runs on the compressed Hessian where that is smaller than P, else on the dense
    one; of a Gauss-Newton matrix on the Gram matrix of its outputs. With k, multiple eigenvalues come with their
    multiplicity; the memory is that of some 2 k + 20 vectors.

    Args:
        op: the operator; its loss and gradient are carried over. With k also a symmetric matrix, or any object with
            ``shape`` and ``@`` on torch tensors or numpy arrays: of such ones there is no loss and no gradient.
        k: number of eigenpairs in total; None: all.
        which: with k: "both_ends" (k // 2 smallest, the others largest), "largest", "smallest" or "magnitude".
        zero_tol: |lambda| <= zero_tol * max|lambda| counts as zero; default 1e-12 in float64, 1e-5 in float32.
        spectrum_dtype: torch.float64 computes H and its spectrum in float64 for a float32 model; default the model's.
        tol: with k: relative residual at which a pair counts as converged; default 1e-10 in float64, 1e-5 in float32.
        max_products: with k: limit of Hessian-vector products.
        start: with k: the spectrum of a similar operator of the same size (of an earlier step), to begin from its
            eigenvectors. What is found does not depend on it.

    Raises:
        TypeError: ``op`` or ``start`` of another kind.
        ValueError: k outside 1..P, an unknown ``which``, a zero_tol outside [0, 1).
        NotConvergedError: an eigensolver failed; never a wrong value.
        NonFiniteError: NaN or infinity in a product.
        MemoryBudgetError: no compressed form, and the dense decomposition does not fit; or the vectors of k pairs.
        StaleOperatorError: the parameters or the batch changed since the operator was made, or the spectrum that it
            has given before was edited.

    Example:
        >>> spec = ce.spectrum(op)
        >>> len(spec.eigenvalues) + spec.nullity == op.shape[0]
        True
        >>> V = spec.eigenvectors([0, -1])  # of the smallest and the largest eigenvalue, [P, 2]
        >>> bool(torch.allclose(op @ V, V * spec.eigenvalues[[0, -1]], atol=1e-5))
        True
    """
    if k is not None:
        return partial_spectrum(
            op, k, which, zero_tol=zero_tol, dtype=spectrum_dtype, tol=tol, max_products=max_products, start=start
        )
    check_lanczos(which, tol, max_products)
    if not isinstance(op, Operator):
        raise TypeError(
            f"op: expected a HessianOperator, a DatasetHessian or a GGNOperator, got {type(op).__name__}; of other "
            "operators give k"
        )
    if start is not None:
        raise ValueError("start: expected None without k: a complete spectrum is not found from another one")
    dtype = op.dtype if spectrum_dtype is None else spectrum_dtype
    tolerance = check_options(dtype, zero_tol)
    return _once(op, "spectrum", dtype, tolerance)


def directions(op: Operator, *, zero_tol: float | None = None, spectrum_dtype: torch.dtype | None = None) -> Spectrum:
    """The complete spectrum of ``spectrum(op)`` for one projection: on the CPU no eigenvector is formed.

    The same eigenvalues and projections to rounding, several times faster; ``eigenvectors()`` of the result is slow. A
    spectrum that ``op`` has already is taken.

    Args:
        op: the operator; its loss and gradient are carried over.
        zero_tol, spectrum_dtype: as of ``spectrum``.

    Returns:
        A complete Spectrum, for ``project``, ``coefficients``, ``select`` and ``CGD.step``.

    Raises:
        ValueError, NotConvergedError, MemoryBudgetError, StaleOperatorError: as of ``spectrum``.
    """
    dtype = op.dtype if spectrum_dtype is None else spectrum_dtype
    tolerance = check_options(dtype, zero_tol)
    if ("spectrum", dtype, tolerance) in op.results or op.device.type != "cpu":
        return spectrum(op, zero_tol=tolerance, spectrum_dtype=dtype)
    return _once(op, "directions", dtype, tolerance)


def _once(op: Operator, kind: str, dtype: torch.dtype, tolerance: float) -> Spectrum:
    """The operator's one spectrum of this kind, which whoever has it may have edited."""
    spec = op.results.once((kind, dtype, tolerance), lambda: _complete(op, dtype, tolerance, form=kind == "spectrum"))
    spec.require_unedited()
    return spec


def _complete(op: Operator, dtype: torch.dtype, zero_tol: float, *, form: bool) -> Spectrum:
    if isinstance(op, GGNOperator):
        pairs = gauss_newton_pairs(op, dtype, zero_tol)
        spec = _nonzero(*pairs, op.shape[0], zero_tol, op.gradient_in(dtype))
    else:
        # A dense eigh holds four matrices; the decomposition without eigenvectors H, and three in float64.
        entry = 4 * dtype.itemsize if form else 24 + dtype.itemsize
        announce(decomposed_size(op, dtype), dtype, op.device, form, entry)
        basis, S = op.smallest_form(dtype, entry)
        spec = decomposed(S, basis, op.shape[0], zero_tol, op.gradient_in(dtype), form)
    spec.loss, spec.gradient, spec.origin = op.loss, op.gradient, op.origin
    return spec


def decomposed(
    S: Tensor, basis: Columns, size: int, zero_tol: float, gradient: Tensor | None, form: bool = True
) -> Spectrum:
    """The complete spectrum of H = Q S Q^T [P, P], P = size; without ``form`` as ``directions`` gives it."""
    return _nonzero(*eigenpairs(S, form), basis, size, zero_tol, gradient)


def _nonzero(
    values: Tensor, vectors: Tensor | Tridiagonal, basis: Columns, size: int, zero_tol: float, gradient: Tensor | None
) -> Spectrum:
    """The spectrum of these eigenpairs, without what counts as zero."""
    magnitude = values.abs()
    scale = float(magnitude.max()) if len(values) else 0.0
    threshold = zero_tol * scale
    nonzero = magnitude > threshold
    near = (magnitude >= 0.9 * threshold) & (magnitude <= 1.1 * threshold) & (magnitude > 0)

    def columns(mask: Tensor) -> Tensor | EigenColumns:
        return vectors.columns(mask) if isinstance(vectors, Tridiagonal) else vectors[:, mask]

    return Spectrum(
        values[nonzero],
        columns(nonzero),
        basis,
        size,
        complete=True,
        zero_tol=zero_tol,
        scale=scale,
        exact_gradient=gradient,
        near=columns(near),
    )


def spectrum_of_matrix(
    H: Tensor,
    gradient: Tensor | None = None,
    *,
    zero_tol: float | None = None,
    spectrum_dtype: torch.dtype | None = None,
    form: bool = True,
) -> Spectrum:
    """All nonzero eigenpairs of a dense symmetric matrix [P, P]; without ``form`` as ``directions`` gives them.

    Raises:
        ValueError: not square, or not symmetric to rounding.
        NonFiniteError: NaN or inf.
    """
    if H.dim() != 2 or H.shape[0] != H.shape[1]:
        raise ValueError(f"H: expected a square matrix, got shape {tuple(H.shape)}")
    if gradient is not None and len(gradient) != len(H):
        raise ValueError(f"H: expected shape [{len(gradient)}, {len(gradient)}], got {tuple(H.shape)}")
    dtype = spectrum_dtype or H.dtype
    tolerance = check_options(dtype, zero_tol)
    H = H.detach()
    if not bool(torch.isfinite(H).all()):
        raise NonFiniteError("H: the Hessian has NaN or inf")
    limit = 1e-3 if H.dtype == torch.float32 else 1e-8
    if len(H) and float((H - H.T).abs().max()) > limit * float(H.abs().max()):
        raise ValueError(f"H: expected a symmetric matrix, it is asymmetric by more than {limit:g} of its scale")
    exact = None if gradient is None else gradient.to(dtype)
    return decomposed(H.to(dtype), Coordinates(len(H)), len(H), tolerance, exact, form)
