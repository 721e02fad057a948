"""A few extreme eigenpairs of a symmetric operator: thick-restart Lanczos that looks for what it may have missed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..base import memory
from ..errors import NonFiniteError, NotConvergedError
from .krylov import Krylov

log = logging.getLogger("chaos_ext")

WHICH = ("both_ends", "largest", "smallest", "magnitude")

_UNSEEN = 1e-3  # the part of a random unit vector along an eigenvector, times sqrt(P), that one in a thousand is below
_EVERY = 4  # steps after which the Ritz values of the second space are looked at
_PATIENCE = 30.0  # seconds after which a line says how far it is; doubled each time


def largest_of(values: Tensor, k: int, which: str) -> Tensor:
    """Indices, ascending, of the k eigenvalues wanted among ascending ``values``."""
    n = len(values)
    if which == "largest":
        return torch.arange(n - k, n, device=values.device)
    if which == "smallest":
        return torch.arange(k, device=values.device)
    if which == "magnitude":
        return values.abs().argsort(descending=True, stable=True)[:k].sort().values
    low = k // 2
    return torch.cat([torch.arange(i, j, device=values.device) for i, j in ((0, low), (n - (k - low), n))])


def lanczos(
    apply: Callable[[Tensor], Tensor],
    size: int,
    k: int,
    which: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    tol: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    start: Tensor | None = None,
    confirm: bool = True,
) -> tuple[Tensor, Tensor]:
    """k extreme eigenpairs of a symmetric operator by thick-restart Lanczos with full reorthogonalisation.

    A Krylov space grows by one vector at a time and restarts from the Ritz vectors nearest to what is wanted (Wu and
    Simon 2000). A pair has converged when its residual ||H y - theta y|| <= tol * max|theta|.

    A Krylov space holds one eigenvector of a multiple eigenvalue, whatever its multiplicity. Whether there are others
    shows in another one, of a random vector r orthogonal to what was found: it grows until they have turned up, or
    until r would have to be all but orthogonal to them for them not to (see ``_Test``; one in a thousand random vectors
    is). An eigenvector that turns up is brought to convergence, and the next random vector follows.

    Args:
        apply: block product H X for X [P, b].
        size: P.
        k: number of eigenpairs in total.
        which: "largest", "smallest", "magnitude" or "both_ends" (k // 2 smallest, the rest largest).
        dtype, device: of X.
        tol: relative residual; default 1e-5 in float32, 1e-10 in float64.
        max_products: limit on the number of columns multiplied; default 100 k + 20 P.
        seed: of the random vectors.
        start: approximate eigenvectors [P, s], to begin from.
        confirm: whether to look for further eigenvectors of multiple eigenvalues.

    Returns:
        Eigenvalues, ascending [k], and orthonormal eigenvectors [P, k].

    Raises:
        MemoryBudgetError: its vectors do not fit; nothing has been allocated.
        NonFiniteError: NaN or infinity in a product.
        NotConvergedError: the limit was reached; carries the residuals.
    """
    tol = tol if tol is not None else (1e-5 if dtype == torch.float32 else 1e-10)
    limit = max_products or 100 * k + 20 * size
    if size <= min(rows_for(k, size), limit):
        return _dense(apply, size, k, which, dtype, device)
    basis = Krylov(apply, size, rows_for(k, size), dtype, device, seed)
    return _Search(basis, k, which, tol, limit).run(start, confirm)


def rows_for(k: int, size: int) -> int:
    """Vectors of the basis: with fewer, the space forgets too much at a restart; with more, passes over them cost."""
    return min(size, 2 * k + 16)


def _dense(
    apply: Callable[[Tensor], Tensor], size: int, k: int, which: str, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Of a matrix no larger than the basis would be."""
    memory.require(size * size * (2 * dtype.itemsize + 32), device, "lanczos", "ask for fewer eigenpairs k")
    H = apply(torch.eye(size, dtype=dtype, device=device)).double()
    if not bool(torch.isfinite(H).all()):
        raise NonFiniteError("lanczos: products with the operator have NaN or inf")
    try:
        values, V = torch.linalg.eigh((H + H.T) / 2)
    except torch.linalg.LinAlgError as e:  # type: ignore[attr-defined]
        raise NotConvergedError("lanczos: LAPACK did not converge on the dense matrix") from e
    wanted = largest_of(values, k, which)
    return values[wanted].to(dtype), V[:, wanted].to(dtype)


class _Search:
    """One run: what is wanted of a basis, how far it is, and when it is worth looking."""

    def __init__(self, basis: Krylov, k: int, which: str, tol: float, limit: int) -> None:
        self.basis, self.k, self.which, self.tol, self.limit = basis, k, which, tol, limit
        self.residual = torch.full((k,), float("inf"), dtype=torch.float64, device="cpu")
        self.open = k
        self._norm = 0.0  # of H, from below: the largest Ritz value so far
        self._last: tuple[int, float] | None = None  # products and residual at the last look
        self._next = 0  # products before the next one
        self._began, self._patience = time.monotonic(), _PATIENCE

    def run(self, start: Tensor | None, confirm: bool) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors, from these vectors [P, s] on."""
        basis = self.basis
        if start is not None:  # one vector with a part of each: its Krylov space has them all
            basis.add((start * self._signs(start)).sum(1).to(basis.vectors).unsqueeze(0))
        if not basis.active:
            basis.add_random()
        self._converge()
        while confirm and not self._confirmed():
            self._converge()
        theta, S, _ = basis.ritz()
        wanted = largest_of(theta, self.k, self.which)
        Y = basis.combine(S[:, wanted])
        self._check(theta[wanted], Y)
        return (theta[wanted] / basis.unit).to(Y), Y

    def _check(self, theta: Tensor, Y: Tensor) -> None:
        """One more product, of all pairs at once: what was counted on along the way may not be so, for a product that
        is not linear or not symmetric."""
        signs = self._signs(Y)
        y, expected = (Y * signs).sum(1), Y @ (theta.to(Y) * signs)
        defect = float((self.basis.product(y) - expected).norm())
        limit = self.k * (2 * self.tol + 100 * torch.finfo(Y.dtype).eps) * self._norm
        if not defect <= limit:
            raise NotConvergedError(
                f"lanczos: H y differs from sum theta y by {defect / self.basis.unit:.2g}, more than "
                f"{limit / self.basis.unit:.2g}: the operator is not symmetric, or its products are less exact "
                "than tol needs",
                self.residual / self.basis.unit,
            )

    @staticmethod
    def _signs(columns: Tensor) -> Tensor:
        """1, -1, 1, 1, -1, 1, ... for each column."""
        return 1.0 - 2.0 * (torch.arange(columns.shape[1], device=columns.device) % 3 == 1).to(columns)

    def _converge(self) -> None:
        """Expands the basis until every wanted pair has converged."""
        basis, self._last, self._next = self.basis, None, 0
        while True:
            if basis.n >= self.k and (basis.is_full or not basis.active or basis.products >= self._next):
                theta, S, residual = basis.ritz()
                self.residual = residual[largest_of(theta, self.k, self.which)]
                self._norm = max(self._norm, float(theta.abs().max()))
                allowed = self.tol * self._norm
                self.open = int((self.residual > allowed).sum())
                if not self.open or not basis.active:
                    return
                if bool((basis.left_waiting(S)[largest_of(theta, self.k, self.which)] > allowed).any()):
                    if not basis.has_room_for_all:
                        self._restart(theta, S)
                        theta, S, _ = basis.ritz()
                    basis.activate()
                self._plan(float(self.residual.max()) / allowed)
                if basis.is_full:
                    self._restart(theta, S)
            self._expand()

    def _plan(self, worst: float) -> None:
        """After how many products to look again: half of what the last two looks let expect."""
        now, steps = self.basis.products, 4.0
        if self._last is not None and worst < self._last[1]:
            steps = 0.5 * math.log(worst) * (now - self._last[0]) / math.log(self._last[1] / worst)
        self._last, self._next = (now, worst), now + max(1, min(16, int(steps)))

    def _restart(self, theta: Tensor, S: Tensor) -> None:
        kept = min(self.k + (self.basis.rows - self.k) // 3, len(theta))
        self.basis.restart(S[:, largest_of(theta, kept, self.which)])

    def _expand(self) -> None:
        """One step of the basis, unless the limit is reached; after half a minute, with a word now and then."""
        basis, tol, elapsed = self.basis, self.tol, time.monotonic() - self._began
        if basis.products >= self.limit:
            raise NotConvergedError(
                f"lanczos: {self.open} of {self.k} eigenpairs above the tolerance {tol:g} after {basis.products} "
                "products; raise tol or max_products",
                self.residual / basis.unit,
            )
        if elapsed > self._patience:
            self._patience *= 2
            log.warning(
                "lanczos: %d products in %.0f s, %d of %d pairs are above the tolerance %g",
                basis.products,
                elapsed,
                self.open,
                self.k,
                tol,
            )
        basis.expand()

    def _confirmed(self) -> bool:
        """Whether no wanted eigenvalue has another eigenvector, but for one chance in a thousand."""
        basis = self.basis
        theta, S, _ = basis.ritz()
        slack = self.tol * self._norm
        ends = self._ends(theta, slack)
        if not ends or not basis.room:
            return True
        self._restart(theta, S)
        first = basis.n
        basis.add_random()
        tests = [_Test(sign * inner) for sign, _, inner in ends]
        while True:
            if basis.is_full:
                theta, S, _ = basis.ritz(first)
                S = S[:, largest_of(theta, len(theta) // 2, "both_ends")]
                basis.restart(S, first)
                for test in tests:
                    test.rotate(S)
            self._expand()
            column = basis.last_column(first)
            verdicts = [test.excludes(*column, basis.size) for test in tests]
            excluded = all(verdicts)
            if excluded or basis.n % _EVERY == 0:
                theta, _, _ = basis.ritz(first)
                if any(bool((sign * theta > edge + slack).any()) for sign, edge, _ in ends):
                    return False
            if excluded:
                basis.forget(first)
                return True

    def _ends(self, theta: Tensor, slack: float) -> list[tuple[float, float, float]]:
        """(sign, edge, next) of the ends where a further eigenvector would make a wanted pair a wrong one: sign * edge
        is the innermost wanted eigenvalue, sign * next the one after it."""
        wanted = theta[largest_of(theta, self.k, self.which)]
        found = []
        for sign, several in ((1.0, self.which != "smallest"), (-1.0, self.which != "largest")):
            if not several:
                continue
            low = self.k // 2 if self.which == "both_ends" else 0
            values = sign * (wanted[low:] if sign > 0 else wanted[: low or self.k])
            edge = float(wanted.abs().min()) if self.which == "magnitude" else float(values.min())
            beyond = values[values > edge + slack]
            if len(beyond):
                found.append((sign, edge, float(beyond.min())))
        return found


class _Test:
    """Whether an eigenvector x of this eigenvalue, orthogonal to all that was found, can be hidden from a Krylov space.

    Of a space of polynomials phi_i(H) r with orthonormal vectors v_i, x . v_i = phi_i(lambda) (x . r), and the squares
    of these sum to at most 1 (Christoffel): x . r <= 1 / sqrt(sum phi_i(lambda)^2), which a random r is hardly ever.
    """

    def __init__(self, value: float) -> None:
        self._value = value
        self._phi = torch.ones(1, dtype=torch.float64, device="cpu")  # of the vectors and of the one to come

    def rotate(self, S: Tensor) -> None:
        """After a restart from combinations S of the vectors."""
        self._phi = torch.cat([S.T @ self._phi[:-1], self._phi[-1:]])

    def excludes(self, column: Tensor, coupling: float, size: int) -> bool:
        """After a step: the last column of T, and how long the next vector was before it was normalised."""
        if not coupling:  # nothing is left of the space that r opens
            return True
        following = (self._value * self._phi[-1] - column @ self._phi) / coupling
        self._phi = torch.cat([self._phi, following.reshape(1)])
        return float(self._phi.square().sum()) >= size / _UNSEEN**2
