"""A few extreme eigenpairs of an operator that is close to one whose eigenpairs are known.

Block Davidson without a preconditioner: one block product with the known vectors, Rayleigh-Ritz on their span, and
where residuals are too long yet, these as further vectors of the space, a block product each time.

    T = X^T H X,  B = X^T X,  G = (H X)^T H X,      T S = B S theta,      ||r_j||^2 = s_j^T G s_j - theta_j^2

for columns X [P, n], r_j = H y_j - theta_j y_j of y_j = X s_j. Nothing of an earlier operator enters. All matrices are
read in pieces that stay in the cache: what is done to a vector beside its product costs no more than that.

A vector that the space does not see is not found: what may join the wanted ones is followed as well, by a few guards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..base import memory
from ..base.tensors import fresh
from ..errors import NonFiniteError, NotConvergedError
from .lanczos import largest_of
from .rows import unit_of

_ROOM = 3  # times the vectors that are followed: columns of the space before it restarts from its best
_TINY = 1e-3  # of a block: its singular values below this, over the largest, are directions that it has already
_FRESH = 0.1  # of a guard is random at the next refresh
_PIECE = 1 << 15  # rows at a time


class Pairs(NamedTuple):
    """Extreme eigenpairs, with others that may join them.

    Attributes:
        values: of the wanted pairs, ascending [count], float64, on the host.
        vectors: orthonormal, [P, m]: theirs, and then guards, which a product has brought nearer to what is large.
        residual: the longest residual of these, over max|lambda|.
        products: vectors multiplied.
    """

    values: Tensor
    vectors: Tensor
    residual: float
    products: int


def refine(
    apply: Callable[[Tensor], Tensor], start: Tensor, count: int, which: str, tol: float, max_products: int
) -> Pairs:
    """The wanted eigenpairs, from orthonormal columns [P, m] near them.

    Args:
        apply: block product H X for X [P, b].
        start: columns, of which ``count`` are wanted and the others guards.
        count, which: as of ``lanczos``.
        tol: relative residual at which a pair has converged.
        max_products: limit.

    Raises:
        MemoryBudgetError: the space does not fit; nothing has been allocated.
        NonFiniteError: NaN or infinity in a product.
        NotConvergedError: the limit was reached, or the operator is not symmetric.
    """
    space = _Space(apply, start, tol)
    while True:
        theta, S = space.ritz()
        wanted = largest_of(theta, count, which)
        scale = float(theta.abs().max())
        gram = space.residuals(theta[wanted], S[:, wanted])
        norms = gram.diagonal().clamp(min=0).sqrt()
        open_ = (norms > tol * scale).nonzero().squeeze(1)
        best = largest_of(theta, min(start.shape[1], len(theta)), which)
        if not len(open_):
            guards = best[~torch.isin(best, wanted)]
            residual = float(norms.max()) / scale if scale else 0.0
            return Pairs(
                theta[wanted] / space.unit, space.guarded(S[:, wanted], S[:, guards]), residual, space.products
            )
        if space.products >= max_products or start.shape[1] >= space.size:
            raise NotConvergedError(
                f"refresh: {len(open_)} of {count} eigenpairs above the tolerance {tol:g} after {space.products} "
                "products; raise refresh_tol",
                norms,
            )
        space.extend(theta, S, wanted[open_], gram[open_][:, open_], best)


class _Space:
    """Columns X in blocks [P, b] and their products, with T, B and G in float64 on the host.

    Attributes:
        n: columns.
        products: vectors multiplied.
        unit: a power of 2: products are those of unit H, whose squares neither overflow nor vanish.
    """

    def __init__(self, apply: Callable[[Tensor], Tensor], start: Tensor, tol: float) -> None:
        self.size, m = start.shape
        self.most = min(_ROOM * m, self.size)
        need = (2 * self.most + 3 * m) * self.size * start.element_size()
        memory.require(need, start.device, f"refresh: {self.most} vectors of {self.size} parameters", "use a smaller k")
        self._apply, self.n, self.products, self.unit = apply, 0, 0, 1.0
        eps = torch.finfo(start.dtype).eps
        self._tight = tol**2 < 100 * eps  # where the difference of s^T G s and theta^2 would be rounding
        self._asymmetry = 1e3 * eps * self.size**0.5
        self._X: list[Tensor] = []
        self._HX: list[Tensor] = []
        self._T, self._B, self._G = (
            torch.zeros(self.most, self.most, dtype=torch.float64, device="cpu") for _ in range(3)
        )
        self._multiply(start)

    def _multiply(self, new: Tensor) -> None:
        """Columns that are multiplied, and belong to the space from now on."""
        W = self._apply(new)
        W = W.clone() if W.data_ptr() == new.data_ptr() else W
        if not self._X:
            self.unit = unit_of(float(W.abs().max()))
        self._X.append(new)
        self._HX.append(W if self.unit == 1 else W.mul_(self.unit))
        n, count = self.n, new.shape[1]
        T, B, G = (torch.zeros(count, n + count, dtype=torch.float64, device=new.device) for _ in range(3))
        known = not n and not self._tight  # to be orthonormal, as exactly as pairs are wanted
        for x, h in self._pieces():
            beside, products = _joined(x), _joined(h)
            T += h[-1].T @ beside
            G += h[-1].T @ products
            if not known:
                B += x[-1].T @ beside
        if known:
            B.fill_diagonal_(1)
        for whole, block in ((self._T, T.cpu()), (self._B, B.cpu()), (self._G, G.cpu())):
            self._enter(whole, block)
        self.n, self.products = n + count, self.products + count

    def _enter(self, whole: Tensor, block: Tensor) -> None:
        """The last rows and columns of one of the matrices."""
        if not bool(torch.isfinite(block).all()):
            raise NonFiniteError("refresh: products with the operator have NaN or inf")
        n, stop, own = self.n, block.shape[1], block[:, self.n :]
        if float((own - own.T).abs().max()) > self._asymmetry * float(block.abs().max()):
            raise NotConvergedError("refresh: the operator is not symmetric", torch.empty(0, device="cpu"))
        whole[n:stop, :n], whole[:n, n:stop] = block[:, :n], block[:, :n].T
        whole[n:stop, n:stop] = (own + own.T) / 2

    def _pieces(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """The same rows of all blocks of X and of their products, as many as stay in the cache."""
        for c in _rows(self.size):
            yield [X[c] for X in self._X], [W[c] for W in self._HX]

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values, ascending [n], and their vectors in the coordinates of X, orthonormal in B."""
        n = self.n
        L = torch.linalg.cholesky(self._B[:n, :n])
        half = torch.linalg.solve_triangular(L, self._T[:n, :n], upper=False)
        reduced = torch.linalg.solve_triangular(L, half.T, upper=False)
        theta, U = torch.linalg.eigh((reduced + reduced.T) / 2)
        return theta, torch.linalg.solve_triangular(L.T, U, upper=True)

    def residuals(self, theta: Tensor, S: Tensor) -> Tensor:
        """Inner products [p, p] of the residuals of Ritz pairs."""
        if not self._tight:
            return S.T @ self._G[: self.n, : self.n] @ S - torch.diag(theta.square())
        gram = torch.zeros(len(theta), len(theta), dtype=torch.float64, device=self._X[0].device)
        for r in self._combined(S, -S * theta):
            gram += r.T @ r
        return gram.cpu()

    def _combined(self, of_products: Tensor | None, of_columns: Tensor) -> Iterator[Tensor]:
        """Combinations [.., p] of products and columns, piece by piece."""
        like = self._X[0]
        P = None if of_products is None else of_products.to(like)
        R = of_columns.to(like)
        for x, h in self._pieces():
            r = _joined(x) @ R
            yield r if P is None else r.addmm_(_joined(h), P)

    def _whole(self, pieces: Iterator[Tensor], count: int) -> Tensor:
        like = self._X[0]
        out = fresh((self.size, count), like.dtype, like.device)
        for c, r in zip(_rows(self.size), pieces, strict=True):
            out[c] = r
        return out

    def extend(self, theta: Tensor, S: Tensor, chosen: Tensor, gram: Tensor, best: Tensor) -> None:
        """The residuals of the chosen pairs join the space, which restarts from its best ones if it is full.

        Args:
            theta, S: all Ritz pairs.
            chosen, best: places among them.
            gram: inner products of the chosen ones' residuals.
        """
        squares, U = torch.linalg.eigh(gram)
        there = squares > _TINY**2 * squares[-1]
        A = U[:, there] / squares[there].sqrt()
        s, t = S[:, chosen], theta[chosen]
        if self.n + A.shape[1] > self.most:
            self._restart(theta[best], S[:, best])
            s = (best.unsqueeze(1) == chosen.unsqueeze(0)).to(S)  # a chosen pair is one of the best
        A = A[:, -(self.most - self.n) :]
        new = self._whole(self._combined(s @ A, -(s * t) @ A), A.shape[1])
        self._multiply(self._cleared(new) if self._tight else new)

    def _cleared(self, new: Tensor) -> Tensor:
        """Orthonormal and orthogonal to X: of short residuals rounding is a large part."""
        for _ in range(2):
            for X in self._X:
                new = new - X @ (X.T @ new)
            new = torch.linalg.qr(new).Q
        return new

    def _restart(self, theta: Tensor, S: Tensor) -> None:
        """X becomes X S."""
        n, p = self.n, S.shape[1]
        X, W = self.combine(S), self._whole(self._combined(S, torch.zeros_like(S)), p)
        self._X, self._HX, self.n = [X], [W], p
        self._G[:p, :p] = S.T @ self._G[:n, :n] @ S
        self._T[:p, :p], self._B[:p, :p] = torch.diag(theta), torch.eye(p, dtype=S.dtype, device="cpu")

    def guarded(self, wanted: Tensor, guards: Tensor) -> Tensor:
        """Orthonormal [P, m]: X S of the wanted ones, and H X S of others with a little of everything, orthogonal to
        these: what has been small, and lost, may grow."""
        w, count, like = wanted.shape[1], guards.shape[1], self._X[0]
        if not count:
            return self.combine(wanted)
        S = wanted.to(like)
        G = self._cleared_guards(guards, S)
        out = fresh((self.size, w + count), like.dtype, like.device)
        for (x, _), c in zip(self._pieces(), _rows(self.size), strict=True):
            torch.cat([_joined(x) @ S, G[:, c].T], 1, out=out[c])
        return out

    def _cleared_guards(self, guards: Tensor, S: Tensor) -> Tensor:
        """As rows, in the order of memory: with columns beside X S these passes take three times as long."""
        G = fresh((guards.shape[1], self.size), S.dtype, S.device)
        n = self.n
        norms = (guards.T @ self._G[:n, :n] @ guards).diagonal().clamp(min=torch.finfo(torch.float64).tiny).sqrt()
        combination, amount = (guards / norms).to(S), _FRESH * (12 / self.size) ** 0.5  # uniform: variance 1 / 12
        generator = torch.Generator().manual_seed(0)
        for (_, h), c in zip(self._pieces(), _rows(self.size), strict=True):
            drawn = torch.rand(len(h[0]), generator=generator, dtype=torch.float32, device="cpu").to(G).sub_(0.5)
            several = torch.stack([drawn.roll(j) for j in range(len(G))])
            torch.add((_joined(h) @ combination).T, several, alpha=amount, out=G[:, c])
        for _ in range(2):
            each = [G[:, c] @ _joined(x) for (x, _), c in zip(self._pieces(), _rows(self.size), strict=True)]
            inside = (torch.stack(each).sum(0, dtype=torch.float64).to(S) @ S) @ S.T
            for (x, _), c in zip(self._pieces(), _rows(self.size), strict=True):
                G[:, c].addmm_(inside, _joined(x).T, alpha=-1)
            left = torch.linalg.vector_norm(G, dim=1, keepdim=True)
            G /= left.clamp(min=torch.finfo(G.dtype).tiny)
            G = torch.linalg.qr(G.T).Q.T  # where nothing is left of one, some unit vector takes its place
            if bool(
                (left > 0.5).all()
            ):  # of about 1: Ritz vectors are orthogonal, and so are their products, to others
                break
        return G

    def combine(self, S: Tensor) -> Tensor:
        """X S [P, p]."""
        return self._whole(self._combined(None, S), S.shape[1])


def _joined(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)


def _rows(size: int) -> list[slice]:
    return [slice(i, min(i + _PIECE, size)) for i in range(0, size, _PIECE)]
