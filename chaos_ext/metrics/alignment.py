"""How gradients and subspaces lie: in eigenspaces of H, and against each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..spectra.spectrum import Spectrum


@dataclass(frozen=True)
class Alignment:
    """How much of a vector lies in an eigenspace.

    Attributes:
        share: ||V^T g||^2 / ||g||^2.
        cosine: between g and its projection on the space, sqrt(share).
        dimension: of the space.
        baseline: the share expected of a random vector, dimension / P.
        cosines: of g with each eigenvector, float64 [dimension]; their signs are as arbitrary as the eigenvectors'.
    """

    share: float
    cosine: float
    dimension: int
    baseline: float
    cosines: Tensor


def gradient_alignment(spec: Spectrum, mask: Tensor, gradient: Tensor | None = None) -> Alignment:
    """Alignment of a gradient with the eigenspace that a mask [r] selects (see ``select``); NaN for a zero gradient.

    Args:
        spec: the spectrum.
        mask: bool [r].
        gradient: [P] in the spectrum's dtype, such as that of another batch; default: the spectrum's own.

    Raises:
        ValueError: a mask that is no bool [r]; no gradient given, and the spectrum carries none.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (len(spec.eigenvalues),):
        raise ValueError(f"mask: expected bool [{len(spec.eigenvalues)}], got {getattr(mask, 'dtype', mask)}")
    own = gradient is None
    c = spec.gradient_coefficients() if own else spec.coefficients(gradient)  # type: ignore[arg-type]
    total = spec.gradient_norm_squared if own else gradient.double().square().sum()  # type: ignore[union-attr]
    cosines = c.double()[mask] / total.sqrt()
    share, dimension = float(cosines.square().sum()), int(mask.sum())
    return Alignment(share, share**0.5, dimension, dimension / spec.size, cosines)


def gradient_cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two vectors, such as consecutive gradients: a^T b / (||a|| ||b||), in float64.

    Args:
        a, b: [P], of any floating dtype.

    Returns:
        A number in [-1, 1]; NaN if one of them is zero.

    Raises:
        ValueError: two shapes, or no vectors.

    Example:
        >>> round(ce.gradient_cosine(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])), 4)
        0.7071
    """
    if a.shape != b.shape or a.dim() != 1:
        raise ValueError(f"a, b: expected two vectors of one length, got {tuple(a.shape)} and {tuple(b.shape)}")
    u, v = a.detach().double(), b.detach().double()
    return float(u @ v / (u.norm() * v.norm()))


@dataclass(frozen=True)
class Similarity:
    """How much two subspaces overlap.

    Attributes:
        value: mean squared cosine of the principal angles, ||A^T B||_F^2 / min(a, b): 0 orthogonal, 1 nested.
        baseline: its expectation for random subspaces of these dimensions, max(a, b) / P.
        excess: (value - baseline) / (1 - baseline): 0 for chance, 1 for nested.
        cosines: of the principal angles, descending, float64 [min(a, b)].
    """

    value: float
    baseline: float
    excess: float
    cosines: Tensor


def subspace_similarity(A: Tensor, B: Tensor) -> Similarity:
    """Overlap of the column spaces of A [P, a] and B [P, b], beside what dimension alone would give.

    Even unrelated subspaces overlap by max(a, b) / P on average, so only the excess over that is evidence.

    Args:
        A, B: columns that need not be orthonormal, but independent.

    Raises:
        ValueError: shapes that do not fit, dependent columns.
    """
    if A.dim() != 2 or B.dim() != 2 or len(A) != len(B) or not A.shape[1] or not B.shape[1]:
        raise ValueError(f"A, B: expected [P, a] and [P, b] with a, b >= 1, got {tuple(A.shape)} and {tuple(B.shape)}")
    cosines = torch.linalg.svdvals(_basis("A", A).T @ _basis("B", B)).clamp_max(1.0)
    value = float(cosines.square().mean())
    baseline = max(A.shape[1], B.shape[1]) / len(A)
    excess = (value - baseline) / (1 - baseline) if baseline < 1 else float("nan")
    return Similarity(value, baseline, excess, cosines)


def _basis(name: str, A: Tensor) -> Tensor:
    Q, R = torch.linalg.qr(A.detach().double())
    diagonal = R.diagonal().abs()
    if A.shape[1] > len(A) or float(diagonal.min()) <= 1e-10 * float(diagonal.max()):
        raise ValueError(f"{name}: expected linearly independent columns")
    return Q


@dataclass(frozen=True)
class DirectionAlignment:
    """How directions of growth lie relative to eigenvectors of H.

    Attributes:
        cosines: of the theta part of each direction with each eigenvector, float64 [k, m]; signs are as arbitrary as
            the eigenvectors'.
        shares: sum of their squares, the part of the theta part that lies in the eigenvectors' span [k].
        theta: squared norm of the theta part over that of the whole direction [k]; 1 for optimizers without buffers.
        baseline: the share expected of a random direction, m / P.
    """

    cosines: Tensor
    shares: Tensor
    theta: Tensor
    baseline: float


def direction_alignment(directions: Tensor, eigenvectors: Tensor) -> DirectionAlignment:
    """Alignment of deviations of the optimizer's state with eigenvectors of H.

    Args:
        directions: columns [S, k], theta first, such as covariant vectors or ``LyapunovAnalyzer.directions()``; NaN
            columns (vectors that are not known) stay NaN.
        eigenvectors: orthonormal columns [P, m], P <= S, such as ``spec.eigenvectors(...)``.

    Raises:
        ValueError: shapes that do not fit, eigenvectors that are not orthonormal.

    Example:
        >>> found = ce.direction_alignment(spec.eigenvectors([-1]), spec.eigenvectors([0, -1]))
        >>> [round(abs(c), 4) for c in found.cosines[0].tolist()]
        [0.0, 1.0]
    """
    shapes = f"{tuple(directions.shape)} and {tuple(eigenvectors.shape)}"
    matrices = directions.dim() == eigenvectors.dim() == 2 and bool(eigenvectors.numel())
    if not matrices or len(eigenvectors) > len(directions):
        raise ValueError(f"directions, eigenvectors: expected [S, k] and [P, m] with P <= S, m >= 1, got {shapes}")
    V = eigenvectors.detach().double()
    off = float((V.T @ V - torch.eye(V.shape[1], dtype=V.dtype, device=V.device)).abs().max())
    if not off < 1e-3:
        raise ValueError(f"eigenvectors: expected orthonormal columns, got V^T V off the identity by {off:.2g}")
    D = directions.detach().to(V.device, torch.float64)
    part = D[: len(V)]
    size = torch.linalg.vector_norm(part, dim=0)
    cosines = (part / size).T @ V
    theta = size.square() / D.square().sum(0)
    return DirectionAlignment(cosines, cosines.square().sum(1), theta, V.shape[1] / len(V))
