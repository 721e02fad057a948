"""Spectra of Hessians: every nonzero eigenpair exactly, or a few extreme ones matrix-free."""

from __future__ import annotations

import os
from typing import Protocol, cast

import torch
from torch import Tensor

from . import memory
from .compressed import Basis, LayerBasis
from .eigen import WHICH, eigh, lanczos
from .errors import CheckpointError, NonFiniteError
from .hessian import HessianOperator
from .params import Origin

ZERO_TOL = {torch.float32: 1e-5, torch.float64: 1e-12}
_FORMAT = "chaos_ext.Spectrum/1"


class Columns(Protocol):
    """Orthonormal columns Q [P, n] in which eigenvectors are expressed."""

    columns: int

    def coordinates(self, v: Tensor) -> Tensor: ...
    def lift(self, c: Tensor) -> Tensor: ...


class Coordinates:
    """Q = I: eigenvectors in theta itself."""

    def __init__(self, size: int) -> None:
        self.columns = size

    def coordinates(self, v: Tensor) -> Tensor:
        return v

    def lift(self, c: Tensor) -> Tensor:
        return c


class Spectrum:
    """Eigenpairs of a Hessian at one theta, on one batch.

    Eigenvalues ascend. A complete spectrum holds every eigenvalue with |lambda| > zero_tol * max|lambda|; the other
    ``nullity`` = P - r count as zero. Eigenvectors are kept as V = Q Z with structured Q and made on demand.

    Attributes:
        eigenvalues: [r], ascending.
        size: P.
        nullity: P - r, or None for a partial spectrum.
        zero_tol: relative zero tolerance.
        zero_threshold: zero_tol * max|lambda|, absolute.
        loss: the loss at which it was taken, or None.
        gradient: its gradient [P] in the model's dtype, or None.
        basis: Q.
        Z: eigenvectors in the coordinates of Q, [n, r].
        origin: the model, batch and theta that it belongs to (None after ``load``).
    """

    def __init__(
        self,
        eigenvalues: Tensor,
        Z: Tensor,
        basis: Columns,
        size: int,
        *,
        complete: bool,
        zero_tol: float,
        scale: float,
        loss: Tensor | None = None,
        gradient: Tensor | None = None,
        exact_gradient: Tensor | None = None,
        near: Tensor | None = None,
        origin: Origin | None = None,
    ) -> None:
        self.eigenvalues, self.Z, self.basis, self.size = eigenvalues, Z, basis, size
        self.nullity = size - len(eigenvalues) if complete else None
        self.zero_tol, self.zero_threshold = zero_tol, zero_tol * scale
        self.loss, self.gradient = loss, gradient
        self._exact_gradient = gradient if exact_gradient is None else exact_gradient
        self._near = near
        self.origin = origin
        self._coefficients: Tensor | None = None

    def __repr__(self) -> str:
        kind = "partial" if self.nullity is None else f"nullity {self.nullity}"
        return f"Spectrum(P={self.size}, r={len(self.eigenvalues)}, {kind}, {self.dtype})"

    @property
    def dtype(self) -> torch.dtype:
        return self.eigenvalues.dtype

    def eigenvectors(self, index: slice | Tensor | list[int] | None = None) -> Tensor:
        """The eigenvectors selected by a slice, a list or a tensor of indices or a mask, as columns [P, m]."""
        chosen = self.Z if index is None else self.Z[:, index]
        if chosen.dim() == 1:
            chosen = chosen.unsqueeze(1)
        memory.require(
            self.size * chosen.shape[1] * self.dtype.itemsize, chosen.device, "eigenvectors", "ask for fewer at a time"
        )
        return self.basis.lift(chosen)

    def coefficients(self, v: Tensor) -> Tensor:
        """V^T v for v [P] or [P, k]: [r] or [r, k]."""
        columns = self._columns(v)
        c = self.Z.T @ self.basis.coordinates(columns)
        return c.squeeze(1) if v.dim() == 1 else c

    def combine(self, c: Tensor) -> Tensor:
        """V c for c [r] or [r, k]: [P] or [P, k]."""
        columns = c.unsqueeze(1) if c.dim() == 1 else c
        out = self.basis.lift(self.Z @ columns)
        return out.squeeze(1) if c.dim() == 1 else out

    def project(self, v: Tensor, mask: Tensor) -> Tensor:
        """V_mask V_mask^T v, the orthogonal projection of v [P] or [P, k] on the selected eigenspace.

        Args:
            v: in the spectrum's dtype.
            mask: bool [r].
        """
        if mask.dtype != torch.bool or tuple(mask.shape) != (len(self.eigenvalues),):
            raise ValueError(f"mask: expected bool [{len(self.eigenvalues)}], got {mask.dtype} {tuple(mask.shape)}")
        c = self.coefficients(v)
        return self.combine(c * (mask if c.dim() == 1 else mask.unsqueeze(1)))

    def _columns(self, v: Tensor) -> Tensor:
        if v.dtype != self.dtype or v.device != self.eigenvalues.device:
            where = f"{self.dtype} on {self.eigenvalues.device}"
            raise TypeError(f"v: expected a {where} tensor like the spectrum, got {v.dtype} on {v.device}")
        if v.dim() not in (1, 2) or len(v) != self.size:
            raise ValueError(f"v: expected shape [{self.size}] or [{self.size}, k], got {tuple(v.shape)}")
        return v.unsqueeze(1) if v.dim() == 1 else v

    def gradient_coefficients(self) -> Tensor:
        """V^T g [r] of the gradient that the spectrum carries."""
        if self._exact_gradient is None:
            raise ValueError("spec: it carries no gradient; make it from a HessianOperator")
        if self._coefficients is None:
            self._coefficients = self.coefficients(self._exact_gradient)
        return self._coefficients

    @property
    def gradient_norm_squared(self) -> Tensor:
        if self._exact_gradient is None:
            raise ValueError("spec: it carries no gradient; make it from a HessianOperator")
        return self._exact_gradient.double().square().sum()

    @property
    def near_threshold(self) -> tuple[int, float]:
        """How many eigenvalues have |lambda| within 10 % of the zero threshold, and their part of ||g||^2."""
        if self._near is None or not self._near.shape[1]:
            return 0, 0.0
        count = self._near.shape[1]
        if self._exact_gradient is None:
            return count, float("nan")
        c = self._near.T @ self.basis.coordinates(self._exact_gradient.unsqueeze(1))
        return count, float(c.double().square().sum())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the spectrum to a file, whole or not at all."""
        layers = [b.__dict__ for b in self.basis.layers] if isinstance(self.basis, Basis) else None
        names = ("eigenvalues", "Z", "size", "zero_tol", "zero_threshold", "loss", "gradient")
        state = {k: getattr(self, k) for k in names}
        state |= {"format": _FORMAT, "complete": self.nullity is not None, "layers": layers}
        state |= {"exact_gradient": self._exact_gradient, "near": self._near}
        temporary = f"{os.fspath(path)}.tmp"
        torch.save(state, temporary)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], map_location: torch.device | str | None = None) -> Spectrum:
        """Reads what ``save`` wrote.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: not a spectrum, or damaged.
        """
        try:
            state = torch.load(path, map_location=map_location, weights_only=True)
            if state["format"] != _FORMAT:
                raise KeyError(state["format"])
            layers, size = state["layers"], state["size"]
            basis: Columns = Coordinates(size)
            if layers is not None:
                basis = cast(Columns, Basis(tuple(LayerBasis(**b) for b in layers), size))
            spec = cls(
                state["eigenvalues"],
                state["Z"],
                basis,
                size,
                complete=state["complete"],
                zero_tol=state["zero_tol"],
                scale=0.0,
                loss=state["loss"],
                gradient=state["gradient"],
                exact_gradient=state["exact_gradient"],
                near=state["near"],
            )
            spec.zero_threshold = state["zero_threshold"]
        except FileNotFoundError:
            raise
        except Exception as e:  # torch.load raises many kinds on a damaged file
            raise CheckpointError(f"{os.fspath(path)}: not a spectrum written by Spectrum.save ({e})") from e
        return spec


def spectrum(
    op: HessianOperator,
    k: int | None = None,
    which: str = "both_ends",
    *,
    zero_tol: float | None = None,
    spectrum_dtype: torch.dtype | None = None,
    tol: float | None = None,
    max_products: int | None = None,
) -> Spectrum:
    """Eigenpairs of H: all nonzero ones exactly, or k extreme ones by matrix-free Lanczos.

    Without k, the eigendecomposition runs on the compressed Hessian where that is smaller than P, else on the dense one.

    Args:
        op: the operator; its loss and gradient are carried over.
        k: number of eigenpairs in total; None: all.
        which: with k: "both_ends" (k // 2 smallest, the others largest), "largest", "smallest" or "magnitude".
        zero_tol: |lambda| <= zero_tol * max|lambda| counts as zero; default 1e-12 in float64, 1e-5 in float32.
        spectrum_dtype: torch.float64 computes H and its spectrum in float64 for a float32 model; default the model's.
        tol: with k: relative residual at which a pair counts as converged; default 1e-10 in float64, 1e-5 in float32.
        max_products: with k: limit of Hessian-vector products.

    Raises:
        ValueError: k outside 1..P, an unknown ``which``, a zero_tol outside [0, 1).
        NotConvergedError: an eigensolver failed; never a wrong value.
        MemoryBudgetError: no compressed form, and the dense decomposition does not fit.
        StaleOperatorError: the parameters or the batch changed since the operator was made.
    """
    if not isinstance(op, HessianOperator):
        raise TypeError(f"op: expected a HessianOperator, got {type(op).__name__}")
    dtype = op.dtype if spectrum_dtype is None else spectrum_dtype
    tolerance = check_options(dtype, zero_tol)
    key = ("spectrum", dtype, tolerance)
    if k is not None:
        return _partial(op, k, which, dtype, tolerance, tol, max_products)
    if key not in op._cache:
        op._cache[key] = _complete(op, dtype, tolerance)
    return op._cache[key]  # type: ignore[return-value]


def _complete(op: HessianOperator, dtype: torch.dtype, zero_tol: float) -> Spectrum:
    bound = op.compressed_bound(dtype)
    size = op.shape[0]
    if bound is not None and bound < 0.95 * size:
        compressed = op.compressed(dtype)
        basis, S = cast(Columns, compressed.basis), compressed.S
    else:
        need = 4 * size * size * dtype.itemsize
        memory.require(need, op.device, "dense eigendecomposition", "use spectrum(op, k=...)", op._budget)
        basis, S = Coordinates(size), op.dense_in(dtype)
    spec = _decomposed(S, basis, size, zero_tol, op.gradient_in(dtype))
    spec.loss, spec.gradient, spec.origin = op.loss, op.gradient, op.origin
    return spec


def _decomposed(S: Tensor, basis: Columns, size: int, zero_tol: float, gradient: Tensor | None) -> Spectrum:
    values, Z = eigh(S)
    magnitude = values.abs()
    scale = float(magnitude.max()) if len(values) else 0.0
    threshold = zero_tol * scale
    nonzero = magnitude > threshold
    near = (magnitude >= 0.9 * threshold) & (magnitude <= 1.1 * threshold) & (magnitude > 0)
    return Spectrum(
        values[nonzero],
        Z[:, nonzero],
        basis,
        size,
        complete=True,
        zero_tol=zero_tol,
        scale=scale,
        exact_gradient=gradient,
        near=Z[:, near],
    )


def spectrum_of_matrix(
    H: Tensor,
    gradient: Tensor | None = None,
    *,
    zero_tol: float | None = None,
    spectrum_dtype: torch.dtype | None = None,
) -> Spectrum:
    """All nonzero eigenpairs of a dense symmetric matrix [P, P].

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
    return _decomposed(H.to(dtype), Coordinates(len(H)), len(H), tolerance, exact)


def check_options(dtype: torch.dtype, zero_tol: float | None) -> float:
    """The zero tolerance in force, after checking both options."""
    if dtype not in ZERO_TOL:
        raise ValueError(f"spectrum_dtype: expected torch.float32 or torch.float64, got {dtype}")
    tolerance = ZERO_TOL[dtype] if zero_tol is None else zero_tol
    if not 0 <= tolerance < 1:
        raise ValueError(f"zero_tol: expected 0 <= zero_tol < 1, got {zero_tol!r}")
    return tolerance


def _partial(
    op: HessianOperator,
    k: int,
    which: str,
    dtype: torch.dtype,
    zero_tol: float,
    tol: float | None,
    max_products: int | None,
) -> Spectrum:
    size = op.shape[0]
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= size:
        raise ValueError(f"k: expected an int in 1..P = {size}, got {k!r}")
    if which not in WHICH:
        raise ValueError(f"which: expected one of {WHICH}, got {which!r}")
    if dtype != op.dtype:
        raise ValueError("spectrum_dtype: not available with k; convert the model with .double()")
    values, V = lanczos(
        op.__matmul__, size, k, which, dtype=dtype, device=op.device, tol=tol, max_products=max_products
    )
    return Spectrum(
        values,
        V,
        Coordinates(size),
        size,
        complete=False,
        zero_tol=zero_tol,
        scale=float(values.abs().max()),
        loss=op.loss,
        gradient=op.gradient,
        origin=op.origin,
    )
