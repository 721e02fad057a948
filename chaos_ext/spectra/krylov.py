"""A basis V of growing Krylov spaces of a symmetric operator, its Rayleigh-Ritz matrix, and what V lacks.

    H V = V T + Q B,    [V Q] orthonormal,    T = V^T H V.

The residual of a Ritz pair (theta, V s) is Q B s. V and Q are kept as rows, so that a pass over them reads memory once
and in order. On a GPU a step of one vector does not wait for the host; ``ritz`` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..base import memory
from ..errors import NonFiniteError, NotConvergedError
from .rows import clear_, polished, rotate_, subtract_, unit_of

_LITTLE = 1e-2  # of a vector: what is left of it is no longer orthogonal enough to what was taken out
_NEGLIGIBLE = 10.0  # eps ||H||: a residual no longer than this is rounding
_RESTARTS = 3  # after which V's orthogonality is looked at: it costs as much as a restart
_WORK = 6  # vectors that a step needs beside the basis


class Krylov:
    """The basis of a symmetric operator; see the module's text for the relation that it keeps.

    Args:
        apply, size, dtype, device: block product H X for X [P, b].
        rows: the most vectors that V and the active part of Q take.
        seed: of the random vectors.

    Attributes:
        n: vectors in V.
        active: vectors of Q that are multiplied in the next step; the others wait.
        products: vectors multiplied so far.
        unit: a power of 2: T and B are those of unit H, whose squares neither overflow nor vanish.

    Raises:
        MemoryBudgetError: the basis does not fit; nothing has been allocated.
    """

    def __init__(
        self,
        apply: Callable[[Tensor], Tensor],
        size: int,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
    ) -> None:
        need, what = (rows + _WORK) * size * dtype.itemsize, f"lanczos: {rows} vectors of {size} parameters"
        memory.require(need, device, what, "ask for fewer eigenpairs k")
        self._apply, self.size, self.rows = apply, size, rows
        self._V = torch.empty(rows, size, dtype=dtype, device=device)
        self._T = torch.zeros(rows, rows, dtype=torch.float64, device=device)
        self._waiting, self._B = self._V[:0], self._T[:0]  # of B the rows of those that wait come first
        self._scale = torch.zeros((), dtype=torch.float64, device=device)  # of ||H||, from below
        self._generator = torch.Generator().manual_seed(seed)
        self._spare: Tensor | None = None
        self.looks = device.type == "cpu"  # where looking at a value costs nothing
        self.n = self.active = self.products = self._restarts = 0
        self.unit = 1.0
        self._reach = 0  # the first vector of V to which what is active is coupled

    @property
    def vectors(self) -> Tensor:
        """V as rows [n, P]."""
        return self._V[: self.n]

    @property
    def room(self) -> int:
        """How many more orthogonal vectors there can be."""
        return self.size - self.n - self.active - len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether there is no place for another step, so that it has to be restarted."""
        return self.n + 2 * max(self.active, 1) > self.rows

    @property
    def has_room_for_all(self) -> bool:
        """Whether what waits can become active."""
        return self.n + self.active + len(self._waiting) <= self.rows

    def add(self, rows: Tensor) -> None:
        """Vectors, as rows [b, P], become active and what was active waits: orthonormalised, without those that the
        others span."""
        self._waiting = torch.cat([self._waiting, self._V[self.n : self.n + self.active]])
        self.active, self._reach = 0, self.n
        W = rows.clone()
        length = W.double().square().sum(1)
        clear_(W, self.vectors, self.looks)
        clear_(W, self._waiting, self.looks)
        self._append(self._orthonormal(W, length)[0], self._B)

    def add_random(self) -> None:
        """One random vector becomes active, if there is room for it, and what was active waits."""
        self.add(self._random()[: self.room])

    def activate(self) -> None:
        """What waits becomes active too."""
        a = self.active
        Q, B = torch.cat([self._waiting, self._V[self.n : self.n + a]]), self._B
        self._waiting, self.active, self._reach = self._waiting[:0], 0, 0
        self._append(Q, B[:0], B)

    def expand(self) -> None:
        """One step: what is active is multiplied and joins V; the products, orthonormalised, become active."""
        if self.looks and self.active == 1:
            self._expand_by_one()
        else:
            self._expand_by_block()
        if not self.active:
            self.add_random()

    def _expand_by_one(self) -> None:
        """``_expand_by_block`` with a dozen operations less: what a small operator spends its time on."""
        n, reach, waiting = self.n, self._reach, len(self._waiting)
        w, v = self._products(n, n + 1)[0], self._V[n]
        C = self._T.new_zeros(n + 1)
        C[reach:n] = self._B[-1, reach:n]
        if n - reach == 1:
            w.sub_(self._V[reach], alpha=float(C[reach]))
        elif n > reach:
            w.addmv_(self._V[reach:n].T, C[reach:n].to(w), alpha=-1)
        C[n] = alpha = float(v.dot(w))
        w.sub_(v, alpha=alpha)
        self.n, self._reach, self.active = n + 1, n, 0
        found, left = clear_(w.unsqueeze(0), self.vectors, self.looks)
        C, norm = C + found[0], float(left) ** 0.5
        if waiting:
            D, left = clear_(w.unsqueeze(0), self._waiting, self.looks)
            self._B[:waiting, n], norm = D[0], float(left) ** 0.5
        self._T[n, : n + 1], self._T[: n + 1, n] = C, C
        length = float(C.dot(C)) + norm**2
        self._scale.clamp_(min=length)
        self._B[-1].zero_()
        if not _LITTLE * length**0.5 < norm < math.inf or not self.room:
            new, R = self._orthonormal(w.unsqueeze(0), self._T.new_tensor([length]))
            self._append(new, self._B[:waiting], self._B[waiting : waiting + len(new)])
            norm = float(R) if len(new) else 0.0
        else:
            torch.div(w, norm, out=self._V[n + 1])
            self.active = 1
        self._B[waiting:, n] = norm

    def _products(self, first: int, stop: int) -> Tensor:
        """H on some rows of V, as rows of their own."""
        self.products += stop - first
        X = self._V[first:stop]
        W = self._apply(X.T).T.contiguous()
        W = W.clone() if W.data_ptr() == X.data_ptr() else W
        if stop == len(X):  # the first ones
            self.unit = unit_of(float(W.abs().max()))
        return W if self.unit == 1 else W.mul_(self.unit)

    def _expand_by_block(self) -> None:
        waiting, first = len(self._waiting), self.n
        known = self._B[waiting:, self._reach : first]
        self.n = n = first + self.active
        self.active = 0
        W = self._products(first, n)
        if known.shape[1]:  # to rounding; what is measured next corrects it
            subtract_(W, known.to(W), self._V[self._reach : first])
        C, left = clear_(W, self.vectors, self.looks)
        C[:, self._reach : first] += known
        self._T[first:n, :n], self._T[:n, first:n] = C, C.T
        block = self._T[first:n, first:n]
        block.copy_((block + block.T) / 2)
        length = C.square().sum(1) + left
        self._scale = torch.maximum(self._scale, length.max())
        if waiting:
            self._B[:waiting, first:n] = clear_(W, self._waiting, self.looks)[0].T
        new, R = self._orthonormal(W, length)
        B = self._B.new_zeros(len(new), self.rows)
        B[:, first:n] = R
        self._reach = first
        self._append(new, self._B[:waiting], B)

    def ritz(self, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values, ascending [m], their vectors in the coordinates of V and residual norms [m], on the host.

        Args:
            first: of the span of the vectors of V from this one on.

        Raises:
            NonFiniteError: a product had NaN or infinity.
            NotConvergedError: LAPACK did not converge.
        """
        T, B = self._T[first : self.n, first : self.n].cpu(), self._B[:, first : self.n].cpu()
        if not bool(torch.isfinite(T).all()):
            raise NonFiniteError("lanczos: products with the operator have NaN or inf")
        try:
            theta, S = torch.linalg.eigh(T)
        except torch.linalg.LinAlgError as e:  # type: ignore[attr-defined]
            raise NotConvergedError("lanczos: LAPACK did not converge on the Rayleigh-Ritz matrix") from e
        return theta, S, (B @ S).norm(dim=0)

    def forget(self, first: int) -> None:
        """V becomes its first vectors, and what is active is dropped: a space of their complement is not needed."""
        self.n, self.active, self._B = first, 0, self._B[: len(self._waiting)]

    def last_column(self, first: int) -> tuple[Tensor, float]:
        """After a step of one vector: its column of T from row ``first`` on, and its coupling to the next one (0 where
        a random one took its place), on the host."""
        coupling = float(self._B[-1, self.n - 1]) if self.active else 0.0
        return self._T[first : self.n, self.n - 1].cpu(), coupling

    def left_waiting(self, S: Tensor) -> Tensor:
        """The part of the residual norms of V S [m] along what waits, on the host."""
        return (self._B[: len(self._waiting), : self.n].cpu() @ S).norm(dim=0)

    def product(self, v: Tensor) -> Tensor:
        """H v in the same unit for v [P]."""
        self.products += 1
        return self._apply(v.unsqueeze(1)).squeeze(1) * self.unit

    def restart(self, S: Tensor, first: int = 0) -> None:
        """V becomes its first vectors and combinations S [n - first, p] of the others (thick restart)."""
        stop, n, a = first + S.shape[1], self.n, self.active
        S = S.to(self._T)
        T = S.T @ self._T[first:n, first:n] @ S
        self._T[:first, first:stop] = self._T[:first, first:n] @ S
        self._T[first:stop, :first] = self._T[:first, first:stop].T
        self._T[first:stop, first:stop] = (T + T.T) / 2
        self._B[:, first:stop] = self._B[:, first:n] @ S
        self._B[:, stop:] = 0
        rotate_(self._V, S.T, first, n, a)
        self.n, self._reach = stop, 0
        self._restarts += 1
        if self._restarts % _RESTARTS == 0:
            self._polish(stop)

    def _polish(self, stop: int) -> None:
        """Takes out of V's orthogonality what restarts have lost: each adds its rounding."""
        G = (self.vectors @ self.vectors.T).double()
        defect = G - torch.eye(stop, dtype=G.dtype, device=G.device)
        if bool(defect.abs().max() > _NEGLIGIBLE * torch.finfo(self._V.dtype).eps):
            rotate_(self._V, torch.eye(stop, dtype=G.dtype, device=G.device) - defect / 2, 0, stop, 0)

    def combine(self, S: Tensor) -> Tensor:
        """V S, as columns [P, p]."""
        return (S.T.to(self._V) @ self.vectors).T

    def _append(self, rows: Tensor, *B: Tensor) -> None:
        """Orthonormal rows become the active ones; their rows of B, zeros where none are given, come last."""
        self.active = len(rows)
        self._V[self.n : self.n + self.active] = rows
        if len(B) == 1:
            B = (*B, self._B.new_zeros(self.active, self.rows))
        self._B = torch.cat(B) if len(B[0]) else B[1]

    def _random(self) -> Tensor:
        row = torch.randn(1, self.size, generator=self._generator, dtype=torch.float64, device="cpu")
        return row.to(self._V)

    def _orthonormal(self, W: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Orthonormal rows Q [r, P] and R [r, b] with W = R^T Q, for W orthogonal to V and to what waits.

        What vanishes against the square root of ``length`` [b], W's squares before it was orthogonal, is rounding, and
        left out.
        """
        if len(W) == 1 and not self.looks:
            return self._normalised(W)
        R, found = torch.zeros(len(W), len(W), dtype=torch.float64, device=W.device), W[:0]
        scale = float(self._scale) if self.n else 0.0
        for j in range(len(W)):
            row, before = W[j : j + 1], float(length[j])
            if len(found):
                R[: len(found), j] = clear_(row, found, self.looks)[0][0]
            norm = float(row.norm())
            floor = _NEGLIGIBLE * torch.finfo(W.dtype).eps * max(before, scale) ** 0.5
            if norm > floor and len(found) < self.room:
                R[len(found), j] = norm
                row = row.div_(norm)
                row = (
                    polished(row, (self.vectors, self._waiting, found), self.looks)
                    if norm < _LITTLE * before**0.5
                    else row
                )
                found = torch.cat([found, row]) if len(W) > 1 else row
            elif norm != norm:
                raise NonFiniteError("lanczos: products with the operator have NaN or inf")
        return found, R[: len(found)]

    def _normalised(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """``_orthonormal`` of one row without a look at it: a random row takes the place of a negligible one."""
        if not self.room:
            return W[:0], self._T.new_zeros(0, 1)
        if self._spare is None:
            self._spare = self._random()
        norm = W.double().norm()
        small = norm <= _NEGLIGIBLE * torch.finfo(W.dtype).eps * self._scale.sqrt()
        row = torch.where(small, self._spare.roll(self.n, 1), (W / norm).to(W))
        return polished(row / row.norm(), (self.vectors, self._waiting), self.looks), torch.where(
            small, 0.0, norm
        ).reshape(1, 1)
