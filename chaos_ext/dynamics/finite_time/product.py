"""The product of all tangent maps so far, Y = Q diag(e^l) U, with the digits of its smallest singular value.

J acts on a block Y = Q of orthonormal columns. Before these lean towards one another, Y = Q' R is factored
(Householder, diag R >= 0), and R joins the right factor (``factors.fold_``). Forming Y^T Y instead would lose every
singular value below sqrt(eps) sigma_1, and multiplying into one matrix every one below eps sigma_1.

How far rounding may have moved it is the matter of ``conditioning``.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from ...base.tensors import fresh
from .conditioning import SAFETY, WORST, Conditioning
from .extremes import Factors
from .factors import BLOCK, fold_, inverse_norms, norm
from .readout import Decomposition, decompose_

# ln of the ratio of column lengths at which a block ends: sigma_min(B_b) is mostly far above e^-4.
STRETCH = {torch.float32: 2.0, torch.float64: 4.0}
# ln of the lengths that all columns may have, far from where their squares overflow.
_RANGE = {torch.float32: 30.0, torch.float64: 250.0}
_STEEPEST = 300.0


class ProductSVD:
    """Deviations Y [S, k] that are advanced from outside, and the right factor of all that was before them.

    Args:
        Y: orthonormal columns [S, k] to start from, k <= S; it is ``Y`` from now on.
        seconds: time is added to its "qr" and "fold".
        U: unit rows [k, k] to start from; None: the identity.

    Attributes:
        Y: the present block; whoever advances it raises ``pending`` and asks ``is_due`` after each step.
        l, U: log scales, float64 [k], and unit rows, float64 [k, k]: the product is Y diag(e^l) U.
        pending: steps since Y was orthonormal.
        conditioning: what is known of the blocks so far.
    """

    def __init__(self, Y: Tensor, seconds: dict[str, float] | None = None, U: Tensor | None = None) -> None:
        k, device = Y.shape[1], Y.device
        self.Y, self.pending = Y, 0
        self.seconds = {"qr": 0.0, "fold": 0.0} if seconds is None else seconds
        self.l = torch.zeros(k, dtype=torch.float64, device=device)
        self.U = fresh((k, k), torch.float64, device).zero_().fill_diagonal_(1) if U is None else U
        self._rate, self._allowed = 0.0, 1
        self.conditioning = Conditioning(k, device)
        self._scratch: tuple[Tensor, Tensor] | None = None
        self._inverted = False  # whether U^-1 is in the second scratch array
        self._leaning: tuple[int, int, Tensor] | None = None  # block, steps in it then, R of the rows that count

    def is_due(self, low: float, high: float) -> bool:
        """Whether one more step could pass the allowed stretch; ``low``, ``high``: extreme lengths of Y's columns."""
        n = self.pending
        if n == 0:
            return False
        if low == 0 or n >= self._allowed:
            return True
        down, up, dtype = math.log(low), math.log(high), self.Y.dtype
        apart, away = max(up - down, self._rate * n), max(abs(up), abs(down))
        return apart * (n + 1) / n > STRETCH[dtype] or away * (n + 1) / n > _RANGE[dtype]

    def factor_(self) -> None:
        """Y <- Q' and (l, U) <- R (l, U), columns of Y and rows of (l, U) in descending order of their scales."""
        began = time.perf_counter()
        n, k = self.pending, self.Y.shape[1]
        work, R = self._buffers()
        self._inverted = False
        lengths = torch.linalg.vector_norm(self.Y, dim=0, dtype=torch.float64)
        order = (self.l + lengths.log()).argsort(descending=True, stable=True)
        factored_(self.Y, order, work, R, self.Y)
        factored = time.perf_counter()
        lost = int((self.l == -math.inf).sum())  # before, so nothing more is lost with them
        worst = inverse_norms(R, lengths[order], WORST + lost)[lost:]
        self._permute_(order, work)
        self.conditioning.multiply(n, worst, order, R)
        fold_(self.l, self.U, R)
        self.conditioning.leak(self.l)
        # Lengths of columns do not show how they lean towards one another, nor does the diagonal of R.
        rate = math.log(min(float(worst[0]) if len(worst) else 1.0, 1 / torch.finfo(self.Y.dtype).eps)) / n
        # A factorisation costs as much as k / 12 steps on small batches: a block of these makes it a small part.
        self._rate, self._allowed = max(rate, 0.9 * self._rate), min(4 * n, max(8, k // 12))
        self.pending = 0
        self.seconds["qr"] += factored - began
        self.seconds["fold"] += time.perf_counter() - factored

    def release(self) -> None:
        """Gives the scratch arrays back until they are needed again."""
        vars(self).update(_scratch=None, _inverted=False)

    def _permute_(self, order: Tensor, work: Tensor) -> None:
        """Rows of l and U in this order; ``work`` is free meanwhile."""
        if not bool((order.diff() == 1).all()):
            self.l = self.l[order]
            self.U.copy_(torch.index_select(self.U, 0, order, out=self._second(work)))

    def decomposition(
        self, rows: int | None = None, vectors: bool = False, whole: bool = True
    ) -> tuple[Decomposition, float]:
        """Singular values of the product, or of its first rows; reading changes nothing.

        Args:
            rows: how many rows of Y count; None: all.
            vectors: whether to return singular vectors, too: the left ones [rows, k].
            whole: False leaves the pending steps out.

        Returns:
            The decomposition, and the condition of the rows of Y with columns of length one (1 if none had to be
            factored).
        """
        work, R = self._buffers()
        self._inverted = False
        block = self.Y if rows is None else self.Y[:rows]
        factored = whole and (self.pending > 0 or rows is not None)
        l, condition = self.l.clone(), 1.0
        Q: Tensor | None = block
        if factored:
            lengths = torch.linalg.vector_norm(block, dim=0, dtype=torch.float64)
            Q = torch.empty_like(block) if vectors else None
            order = (l + lengths.log()).argsort(descending=True, stable=True)
            factored_(block, order, work, R, Q)
            condition = float(inverse_norms(R, lengths[order], 1)[0]) * math.sqrt(len(l))
            l, U = l[order], torch.index_select(self.U, 0, order, out=self._second(work))
            fold_(l, U, R)
        else:
            U = self._second(work).copy_(self.U)
        logs, left, right = decompose_(l, U, R, vectors)
        return Decomposition(logs, None if Q is None or left is None else Q.double() @ left, right), condition

    def _second(self, work: Tensor) -> Tensor:
        """Room for a second right factor: the work array, where it is large enough."""
        k = len(self.l)
        if work.dtype == torch.float64 and work.numel() >= k * k:
            return work.view(-1)[: k * k].view(k, k)
        return torch.empty_like(self.U)

    def _buffers(self) -> tuple[Tensor, Tensor]:
        """Of Y's size and of U's; the second is about to be overwritten, unless ``_inverse`` asks for it."""
        if self._scratch is None:
            S, k = self.Y.shape
            work = fresh((k, S), self.Y.dtype, self.Y.device)
            self._scratch = work, fresh((k, k), torch.float64, self.Y.device)
        return self._scratch

    def errors(self) -> Tensor:
        """How far each ln sigma, in descending order, may be off, float64 [k]; inf where that cannot be told."""
        own = self.conditioning.errors(self.l, torch.finfo(self.Y.dtype).eps)
        return SAFETY * (own + torch.finfo(torch.float64).eps * self.condition())

    def condition(self) -> float:
        """About cond U, by a few products."""
        inverse = self._inverse()
        return norm(self.U) * norm(inverse)

    def factors(self, rows: int | None = None, anew: bool = False) -> Factors:
        """The product as ``extremes`` wants it; until the next ``factor_`` or ``decomposition``.

        Args:
            rows: how many rows of Y count; None: all.
            anew: whether R of these rows is to be that of now, and not that of earlier in the block.
        """
        Y, inverse = self.Y if rows is None else self.Y[:rows], self._inverse()
        R, at = (None, 0) if len(Y) == len(self.Y) else self._triangle(Y, anew)
        lean = math.exp(min(self._rate * (self.pending - at), _STEEPEST))
        lengths = torch.linalg.vector_norm(Y, dim=0, dtype=torch.float64)
        return Factors(Y, lengths, self.l, self.U, inverse, lean, self.conditioning.blocks, R)

    def _triangle(self, Y: Tensor, anew: bool) -> tuple[Tensor | None, int]:
        """R of some rows of the block, and how many steps there were in it then: once a block, part of the state.

        Such rows of orthonormal columns lean towards one another, from the first step of a block.
        """
        if anew or self._leaning is None or self._leaning[0] != self.conditioning.blocks:
            R = self._leaning[2] if self._leaning is not None else fresh((len(self.l),) * 2, torch.float64, Y.device)
            factored_(Y, torch.arange(len(self.l), device=Y.device), self._buffers()[0], R, None)
            self._leaning = self.conditioning.blocks, self.pending, R
        _, at, R = self._leaning
        return (R, at) if bool((R.diagonal() > 0).all()) else (None, at)

    def _inverse(self) -> Tensor:
        """U^-1 [k, k], in the array that R has when a block ends.

        Two triangular solves with LU factors would be as accurate, and cost five times a product with the inverse.
        """
        work, inverse = self._buffers()
        if not self._inverted:
            k = len(self.l)
            LU = self._second(work).mT  # as LAPACK wants columns, so that nothing is copied
            pivots = torch.empty(k, dtype=torch.int32, device=self.U.device)
            torch.linalg.lu_factor_ex(self.U, out=(LU, pivots, torch.empty((), dtype=torch.int32, device=LU.device)))
            # (U^-1)^T in LAPACK's order of columns is U^-1 in ours of rows.
            inverse.zero_().fill_diagonal_(1)
            torch.linalg.lu_solve(LU, pivots, inverse.mT, adjoint=True, out=inverse.mT)
            self._inverted = True
        return inverse

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-identical continuation needs; the large tensors are the run's own, not copies."""
        plain = {"pending": self.pending, "rate": self._rate, "allowed": self._allowed}
        block, at, R = self._leaning or (0, 0, None)
        leaning = {"leaning_block": block, "leaning_at": at, "leaning": R}
        return {**plain, **leaning, "Y": self.Y, "l": self.l, "U": self.U, **self.conditioning.state_dict()}

    @classmethod
    def restored(cls, state: dict[str, Any], seconds: dict[str, float] | None = None) -> ProductSVD:
        """A product from ``state_dict()``, which has been found to fit; its large tensors are the product's own now."""
        new = cls(state["Y"], seconds, state["U"])
        new.conditioning.load_state_dict(state)
        plain = {"pending": state["pending"], "_rate": state["rate"], "_allowed": state["allowed"]}
        leaning = state["leaning_block"], state["leaning_at"], state["leaning"]
        vars(new).update(plain, l=state["l"], _leaning=None if leaning[2] is None else leaning)
        return new


def factored_(Y: Tensor, order: Tensor, work: Tensor, R: Tensor, Q: Tensor | None) -> None:
    """Y[:, order] = Q R with diag R >= 0, in LAPACK's own order of memory so that nothing is copied behind our back.

    Args:
        Y: the block [n, k].
        order: of its columns, a permutation.
        work: n k numbers of Y's dtype; overwritten.
        R: upper triangular, float64 [k, k], with rows of zeros where n < k; overwritten.
        Q: where Q goes, which may be Y; None: nowhere.
    """
    n, k = Y.shape
    rank = min(n, k)
    A = work.view(-1)[: n * k].view(k, n).mT
    for i in range(0, n, BLOCK):
        A[i : i + BLOCK] = Y[i : i + BLOCK, order]
    tau = torch.empty(rank, dtype=Y.dtype, device=Y.device)
    torch.geqrf(A, out=(A, tau))
    R.zero_()
    R[:rank] = A[:rank]
    R.triu_()
    sign = torch.where(R.diagonal() < 0, -1.0, 1.0).to(R.dtype)
    R *= sign.unsqueeze(1)
    if Q is not None:
        torch.linalg.householder_product(A, tau, out=A)
        torch.mul(A, sign.to(Y.dtype), out=Q)
