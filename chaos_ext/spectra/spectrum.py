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
from ..base.torch_internals import version
from ..curvature.basis import Basis, Columns
from ..errors import StaleOperatorError
from . import storage
from .tridiagonal import EigenColumns


class Spectrum:
    """Eigenpairs of a Hessian at one theta, on one batch.

    Eigenvalues ascend. A complete spectrum holds every eigenvalue with |lambda| > zero_tol * max|lambda|; the other
    ``nullity`` = P - r count as zero. Eigenvectors are kept as V = Q Z with structured Q and made on demand.

    Made by ``spectrum`` and ``directions``.

    Args:
        eigenvalues, Z, basis, size, zero_tol, loss, gradient, origin: the attributes of these names.
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
        shapes: of the parameters that make up theta, in order, after ``load`` (None where unknown).
    """

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
    ) -> None:
        self.eigenvalues, self.Z, self.basis, self.size = eigenvalues, Z, basis, size
        self.nullity = size - len(eigenvalues) if complete else None
        self.zero_tol, self.zero_threshold = zero_tol, zero_tol * scale
        self.loss, self._gradient = loss, gradient
        self._exact_gradient = gradient if exact_gradient is None else exact_gradient
        self._near = near
        self.origin = origin
        self.shapes: list[tuple[int, ...]] | None = None
        self._coefficients: Tensor | None = None
        self._made_with = self._marks()

    def _marks(self) -> list[tuple[int, int]]:
        layers = self.basis.layers if isinstance(self.basis, Basis) else ()
        parts = [
            self.eigenvalues,
            self.Z,
            self._gradient,
            self._exact_gradient,
            *[t for b in layers for t in vars(b).values()],
        ]
        return [(id(t), version(t)) for t in parts if isinstance(t, Tensor)]

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._made_with = self._marks()

    @property
    def gradient(self) -> Tensor | None:
        """Of the loss at which it was taken [P], in the model's dtype, or None."""
        return self._gradient

    @gradient.setter
    def gradient(self, value: Tensor | None) -> None:
        first, self._gradient = self._gradient is None, value
        if first:
            self._made_with = self._marks()

    def require_unedited(self) -> None:
        """Raises StaleOperatorError if its tensors were replaced or written to (but for ``.data`` and numpy)."""
        if self._marks() != self._made_with:
            why = "its eigenvalues, eigenvectors or gradient were edited after it was made; make a new one, edit clones"
            raise StaleOperatorError(f"spectrum: {why}")

    def __repr__(self) -> str:
        kind = "partial" if self.nullity is None else f"nullity {self.nullity}"
        return f"Spectrum(P={self.size}, r={len(self.eigenvalues)}, {kind}, {self.dtype})"

    @property
    def dtype(self) -> torch.dtype:
        """Of eigenvalues and eigenvectors."""
        return self.eigenvalues.dtype

    def eigenvectors(self, index: slice | Tensor | list[int] | None = None) -> Tensor:
        """Eigenvectors, made on demand.

        Args:
            index: a slice, a list or a tensor of indices, or a bool mask [r]; None: all r of them.

        Returns:
            Orthonormal columns [P, m], in the order of the eigenvalues (or of the indices).

        Raises:
            MemoryBudgetError: P * m numbers do not fit.
        """
        chosen = self.Z[:, slice(None) if index is None else index]
        if chosen.dim() == 1:
            chosen = chosen.unsqueeze(1)
        memory.require(
            self.size * chosen.shape[1] * self.dtype.itemsize, chosen.device, "eigenvectors", "ask for fewer at a time"
        )
        return self.basis.lift(chosen)

    def coefficients(self, v: Tensor) -> Tensor:
        """V^T v, the coordinates of vectors along the eigenvectors.

        Args:
            v: [P] or [P, k], in the spectrum's dtype and on its device.

        Returns:
            [r] or [r, k].

        Raises:
            ValueError, TypeError: v of another shape, dtype or device.
        """
        columns = self._columns(v)
        c = self.Z.T @ self.basis.coordinates(columns)
        return c.squeeze(1) if v.dim() == 1 else c

    def combine(self, c: Tensor) -> Tensor:
        """V c, the vectors of given coordinates; the adjoint of ``coefficients``.

        Args:
            c: [r] or [r, k], in the spectrum's dtype.

        Returns:
            [P] or [P, k].

        Raises:
            ValueError: c of another shape.
        """
        if c.dim() not in (1, 2) or len(c) != len(self.eigenvalues):
            raise ValueError(f"c: expected shape [{len(self.eigenvalues)}] or [.., k], got {tuple(c.shape)}")
        columns = c.unsqueeze(1) if c.dim() == 1 else c
        out = self.basis.lift(self.Z @ columns)
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
        """V^T g [r] of the gradient that the spectrum carries.

        Raises:
            ValueError: it carries none.
        """
        if self._exact_gradient is None:
            raise ValueError("spec: it carries no gradient; make it from a HessianOperator")
        if self._coefficients is None:
            self._coefficients = self.coefficients(self._exact_gradient)
        return self._coefficients

    @property
    def gradient_norm_squared(self) -> Tensor:
        """||g||^2 in float64 of the gradient that it carries."""
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

    def _stored_shapes(self) -> list[tuple[int, ...]] | None:
        return self.shapes if self.origin is None else [tuple(s) for s in self.origin.snapshot.space.shapes]

    def __getstate__(self) -> dict[str, Any]:
        """Of a pickle: as after ``save`` and ``load``, without the live model and batch."""
        return {**self.__dict__, "origin": None, "shapes": self._stored_shapes()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Spectrum:
        """Numbers of its own, but the same origin: a copy of the model would be another model."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy({**self.__dict__, "origin": None}, memo))
        twin.origin = self.origin
        return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the spectrum to a file with a checksum, whole or not at all.

        Eigenvalues, eigenvectors in structured form, loss and gradient are kept; the model and the batch are not.

        Args:
            path: replaced if it exists; its folder must exist.

        Raises:
            OSError: it cannot be written there.
        """
        layers = [b.__dict__ for b in self.basis.layers] if isinstance(self.basis, Basis) else None
        names = ("eigenvalues", "size", "zero_tol", "zero_threshold", "loss", "gradient")
        state = {k: getattr(self, k) for k in names}
        state |= {"complete": self.nullity is not None, "layers": layers, "shapes": self._stored_shapes()}
        near = None if self._near is None else self._near[:, :]
        state |= {"Z": self.Z[:, :], "exact_gradient": self._exact_gradient, "near": near}
        storage.write(Path(path), state)

    @classmethod
    def load(cls, path: str | os.PathLike[str], map_location: torch.device | str | None = None) -> Spectrum:
        """Reads what ``save`` wrote.

        A file from before files had a checksum of the whole is read after the checksums of its parts were verified, and
        a warning is logged: save it again.

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
        spec = cls(
            state["eigenvalues"],
            state["Z"],
            state["basis"],
            state["size"],
            complete=state["complete"],
            zero_tol=state["zero_tol"],
            scale=0.0,
            loss=state["loss"],
            gradient=state["gradient"],
            exact_gradient=state["exact_gradient"],
            near=state["near"],
        )
        spec.zero_threshold, spec.shapes = state["zero_threshold"], state["shapes"]
        return spec
