"""Covariant Lyapunov vectors: the directions that grow with each exponent, forwards and backwards in time.

(Ginelli, Poggi, Turchi, Chate, Livi, Politi, Phys. Rev. Lett. 99, 130601, 2007.) Forwards, J Q_i = Q_(i + 1) R_i.
Backwards, upper triangular C_i = R_i^-1 C_(i + 1), columns normalised, forgets where it started; the vectors are
V_i = Q_i C_i. Then J V_i = V_(i + 1) diag(growth): the map takes each vector into the one of the next place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import memory
from ..errors import UnsupportedError
from .benettin import Benettin
from .exponents import count_signs
from .factors import Record
from .start import check_count

MOST = 64  # vectors
KEPT = 64  # frames of a run whose steps are not known before
_CHUNK = 1 << 20  # numbers of the places whose angles are computed at once


@dataclass(frozen=True)
class CovariantVectors:
    """Covariant vectors of a run at the steps where its frames were kept, and what holds at the end of every block.

    Two backward passes from different starts are compared: where they differ by more than the tolerance, the numbers
    depend on the start and are NaN, always at the end of a run and for exponents that are (nearly) equal.

    Attributes:
        steps: where vectors are known, int64 [m].
        frames: Q at these steps, orthonormal columns, m of [S, k].
        coefficients: C at these steps, float64 [m, k, k]: vector i is Q C[:, i]; NaN columns where it is not known.
        errors: difference of the two passes at these steps, [m, k]; a vector has length one.
        block_steps: step at every place between blocks, the first and the last included, int64 [n + 1].
        growth: ln of the growth of each vector over each block, float64 [n, k]; NaN where not known.
        angles: smallest angle in radians between the expanding and the contracting subspace at every place [n + 1], NaN
            where not known, or where one of them is empty. Zero is a tangency.
        exponents: means of growth per step over the blocks where it is known, float64 [k], in the order of the vectors.
        expanding, neutral: numbers of leading vectors that span the expanding subspace, and of the next ones that
            belong to neither.
        x: states at ``steps`` [m, d] of a map, or None.
    """

    steps: Tensor
    frames: tuple[Tensor, ...]
    coefficients: Tensor
    errors: Tensor
    block_steps: Tensor
    growth: Tensor
    angles: Tensor
    exponents: Tensor
    expanding: int
    neutral: int
    x: Tensor | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, i: int) -> Tensor:
        """The vectors at ``steps[i]``: columns [S, k] of length one."""
        Q = self.frames[i]
        return (Q.double() @ self.coefficients[i].to(Q.device)).to(Q.dtype)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def stacked(self) -> Tensor:
        """All vectors [m, S, k]."""
        return torch.stack(list(self))


def record_for(Y: Tensor, budget: int | None = None) -> Record:
    """A record for a run that starts from these deviations [S, k].

    Args:
        Y: as of ``Benettin``.
        budget: bytes that it may take; half of it for frames, the other half for factors before they go to a file.

    Raises:
        ValueError: more than 64 columns. MemoryBudgetError: its frames do not fit.
    """
    k = Y.shape[1]
    if k > MOST:
        raise ValueError(f"k: expected at most {MOST} covariant vectors, got {k}; ask for fewer")
    half = None if budget is None else budget // 2
    need = KEPT * Y.numel() * Y.element_size()
    memory.require(need, Y.device, f"{KEPT} frames of covariant vectors with k = {k}", "ask for fewer vectors", half)
    return Record(k, most=KEPT, budget=half)


def covariant_of(
    run: Benettin,
    *,
    last: int | None = None,
    expanding: int | None = None,
    neutral: int | None = None,
    tol: float = 1e-6,
    seed: int = 0,
) -> CovariantVectors:
    """The covariant vectors of a run with a record, as far as its last whole block.

    Args:
        run: with a ``record`` of at least one block.
        last: step beyond which nothing is returned; the blocks after it only serve the backward pass.
        expanding, neutral: of the subspaces between which angles are; default: by the signs of the exponents, neutral
            where |lambda t| <= 1e-8.
        tol: largest difference of two backward passes at which a vector counts as known.
        seed: of their starts.

    Raises:
        ValueError: the run has no record, or no whole block yet; numbers out of range.
        UnsupportedError: the map is singular, so that nothing leads back.
    """
    record, blocks = run.record, run.recorded
    if record is None or not blocks:
        raise ValueError("covariant vectors: expected a run that records its factors, and at least one block of it")
    _check_tol(tol)
    steps = record.steps[: blocks + 1]
    places = blocks + 1 if last is None else sum(s <= last for s in steps)
    spaces = _spaces(run, expanding, neutral)
    kept = [i for i in sorted(record.frames) if i < places]
    back = _Backward(record, blocks, seed)
    C: dict[int, Tensor] = {}
    errors = torch.empty(places, record.factors.k, dtype=torch.float64, device="cpu")
    growth, angles = torch.empty(places - 1, record.factors.k, dtype=torch.float64, device="cpu"), []
    waiting: list[Tensor] = []
    for i in range(blocks, -1, -1):
        rate = None if i == blocks else back.step(i)
        if i >= places:
            continue
        errors[i] = back.difference()
        if rate is not None and i < places - 1:
            growth[i] = rate
        if i in record.frames:
            C[i] = back.C[0].clone()
        waiting.append(back.C.clone())
        if len(waiting) * back.C.numel() >= _CHUNK or i == 0:
            angles.append(_angles(torch.stack(waiting), *spaces, tol))
            waiting = []
    return _result(record, steps[:places], kept, C, errors, growth, torch.cat(angles).flip(0), spaces, tol)


def _result(
    record: Record,
    steps: list[int],
    kept: list[int],
    C: dict[int, Tensor],
    errors: Tensor,
    growth: Tensor,
    angles: Tensor,
    spaces: tuple[int, int],
    tol: float,
) -> CovariantVectors:
    known = errors <= tol
    at = torch.tensor(steps, dtype=torch.int64, device="cpu")
    # A block's growth is as good as the vectors at its end, from which those at its beginning came.
    growth = growth.masked_fill(~known[1:], math.nan)
    lengths = at.diff().double().unsqueeze(1) * known[1:]
    coefficients = [C[i].masked_fill(~known[i], math.nan) for i in kept]
    k = record.factors.k
    return CovariantVectors(
        steps=at[kept],
        frames=tuple(record.frames[i].clone() for i in kept),
        coefficients=torch.stack(coefficients) if kept else torch.empty(0, k, k, dtype=torch.float64, device="cpu"),
        errors=errors[kept],
        block_steps=at,
        growth=growth,
        angles=angles,
        exponents=growth.nansum(0) / lengths.sum(0),
        expanding=spaces[0],
        neutral=spaces[1],
    )


class _Backward:
    """Two upper triangular matrices with unit columns on their way back from the last place."""

    def __init__(self, record: Record, blocks: int, seed: int) -> None:
        k, generator = record.factors.k, torch.Generator().manual_seed(seed)
        start = torch.randn(2, k, k, generator=generator, dtype=torch.float64, device="cpu").triu()
        # A diagonal of one sign makes both passes end in vectors of one sign.
        start.diagonal(dim1=1, dim2=2).abs_().clamp_min_(0.1)
        self.C, self._record = start / torch.linalg.vector_norm(start, dim=1, keepdim=True), record

    def step(self, i: int) -> Tensor:
        """Over block i, from its end to its beginning; the growth of the first matrix' columns over the block [k]."""
        back = torch.linalg.solve_triangular(self._record.factors[i], self.C, upper=True)
        norms = torch.linalg.vector_norm(back, dim=1, keepdim=True)
        if not bool(torch.isfinite(norms).all()):
            raise UnsupportedError(
                f"covariant vectors: the tangent map is singular on the way to step {self._record.steps[i + 1]}, so "
                "nothing leads back over it; ask for fewer vectors (k)"
            )
        self.C = back / norms
        return -norms[0, 0].log()

    def difference(self) -> Tensor:
        """Between the columns of the two [k]."""
        return torch.linalg.vector_norm(self.C[0] - self.C[1], dim=0)


def _spaces(run: Benettin, expanding: int | None, neutral: int | None) -> tuple[int, int]:
    """Numbers of expanding and of neutral vectors."""
    reading = run.reading()
    signs = count_signs(reading.growth / reading.steps, reading.steps)
    sizes = (signs.chaotic if expanding is None else expanding, signs.neutral if neutral is None else neutral)
    _check_sizes(len(reading.growth), *sizes)
    return sizes


def check_spaces(k: int | None, size: int, expanding: int | None, neutral: int | None, tol: float) -> None:
    """Raises ValueError for numbers out of range, before a run and not after it."""
    k = check_count(k, size, "d")
    if k > MOST:
        raise ValueError(f"k: expected at most {MOST} covariant vectors, got {k}; ask for fewer")
    _check_sizes(k, 0 if expanding is None else expanding, 0 if neutral is None else neutral)
    _check_tol(tol)


def _check_sizes(k: int, expanding: int, neutral: int) -> None:
    for name, value in (("expanding", expanding), ("neutral", neutral)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= k:
            raise ValueError(f"{name}: expected an int in 0..k = {k} or None, got {value!r}")


def _check_tol(tol: float) -> None:
    if isinstance(tol, bool) or not isinstance(tol, (int, float)) or not tol > 0:
        raise ValueError(f"tol: expected a number > 0, got {tol!r}")


def _angles(C: Tensor, expanding: int, neutral: int, tol: float) -> Tensor:
    """Smallest angles between the first columns and those after the neutral ones, of C [n, 2, k, k].

    The first j columns of an upper triangular matrix span the first j coordinates, so only the others need a basis B:
    the cosine is the largest singular value of its first j rows, the sine the smallest one of the rest.
    """
    if not expanding or expanding + neutral >= C.shape[-1]:
        return torch.full((len(C),), math.nan, dtype=torch.float64, device="cpu")
    B = torch.linalg.qr(C[..., expanding + neutral :]).Q
    cosine = torch.linalg.svdvals(B[..., :expanding, :])[..., 0]
    sine = torch.linalg.svdvals(B[..., expanding:, :])[..., -1]
    both = torch.atan2(sine, cosine)
    return both[:, 0].masked_fill((both[:, 0] - both[:, 1]).abs() > tol, math.nan)
