"""The gradient of an eigenvalue with respect to theta: what is asked for, what is checked, what is reported."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..base.results import Results
from ..base.snapshot import Origin, Snapshot
from ..base.tensors import all_finite
from ..errors import NonFiniteError
from .symmetric import OnTheta

_RESIDUAL = {torch.float32: 1e-3, torch.float64: 1e-6}  # of max|lambda|: beyond, a pair is another operator's
_MARGIN = 10.0  # times the residual: eigenvectors nearer to each other are not resolved


@runtime_checkable
class Eigenpairs(Protocol):
    """What a ``Spectrum`` shows here."""

    eigenvalues: Tensor
    size: int
    nullity: int | None
    zero_threshold: float
    unseen: tuple[float, float] | None
    loss: Tensor | None
    gradient: Tensor | None
    origin: Origin | None
    shapes: list[tuple[int, ...]] | None

    @property
    def dtype(self) -> torch.dtype: ...
    def eigenvectors(self, index: Any = None) -> Tensor: ...
    def require_unedited(self) -> None: ...


@dataclass(frozen=True)
class EigenvalueGradient:
    """What ``op.eigenvalue_gradient`` has found.

    The gradient is right to about 2 |D3 L| residual / gap, which is how far the eigenvectors may be off.

    Attributes:
        gradient: [P], of the eigenvalue, or of the mean of several; in the spectrum's dtype.
        eigenvalues: [m], those that were asked for, in the order of the indices.
        indices: theirs.
        gap: from any of them to the nearest eigenvalue that was not asked for; infinite if there is none. Zero counts
            where it is an eigenvalue.
        residual: [m], |H v - lambda v| of each.
    """

    gradient: Tensor
    eigenvalues: Tensor
    indices: tuple[int, ...]
    gap: float
    residual: Tensor


class WithEigenvalueGradient(OnTheta):
    """A symmetric matrix on theta whose change with theta is known along its own directions."""

    snapshot: Snapshot
    origin: Origin
    results: Results

    @property
    def loss(self) -> Tensor:
        """The loss, a detached scalar."""
        raise NotImplementedError

    @property
    def gradient(self) -> Tensor:
        """dloss/dtheta [P]."""
        raise NotImplementedError

    def curvature_along(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """A V [P, m], and the gradient [P] of the mean of v^T A(theta) v over the columns of V [P, m], held fixed."""
        raise NotImplementedError

    def eigenvalue_gradient(self, spec: Any, i: Any, *, tol: float | None = None) -> EigenvalueGradient:
        """The gradient of an eigenvalue of this matrix with respect to theta, exact.

        Of a simple eigenvalue with eigenvector v, and of the mean of m eigenvalues,

            grad lambda = D3 L[v, v, .],        grad mean lambda = (1/m) sum_j D3 L[v_j, v_j, .]

        for H = D2 L (of another operator A the gradient of v^T A(theta) v, v held fixed). The second depends on the
        space of the eigenvectors only, not on which basis of it was found: the way to take eigenvalues that lie so near
        to each other that single ones have no gradient. With layer rules one more tangent level goes through the tape,
        else torch goes backward three times, through normalisation as plain arithmetic; both cost a few products for
        each eigenvector. Every new program is held once against differences of H v, in float64 where that is possible.
        A piecewise linear function (ReLU, max-pooling) has zero higher derivatives, as in torch, also where
        it has a kink: what an eigenvalue jumps by when theta crosses one is not seen.

        Args:
            spec: a ``Spectrum`` of this operator, or of the same model, theta and batch. Of a partial one the innermost
                eigenvalue has neighbours that are not known: ask for one pair more.
            i: an index; or several, as a slice, a list, a tensor of indices or a bool mask [r], for their mean.
                Negative ones count from the end.
            tol: how near another eigenvalue may be, relative to max|lambda|; default 1.5e-8 in float64, 3.5e-4 in
                float32: the root of the dtype's precision.

        Raises:
            TypeError: no Spectrum, one of another dtype or device, indices of another kind.
            IndexError: an index that the spectrum does not have.
            ValueError: a spectrum of another model, theta, batch or operator; an eigenvalue nearer than ``tol`` to one
                that was not asked for: the message has the whole cluster.
            UnsupportedError: no third derivative, or one that differences of H v contradict.
            NonFiniteError: NaN or infinity in it.
            StaleOperatorError: the parameters or the batch changed since construction.

        Example:
            >>> found = op.eigenvalue_gradient(ce.spectrum(op), -1)  # of the largest
            >>> found.gradient.shape == op.gradient.shape, bool((found.residual < found.gap).all())
            (True, True)
        """
        require_spectrum(self, spec)
        near = _tolerance(spec, tol)
        values = spec.eigenvalues.tolist()
        chosen = _indices(i, len(values))
        gap = _gap(values, chosen, _unseen(spec))
        if gap <= near:
            raise _too_near(spec, chosen, near)
        self.snapshot.require_fresh()
        V = spec.eigenvectors(list(chosen))
        products, gradient = self.curvature_along(V)
        self.snapshot.require_fresh()
        if not all_finite(gradient):
            raise NonFiniteError("eigenvalue_gradient: third derivatives have NaN or inf")
        own = spec.eigenvalues[list(chosen)]
        residual = (products - V * own).norm(dim=0)
        _require_resolved(float(residual.max()), gap, _scale(values), V.dtype)
        return EigenvalueGradient(gradient, own, chosen, gap, residual)


def require_spectrum(op: WithEigenvalueGradient, spec: Any) -> None:
    """Raises unless the spectrum is one of the operator's model, theta and batch."""
    if not isinstance(spec, Eigenpairs):
        raise TypeError(f"spec: expected a Spectrum, got {type(spec).__name__}")
    spec.require_unedited()
    if spec.size != op.shape[0]:
        raise ValueError(f"spec: expected a spectrum of P = {op.shape[0]} like the operator, got P = {spec.size}")
    if spec.dtype not in (op.dtype, torch.float64) or spec.eigenvalues.device != op.device:
        where = f"{spec.dtype} on {spec.eigenvalues.device}"
        raise TypeError(f"spec: expected a {op.dtype} or float64 spectrum on {op.device}, got {where}")
    other = None if spec.origin is op.origin else _other(op, spec)
    if other:
        raise ValueError(
            f"spec: it is of {other} than the operator; take ce.spectrum of this operator, or the operator it is of"
        )


def _other(op: WithEigenvalueGradient, spec: Eigenpairs) -> str | None:
    """What the spectrum belongs to that is not the operator's, as far as it tells."""
    space, origin = op.snapshot.space, spec.origin
    if origin is not None:
        theirs = origin.snapshot
        if origin.model is not op.origin.model:
            return "another model"
        if theirs.space.names != space.names:
            return "other parameters"
        if not torch.equal(theirs.theta, op.snapshot.theta):
            return "another theta"
    elif spec.shapes is not None and spec.shapes != [tuple(s) for s in space.shapes]:
        return "other parameters"
    if spec.loss is None or spec.gradient is None:
        raise ValueError("spec: it carries no loss and no gradient that say what it is of; take ce.spectrum(op)")
    root = torch.finfo(op.dtype).eps ** 0.5
    loss, gradient = op.loss, op.gradient
    limit = root * float(gradient.norm()) + 1e2 * root**2 * float(loss.abs())
    same = torch.allclose(spec.loss.to(loss), loss, rtol=root, atol=root**2)
    same = same and float((spec.gradient.to(gradient) - gradient).norm()) <= limit
    return None if same else "another batch, loss or theta"


def _tolerance(spec: Eigenpairs, tol: float | None) -> float:
    """How near another eigenvalue may be, absolute."""
    if tol is not None and (isinstance(tol, bool) or not isinstance(tol, (int, float)) or not 0 <= tol < 1):
        raise ValueError(f"tol: expected a number with 0 <= tol < 1, got {tol!r}")
    relative = torch.finfo(spec.dtype).eps ** 0.5 if tol is None else float(tol)
    return relative * _scale(spec.eigenvalues.tolist())


def _scale(values: Sequence[float]) -> float:
    return max(map(abs, values), default=0.0)


def _indices(i: Any, r: int) -> tuple[int, ...]:
    """Indices in 0..r-1, each once, as they were given."""
    given = _listed(i, r)
    wrong = [j for j in given if not -r <= j < r]
    if wrong:
        raise IndexError(f"i: expected indices of {r} eigenvalues, got {wrong[0]}")
    found = tuple(j % r for j in given)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"i: expected at least one index, and each once, got {list(found)}")
    return found


def _listed(i: Any, r: int) -> list[int]:
    if isinstance(i, slice):
        return list(range(r))[i]
    if isinstance(i, Tensor):
        if i.dtype == torch.bool and tuple(i.shape) != (r,):
            raise ValueError(f"i: expected a bool mask [{r}], got {tuple(i.shape)}")
        if i.dim() > 1 or i.is_floating_point() or i.is_complex():
            raise TypeError(f"i: expected indices or a bool mask, got {i.dtype} {tuple(i.shape)}")
        i = i.nonzero().reshape(-1).tolist() if i.dtype == torch.bool else i.tolist()
    try:
        parts = list(i) if isinstance(i, (Sequence, range)) or hasattr(i, "__len__") else [i]
        if any(isinstance(j, bool) for j in parts):
            raise TypeError
        return [operator.index(j) for j in parts]
    except TypeError:
        raise TypeError(f"i: expected an index, a slice, indices or a bool mask [r] as a tensor, got {i!r}") from None


def _unseen(spec: Eigenpairs) -> tuple[float, float]:
    """Where eigenvalues may lie that the spectrum does not list."""
    if spec.nullity is None:
        return spec.unseen or (-math.inf, math.inf)
    return (-spec.zero_threshold, spec.zero_threshold) if spec.nullity else (math.inf, math.inf)


def _gap(values: Sequence[float], chosen: Sequence[int], unseen: tuple[float, float]) -> float:
    inside, outside = [values[j] for j in chosen], [v for j, v in enumerate(values) if j not in set(chosen)]
    known = min((abs(a - b) for a in inside for b in outside), default=math.inf)
    return min(known, *(_distance(a, unseen) for a in inside))


def _distance(a: float, interval: tuple[float, float]) -> float:
    low, high = interval
    return 0.0 if low <= a <= high else min(abs(a - low), abs(a - high))


def _cluster(values: Sequence[float], chosen: Sequence[int], near: float) -> list[int]:
    """The chosen ones, and all that steps of at most ``near`` connect with them (values ascend)."""
    found = set(chosen)
    for j in chosen:
        for step in (-1, 1):
            at = j
            while 0 <= at + step < len(values) and abs(values[at + step] - values[at]) <= near:
                at += step
                found.add(at)
    return sorted(found)


def _too_near(spec: Eigenpairs, chosen: Sequence[int], near: float) -> ValueError:
    """Says what is too near to the chosen ones, and what to do."""
    values, unseen = spec.eigenvalues.tolist(), _unseen(spec)
    cluster = _cluster(values, chosen, near)
    what = f"eigenvalue {values[chosen[0]]:.6g}" if len(chosen) == 1 else f"one of the eigenvalues {list(chosen)}"
    if any(_distance(values[j], unseen) <= near for j in cluster):
        of_zero = "eigenvalues that count as zero, from which it cannot be told apart; choose others, or a smaller tol"
        of_unknown = "some that this partial spectrum does not list; take ce.spectrum with a larger k, or all of them"
        beyond = of_unknown if spec.nullity is None else of_zero
        return ValueError(f"i: {what} is, in steps of at most {near:.2g}, connected with {beyond}")
    listed = ", ".join(f"{values[j]:.6g}" for j in cluster[:8]) + (", ..." if len(cluster) > 8 else "")
    return ValueError(
        f"i: {what} is part of a cluster of eigenvalues ({listed}) no more than {near:.2g} apart, of which single ones "
        f"have no gradient; pass the whole cluster for the gradient of its mean: i={cluster}"
    )


def _require_resolved(residual: float, gap: float, scale: float, dtype: torch.dtype) -> None:
    limit = _RESIDUAL[dtype] * scale
    if not residual <= limit:
        raise ValueError(
            f"spec: |A v - lambda v| = {residual:.2g} is more than {limit:.2g}: not an eigenpair of this operator (of "
            "another kind, GGNOperator or HessianOperator?), or one that was found with a large tol"
        )
    if not _MARGIN * residual <= gap:
        raise ValueError(
            f"spec: |A v - lambda v| = {residual:.2g} is too large for a gap of {gap:.2g} to the next eigenvalue: the "
            "eigenvectors are not resolved; take ce.spectrum with a smaller tol, or pass the cluster as indices"
        )
