"""The largest and the smallest singular value of Y diag(e^l) U in the middle of a block, without factoring it.

With T = diag(e^l) U, v in the space of initial deviations and w in the coordinates of the block,

    sigma_max = max_v ||Y T v|| / ||v||,      1 / sigma_min = max_w ||T^-1 w|| / ||Y w||,

over a subspace that grows by residuals: for the first the Krylov space of Golub-Kahan-Lanczos, which converges also
where sigma_1 / sigma_2 is near 1 and power steps stall; for the second generalised Davidson, where Y is nearly
orthonormal, so that its Gram matrix needs no inverse but the lengths of its columns. T v and T^-1 w last as long as the
block, so the subspace of the last reading costs one product with Y. Lest a direction that overtakes be missed, the row
of T that is the largest (smallest) now joins it, and a random vector. What is returned with a value is the bound of the
residual, the distance to *a* singular value relative to it; the value itself is more accurate, by its square.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_KEPT = 6  # vectors that go from one reading to the next
_MOST = 40  # vectors of a basis
_BREAKDOWN = 1e-13
_NEW = 1e-6  # of a vector: less than this beside a subspace is not worth a product

Map = Callable[[Tensor], Tensor]


class Factors(NamedTuple):
    """A product Y diag(e^l) U.

    Attributes:
        Y: the block [n, k], of any floating dtype.
        lengths: of its columns, float64 [k].
        l: log scales [k].
        U, inverse: unit rows [k, k], and U^-1.
        lean: about 1 / sigma_min of Y with columns of length one, or of Y R^-1.
        serial: of the block; l, U and the coordinates of Y are the same within one.
        R: upper triangular [k, k], with Y R^-1 nearly orthonormal, where Y itself is not; else None.
    """

    Y: Tensor
    lengths: Tensor
    l: Tensor
    U: Tensor
    inverse: Tensor
    lean: float
    serial: int
    R: Tensor | None = None

    def block(self, X: Tensor) -> Tensor:
        """Y X, float64."""
        return product(self.Y, X.to(self.Y.dtype)).double()

    def scales(self) -> Tensor:
        """ln of the sizes of Y diag(e^l), column by column [k]."""
        return self.l + self.lengths.log()

    def transposed(self, X: Tensor) -> Tensor:
        """Y^T X, float64."""
        return product(self.Y.mT, X.to(self.Y.dtype)).double()


def product(A: Tensor, X: Tensor) -> Tensor:
    """A X for a few columns: as rows, with which a GEMM of so few is fastest by a factor of up to 20."""
    return A @ X if X.shape[1] == 1 else (X.mT.contiguous() @ A.mT).mT


class Basis(NamedTuple):
    """A subspace as it was left by a reading.

    Attributes:
        W: its vectors [k, m].
        image: T W, or T^-1 W, relative to the end of the scales [k, m].
        Z: where Y took them [n, m].
        serial: of the block.
    """

    W: Tensor
    image: Tensor
    Z: Tensor
    serial: int


class Extreme(NamedTuple):
    """One end of the spectrum: ln sigma, how far it may be off by the residual, and the subspace."""

    log: float
    tolerance: float
    basis: Basis | None


class _Largest:
    """sigma = ||Y T v|| / ||v||."""

    sign = 1.0

    def __init__(self, f: Factors) -> None:
        self.f, self.end = f, float(f.l.max())
        self.scale = (f.l - self.end).exp().unsqueeze(1)

    def image(self, W: Tensor) -> Tensor:
        return self.scale * (product(self.f.U, W))

    def moved(self, W: Tensor, image: Tensor) -> Tensor:
        return self.f.block(image)

    def old(self, basis: Basis) -> Tensor:
        return basis.W

    def pair(self, W: Tensor, image: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
        return Z, W

    def likely(self) -> Tensor:
        """The row of the largest scale now, [k, 1]."""
        return self.f.U[self.f.scales().argmax()].unsqueeze(1)

    def residual(self, w: Tensor, image: Tensor, z: Tensor, size: float) -> tuple[Tensor, Tensor]:
        """Of the triplet, and the next vector of the basis."""
        r = (self.f.U.mT @ (self.scale * self.f.transposed(z / size))) - size * w
        return r, r


class _Smallest:
    """1 / sigma = ||T^-1 w|| / ||Y w||."""

    sign = -1.0

    def __init__(self, f: Factors) -> None:
        self.f, self.end = f, float(f.l.min())
        self.scale = (self.end - f.l).exp().unsqueeze(1)
        self.lengths = f.lengths.unsqueeze(1)

    def image(self, W: Tensor) -> Tensor:
        return product(self.f.inverse, self.scale * W)

    def moved(self, W: Tensor, image: Tensor) -> Tensor:
        return self.f.block(W)

    def old(self, basis: Basis) -> Tensor:
        return self.f.transposed(basis.Z)  # Y has other coordinates than then, but much the same columns

    def pair(self, W: Tensor, image: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
        return image, Z

    def likely(self) -> Tensor:
        """The coordinate of the smallest scale now, [k, 1]."""
        w = torch.zeros_like(self.lengths)
        w[self.f.scales().argmin()] = 1.0
        return w

    def residual(self, w: Tensor, image: Tensor, z: Tensor, size: float) -> tuple[Tensor, Tensor]:
        r = self.scale * (self.f.inverse.mT @ (image / size)) - size * self.f.transposed(z)
        if self.f.R is None:
            r = r / self.lengths
            return self.f.lean * r, r / self.lengths
        r = torch.linalg.solve_triangular(self.f.R.mT, r, upper=False)
        return self.f.lean * r, torch.linalg.solve_triangular(self.f.R, r, upper=True)


def largest(f: Factors, basis: Basis | None, tol: float) -> Extreme:
    """sigma_1, to a residual of tol."""
    return Extreme(-math.inf, 0.0, None) if float(f.l.max()) == -math.inf else _search(_Largest(f), basis, tol)


def smallest(f: Factors, basis: Basis | None, tol: float) -> Extreme:
    """sigma_k, to a residual of tol."""
    if float(f.l.min()) == -math.inf:
        return Extreme(-math.inf, 0.0, None)
    side = _Smallest(f)
    if not bool((side.lengths > 0).all()):
        return Extreme(-math.inf, 0.0, None)
    return _search(side, basis, tol)


def _search(side: _Largest | _Smallest, basis: Basis | None, tol: float) -> Extreme:
    W, image = _begin(side, basis)
    Z = side.moved(W, image)
    k, is_new = len(W), basis is None or basis.serial != side.f.serial
    while True:
        found = _quotient(*side.pair(W, image, Z))
        if found is None:
            return Extreme(math.nan, math.inf, None)
        sizes, C = found
        size = float(sizes[0])
        residual, following = side.residual(W @ C[:, :1], image @ C[:, :1], Z @ C[:, :1], size)
        error = float(residual.norm()) / size
        following = _orthogonal(following, W)
        length = float(following.norm())
        settled = error <= tol and not is_new  # in a new block one step more, to see what has overtaken
        is_new = False
        if settled or W.shape[1] >= min(_MOST, k) or length <= _BREAKDOWN * size:
            kept = _kept(W @ C[:, :_KEPT], image @ C[:, :_KEPT], Z @ C[:, :_KEPT], side.f.serial)
            return Extreme(side.end + side.sign * math.log(size), error, kept)
        w = following / length
        b = side.image(w)
        W, image, Z = torch.cat([W, w], 1), torch.cat([image, b], 1), torch.cat([Z, side.moved(w, b)], 1)


def _begin(side: _Largest | _Smallest, basis: Basis | None) -> tuple[Tensor, Tensor]:
    """Vectors and images to begin with: those of the last reading, the likely one of now, and a random one."""
    k = len(side.f.l)
    if basis is None:
        W = torch.linalg.qr(_random(k, min(k, _KEPT), 0, side.f.l)).Q
        return W, side.image(W)
    if basis.serial == side.f.serial:
        W, image = basis.W, basis.image
    else:
        W = torch.linalg.qr(side.old(basis)).Q
        image = side.image(W)
    known = W.shape[1]
    for x in (side.likely(), _random(k, 1, side.f.serial, side.f.l)):
        new = _orthogonal(x, W)
        length = float(new.norm())
        if W.shape[1] < k and length > _NEW * float(x.norm()):
            W = torch.cat([W, new / length], 1)
    return W, image if W.shape[1] == known else torch.cat([image, side.image(W[:, known:])], 1)


def _kept(W: Tensor, image: Tensor, Z: Tensor, serial: int) -> Basis:
    """With orthonormal vectors."""
    Q, R = torch.linalg.qr(W)
    image, Z = (torch.linalg.solve_triangular(R, X, upper=True, left=False) for X in (image, Z))
    return Basis(Q, image, Z, serial)


def _orthogonal(x: Tensor, W: Tensor) -> Tensor:
    """x less its components along orthonormal columns; twice is enough."""
    for _ in range(2):
        x = x - W @ (W.mT @ x)
    return x


def _random(k: int, m: int, seed: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(k, m, generator=generator, dtype=torch.float64, device="cpu").to(like.device)


def _quotient(N: Tensor, D: Tensor) -> tuple[Tensor, Tensor] | None:
    """Stationary values of ||N c|| / ||D c||, descending, and columns c with ||D c|| = 1; None where D is singular."""
    R = torch.linalg.qr(D, mode="r").R
    M = torch.linalg.solve_triangular(R, N, upper=True, left=False)
    if not bool(torch.isfinite(M).all()):
        return None
    _, sizes, right = torch.linalg.svd(torch.linalg.qr(M, mode="r").R, full_matrices=False)
    if not float(sizes[0]) > 0:
        return None
    return sizes, torch.linalg.solve_triangular(R, right.mT, upper=True)
