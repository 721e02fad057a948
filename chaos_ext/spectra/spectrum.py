"""Eigenpairs of a Hessian in structured form: V = Q Z with Q never materialised."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import memory
from ..base.snapshot import Origin
from ..curvature.basis import Basis, Columns
from . import handed, shown, storage
from .handed import HandedOut, own
from .tridiagonal import EigenColumns


class Spectrum:
    """Eigenpairs of a Hessian at one theta, on one batch.

    Eigenvalues ascend. A complete spectrum holds every eigenvalue with |lambda| > zero_tol * max|lambda|; the other
    ``nullity`` = P - r count as zero. Eigenvectors are kept as V = Q Z with structured Q and made on demand.

    Made by ``spectrum`` and ``directions``.

    Args:
        eigenvalues, Z, basis, size, zero_tol, loss, gradient, origin, ends: the attributes of these names.
        complete: whether every eigenvalue beyond the tolerance is there.
        scale: max|lambda| of H.
        exact_gradient: the gradient in the spectrum's dtype, where the model's is another.
        near: eigenvectors, in the coordinates of Q, of the eigenvalues within 10 % of the zero threshold.

    Attributes:
        eigenvalues: [r], ascending.
        size: P.
        nullity: P - r, or None for a partial spectrum.
        zero_tol: relative zero tolerance.
        zero_threshold: zero_tol * max|lambda|, absolute.
        loss: the loss at which it was taken, or None.
        gradient: its gradient [P] in the model's dtype, or None.
        basis: Q.
        Z: eigenvectors in the coordinates of Q, [n, r] (of ``directions``: as a matrix that is never formed).
        origin: the model, batch and theta that it belongs to (None after ``load``).
        ends: of a partial spectrum, how many are the smallest and how many the largest of H; None: not known.
        shapes: of the parameters that make up theta, in order, after ``load`` (None where unknown).
        unseen: of a partial spectrum the interval in which all other eigenvalues lie (None where unknown).

    Its tensors are its own: edit clones. After an edit, in whatever way, it raises StaleOperatorError.
    """

    eigenvalues, Z, basis = HandedOut[Tensor](), HandedOut[Tensor | EigenColumns](), HandedOut[Columns]()
    loss, gradient = HandedOut[Tensor | None](), HandedOut[Tensor | None]()
    unseen: tuple[float, float] | None = None
    ends: tuple[int, int] | None = None

    def __init__(
        self,
        eigenvalues: Tensor,
        Z: Tensor | EigenColumns,
        basis: Columns,
        size: int,
        *,
        complete: bool,
        zero_tol: float,
        scale: float,
        loss: Tensor | None = None,
        gradient: Tensor | None = None,
        exact_gradient: Tensor | None = None,
        near: Tensor | EigenColumns | None = None,
        origin: Origin | None = None,
        ends: tuple[int, int] | None = None,
    ) -> None:
        self.eigenvalues, self.Z, self.basis, self.size = eigenvalues, Z, basis, size
        self.nullity = size - len(eigenvalues) if complete else None
        self.zero_tol, self.zero_threshold = zero_tol, zero_tol * scale
        self.loss, self.gradient = loss, gradient
        self._exact_gradient = gradient if exact_gradient is None else exact_gradient
        self._near, self.origin, self.ends = near, origin, ends
        self.shapes: list[tuple[int, ...]] | None = None
        self._coefficients: Tensor | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of pickles from before edits were found by value."""
        older = {"gradient": state["_gradient"]} if "_gradient" in state else {}
        vars(self).update({k: v for k, v in state.items() if k not in ("_gradient", "_made_with")}, **older)

    def require_unedited(self) -> None:
        """Raises StaleOperatorError if its tensors were replaced or written to, through ``.data`` or numpy included."""
        handed.require_unedited(self)

    def parts(self) -> tuple[Tensor | EigenColumns, Columns]:
        """Z and the basis, for reading only."""
        return own(self, "Z"), own(self, "basis")

    def __repr__(self) -> str:
        kind = "partial" if self.nullity is None else f"nullity {self.nullity}"
        return f"Spectrum(P={self.size}, r={len(own(self, 'eigenvalues'))}, {kind}, {self.dtype})"

    def _repr_html_(self) -> str:
        """For notebooks: how many eigenvalues of which sign, and where they lie."""
        values, loss = own(self, "eigenvalues"), own(self, "loss")
        return shown.as_html(values, loss, self.size, self.nullity, self.zero_threshold)

    @property
    def dtype(self) -> torch.dtype:
        """Of eigenvalues and eigenvectors."""
        dtype: torch.dtype = vars(self)["eigenvalues"].dtype
        return dtype

    def eigenvectors(self, index: slice | Tensor | list[int] | None = None) -> Tensor:
        """Eigenvectors, made on demand.

        Args:
            index: a slice, a list or a tensor of indices, or a bool mask [r]; None: all r of them.

        Returns:
            Orthonormal columns [P, m], in the order of the eigenvalues (or of the indices).

        Raises:
            MemoryBudgetError: P * m numbers do not fit.
        """
        Z, basis = self.parts()
        chosen = Z[:, slice(None) if index is None else index]
        if chosen.dim() == 1:
            chosen = chosen.unsqueeze(1)
        need = self.size * chosen.shape[1] * self.dtype.itemsize
        memory.require(need, chosen.device, "eigenvectors", "ask for fewer at a time")
        copied = isinstance(index, (Tensor, list)) or not isinstance(Z, Tensor)
        lifted = basis.lift(chosen)
        return lifted.clone() if lifted is chosen and not copied else lifted

    def coefficients(self, v: Tensor) -> Tensor:
        """V^T v, the coordinates of vectors along the eigenvectors.

        Args:
            v: [P] or [P, k], in the spectrum's dtype and on its device.

        Returns:
            [r] or [r, k].

        Raises:
            ValueError, TypeError: v of another shape, dtype or device.
        """
        columns, (Z, basis) = self._columns(v), self.parts()
        c = Z.T @ basis.coordinates(columns)
        return c.squeeze(1) if v.dim() == 1 else c

    def combine(self, c: Tensor) -> Tensor:
        """V c, the vectors of given coordinates; the adjoint of ``coefficients``.

        Args:
            c: [r] or [r, k], in the spectrum's dtype. ValueError: another shape.

        Returns:
            [P] or [P, k].
        """
        Z, basis = self.parts()
        if c.dim() not in (1, 2) or len(c) != Z.shape[1]:
            raise ValueError(f"c: expected shape [{Z.shape[1]}] or [.., k], got {tuple(c.shape)}")
        columns = c.unsqueeze(1) if c.dim() == 1 else c
        out = basis.lift(Z @ columns)
        return out.squeeze(1) if c.dim() == 1 else out

    def project(self, v: Tensor, mask: Tensor) -> Tensor:
        """V_mask V_mask^T v, the orthogonal projection of v [P] or [P, k] on the selected eigenspace.

        Args:
            v: in the spectrum's dtype.
            mask: bool [r], such as ``select`` returns.

        Returns:
            Of v's shape.

        Raises:
            ValueError, TypeError: a mask that is no bool [r], v of another shape, dtype or device.
        """
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask: expected a bool tensor, got {type(mask).__name__}")
        r = self.parts()[0].shape[1]
        if mask.dtype != torch.bool or tuple(mask.shape) != (r,):
            raise ValueError(f"mask: expected bool [{r}], got {mask.dtype} {tuple(mask.shape)}")
        c = self.coefficients(v)
        return self.combine(c * (mask if c.dim() == 1 else mask.unsqueeze(1)))

    def _columns(self, v: Tensor) -> Tensor:
        dtype, device = self.dtype, self.parts()[0].device
        if v.dtype != dtype or v.device != device:
            where = f"{dtype} on {device}"
            raise TypeError(f"v: expected a {where} tensor like the spectrum, got {v.dtype} on {v.device}")
        if v.dim() not in (1, 2) or len(v) != self.size:
            raise ValueError(f"v: expected shape [{self.size}] or [{self.size}, k], got {tuple(v.shape)}")
        return v.unsqueeze(1) if v.dim() == 1 else v

    def gradient_coefficients(self) -> Tensor:
        """V^T g [r] of the gradient that the spectrum carries.

        Raises:
            ValueError: it carries none.
        """
        gradient = self._own_gradient()
        if self._coefficients is None:
            self._coefficients = self.coefficients(gradient)
        return self._coefficients.clone()

    def _own_gradient(self) -> Tensor:
        own(self, "gradient")  # which may be the same tensor
        if self._exact_gradient is None:
            raise ValueError("spec: it carries no gradient; make it from a HessianOperator")
        return self._exact_gradient

    @property
    def gradient_norm_squared(self) -> Tensor:
        """||g||^2 in float64 of the gradient that it carries."""
        return self._own_gradient().double().square().sum()

    @property
    def near_threshold(self) -> tuple[int, float]:
        """How many eigenvalues have |lambda| within 10 % of the zero threshold, and their part of ||g||^2."""
        if self._near is None or not self._near.shape[1]:
            return 0, 0.0
        count = self._near.shape[1]
        if self._exact_gradient is None:
            return count, float("nan")
        c = self._near.T @ self.parts()[1].coordinates(self._own_gradient().unsqueeze(1))
        return count, float(c.double().square().sum())

    def _stored_shapes(self) -> list[tuple[int, ...]] | None:
        return self.shapes if self.origin is None else [tuple(s) for s in self.origin.snapshot.space.shapes]

    def __getstate__(self) -> dict[str, Any]:
        """Of a pickle: as after ``save`` and ``load``, without the live model and batch."""
        held = self._without_model() if not storage.is_plain(vars(self)["basis"]) else self.__dict__
        return {**held, "origin": None, "shapes": self._stored_shapes()}

    def _without_model(self) -> dict[str, Any]:
        """Its fields with eigenvectors as numbers, and nothing handed out."""
        self.require_unedited()
        Z, basis, near = storage.plain(*self.parts(), self._near)
        return {**handed.unnoted(self), "Z": Z, "basis": basis, "_near": near}

    def __deepcopy__(self, memo: dict[int, Any]) -> Spectrum:
        """Numbers of its own, but the same origin: a copy of the model would be another model."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy({**self.__dict__, "origin": None}, memo))
        twin.origin = self.origin
        return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the spectrum to a file with a checksum, whole or not at all.

        Eigenvalues, eigenvectors in structured form, loss and gradient are kept; model and batch are not.

        Args:
            path: replaced if it exists; its folder must exist.

        Raises:
            OSError: it cannot be written there.
            StaleOperatorError: it was edited.
        """
        Z, basis, near = storage.plain(*self.parts(), self._near)
        layers = [b.__dict__ for b in basis.layers] if isinstance(basis, Basis) else None
        names = ("eigenvalues", "size", "zero_tol", "zero_threshold", "loss", "gradient")
        state = {k: own(self, k) for k in names}
        state |= {"complete": self.nullity is not None, "layers": layers, "shapes": self._stored_shapes()}
        state["ends"] = None if self.ends is None else list(self.ends)
        state |= {"Z": Z, "exact_gradient": self._exact_gradient, "near": near, "unseen": self.unseen}
        storage.write(Path(path), state)

    @classmethod
    def load(cls, path: str | os.PathLike[str], map_location: torch.device | str | None = None) -> Spectrum:
        """Reads what ``save`` wrote.

        A file from before files had a checksum of the whole is read after its parts' were verified, with a warning.

        Args:
            path: the file.
            map_location: the device to put it on; default: where it was.

        Returns:
            The spectrum, with ``origin`` None.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: not a spectrum, or damaged.
        """
        state = storage.read(Path(path), map_location)
        basics = ("eigenvalues", "Z", "basis", "size", "complete", "zero_tol")
        names = (*basics, "loss", "gradient", "exact_gradient", "near", "ends")
        spec = cls(**{n: state[n] for n in names}, scale=0.0)
        spec.zero_threshold, spec.shapes = state["zero_threshold"], state["shapes"]
        spec.unseen = state.get("unseen")
        return spec
