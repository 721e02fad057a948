"""The two methods of a Lyapunov spectrum: which options each has, what it takes, and the run that measures."""

from __future__ import annotations

import functools
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..base import memory
from ..base.arguments import require_int, require_seed
from ..base.tensors import fresh
from ..distributed.ranks import Ranks
from ..errors import TornStateError, UnsupportedError
from .asymptotic import Asymptotic
from .benettin import KEEP
from .covariant import record_for
from .finite_time.factors import BLOCK
from .finite_time.run import EVERY, FiniteTime, Shape
from .sharded.columns import Columns
from .sharded.frame import Spread
from .sharded.start import start_columns
from .start import check_count, check_every, start_block

METHODS = ("qr", "svd")
Run = Asymptotic | FiniteTime
EXTREMES = ("largest", "smallest", "largest_tolerance", "smallest_tolerance")


class Options(NamedTuple):
    """What a user may ask of a run, beside what is multiplied.

    Attributes:
        method: "qr" or "svd".
        k: number of columns; None: all.
        qr_every, gali, covariant: of "qr".
        every: of "svd"; None: the default.
        transient: first steps that are not measured.
        seed: of the first deviations.
        budget: bytes that it may take, or None.
    """

    method: str
    k: int | None
    qr_every: int | str
    gali: bool
    every: int | None
    transient: int
    seed: int
    budget: int | None = None
    covariant: bool = False

    def measured(self) -> dict[str, object]:
        """Those that decide what is measured."""
        names = ("method", "k", "qr_every", "gali", "every", "transient", "seed", "covariant")
        return {name: getattr(self, name) for name in names}


def check_options(o: Options) -> None:
    """Raises ValueError for options out of range, or of the other method."""
    if o.method not in METHODS:
        raise ValueError(f"method: expected one of {METHODS}, got {o.method!r}")
    check_every(o.qr_every)
    require_int("transient", o.transient, 0)
    require_seed("seed", o.seed)
    memory.check_budget(o.budget)
    if o.every is not None:
        require_int("every", o.every, 1)
    if o.method == "qr" and o.every is not None:
        raise ValueError(f"every: only of method='svd', got {o.every!r}; qr_every is that of method='qr'")
    for name, given in (("qr_every", o.qr_every != "auto"), ("gali", o.gali), ("covariant", o.covariant)):
        if o.method == "svd" and given:
            raise ValueError(f"{name}: only of method='qr', got {getattr(o, name)!r} with method='svd'")


def refuse_spread(o: Options) -> None:
    """Raises UnsupportedError for what needs all columns in one process."""
    for name, given in (("method", o.method == "svd"), ("gali", o.gali), ("covariant", o.covariant)):
        if given:
            raise UnsupportedError(
                f"{name}: {name}={getattr(o, name)!r} needs all columns in one process, and with group= each rank has "
                "some; leave it out, or leave out group"
            )


def run_for(
    o: Options,
    size: int,
    rows: int,
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    ranks: Ranks | None = None,
) -> Run:
    """The run that these options ask for, from its first deviations on.

    Args:
        o: checked.
        size: S, the rows of deviations.
        rows: how many of them are of interest: S, or P.
        name: of the number of rows, for messages.
        dtype, device: of the deviations.
        ranks: over which columns are spread; None: all are here.

    Raises:
        ValueError: k out of range. MemoryBudgetError: k deviations do not fit. UnsupportedError: the theta block with
        method="qr"; what cannot be spread.
    """
    if ranks is not None:
        refuse_spread(o)
    if o.method == "svd":
        return _finite_time(o, size, rows, name, dtype, device)
    if rows < size:
        raise UnsupportedError(
            "state='theta' with method='qr': the theta block of an optimizer with buffers is no cocycle, so it has no "
            "asymptotic exponents; use state='auto', or method='svd'"
        )
    k = check_count(o.k, size, name)
    if ranks is not None:
        return _spread(o, k, size, dtype, device, ranks)
    # Deviations, their product with H, and two copies while they are orthonormalised; factors and history.
    _require(o, k, size, device, 4 * size * k * dtype.itemsize + (4 * k * k + KEEP * k) * 8)
    start = start_block(size, k, dtype, device, o.seed, generic=o.gali)
    record = record_for(start, o.budget) if o.covariant else None
    return Asymptotic(start, o.qr_every, o.transient, o.gali, record)


def _spread(o: Options, k: int, size: int, dtype: torch.dtype, device: torch.device, ranks: Ranks) -> Asymptotic:
    columns = Columns(k, ranks.size)
    frame, own = Spread(ranks, columns, size), columns.of(ranks.rank)
    # Of S x k / ranks numbers: deviations, rows of them or the factors of panels, what is sent and what comes, the new
    # ones. The first are drawn and made orthonormal in float64. Beside them what ``Spread`` finds small, and history.
    share = size * -(-k // ranks.size)
    square = k * k if frame.by_rows else 0
    need = max(5 * dtype.itemsize, 0 if k == size else 5 * 8) * share + (4 * square + KEEP * k) * 8
    _require(o, k, size, device, need)
    return Asymptotic(start_columns(frame, own, size, dtype, device, o.seed), o.qr_every, o.transient, frame=frame)


_T = TypeVar("_T", Asymptotic, FiniteTime)


def required(run: Run, kind: type[_T], name: str) -> _T:
    """The run, if it is of this kind.

    Raises:
        UnsupportedError: it is of the other method.
    """
    if not isinstance(run, kind):
        raise UnsupportedError(f"{name}: only of method={kind.method!r}; this analyzer has method={run.method!r}")
    return run


def require_whole(run: Run) -> None:
    """Raises TornStateError if a step of this run was broken off in the middle."""
    if run.torn:
        raise TornStateError(
            "LyapunovAnalyzer: an update was broken off while it wrote, so deviations and counts may be of different "
            "steps; load a saved state, or make a new analyzer"
        )


def _finite_time(o: Options, size: int, rows: int, name: str, dtype: torch.dtype, device: torch.device) -> FiniteTime:
    k = check_count(o.k, rows, name if rows == size else "P")
    shape = Shape(size, k, rows, dtype, device)
    # Deviations and a copy to factor (or their product with H); both factors, and a third where the copy cannot be it.
    third = 0 if dtype == torch.float64 and size >= k else 1
    theta = 0 if rows == size else 2  # R of theta's rows, and the copy that it is made of
    slabs = 10 * BLOCK * k * 8
    _require(o, k, size, device, 2 * size * k * dtype.itemsize + (2 + third + theta) * k * k * 8 + slabs)
    return FiniteTime(shape, functools.partial(_start, shape, o.seed), o.every or EVERY, o.transient)


def _start(s: Shape, seed: int) -> Tensor:
    """Orthonormal deviations of the rows that count, others undisturbed [S, k]: (I; 0) if k = rows."""
    block = start_block(s.rows, s.k, s.dtype, s.device, seed)
    if s.rows == s.size:
        return block
    Y = fresh((s.size, s.k), s.dtype, s.device).zero_()
    Y[: s.rows] = block
    return Y


def _require(o: Options, k: int, size: int, device: torch.device, need: int) -> None:
    what = f"method={o.method!r} with k = {k} of S = {size}"
    memory.require(need, device, what, "ask for fewer exponents", o.budget)
