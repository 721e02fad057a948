"""Growth of a block of deviations under any sequence of linear maps: QR, with re-orthonormalisation when it is due.

After a block of steps J Q = Q' R; the exponents are the means of ln R_ii per step (Benettin, Galgani, Giorgilli,
Strelcyn 1980; Shimada, Nagashima 1979). Blocks end before their columns' stretch spoils the triangular factor.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import NonFiniteError
from .exponents import block_errors
from .factors import Record, record_block, restored, stored
from .frames import Frame, Whole

# ln of the column stretch (largest over smallest, and of each) that a block may reach: its square times the rounding
# error of the dtype is the relative error of R.
STRETCH = {torch.float32: 5.0, torch.float64: 12.0}
# Blocks kept in memory; a longer history is thinned by merging neighbours.
KEEP = 2048
# ln of the growths' ratio in one block that leaves the smallest four digits.
_TRUSTED = {dtype: -math.log(1e4 * torch.finfo(dtype).eps) for dtype in STRETCH}

# J Y, and the sums of squares of its columns [k] where they are known.
Advanced = tuple[Tensor, Tensor | None]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Reading:
    """Where a run stands.

    Attributes:
        growth: sum of ln R_ii over the measured steps, float64 [k].
        steps: how many these are.
        directions: Q, those of its columns [S, k] that are here.
        log_gali: ln GALI_1 .. ln GALI_k, or None.
    """

    growth: Tensor
    steps: int
    directions: Tensor
    log_gali: Tensor | None


class Benettin:
    """The deviations of one run and their growth so far.

    Args:
        Y: orthonormal columns [S, k] to start from, those that are here; overwritten.
        every: re-orthonormalise at every multiple of this many steps, and when the stretch asks for it; "auto": only
            when it does.
        transient: first steps that turn the deviations but are not measured.
        gali: also follow the volume of the free deviations (see ``log_gali`` of ``LyapunovResult``).
        record: takes the factors of all measured blocks, for covariant vectors.
        frame: knows all columns; None: they are all here. With others ``gali`` and ``record`` are not followed.

    Attributes:
        recorded: how many blocks the record has.
        steps: done so far, transient included.
        last: growth and length of the last measured block, or None.
        stopped: the step at which NaN or infinity came up, or None.
        torn: whether a step began to write and did not come to its end: Y and the counts may be of different steps.
    """

    def __init__(
        self,
        Y: Tensor,
        every: int | str = "auto",
        transient: int = 0,
        gali: bool = False,
        record: Record | None = None,
        frame: Frame | None = None,
    ) -> None:
        self.frame = Whole(Y.shape[1]) if frame is None else frame
        k = self.frame.k
        self.Y, self.every, self.transient = Y, every, transient
        self.steps, self.pending, self.stopped = 0, 0, None  # type: int, int, int | None
        self.torn = False
        self.growth = torch.zeros(k, dtype=torch.float64, device=Y.device)
        self.last: tuple[Tensor, int] | None = None
        self.ends: list[int] = []
        self.blocks: list[Tensor] = []
        self._merged = 1  # how many measured blocks an entry of ``blocks`` stands for
        self._open = 0  # how many the last entry has so far
        self._sound: Benettin | None = None  # as it was before its first block that lost the smallest growths
        self._allowed, self._rate = 1, 0.0  # of the next block: its length at most; expected stretch per step
        self.gali: tuple[Tensor, Tensor] | None = None
        if gali:
            self.gali = torch.eye(k, dtype=torch.float64, device=Y.device), torch.zeros_like(self.growth)
        self.record, self.recorded = record, 0 if record is None else record.begin(0, Y)

    def advance(self, apply_: Callable[[Tensor], Advanced]) -> bool:
        """One step; ``apply_`` returns J Y, in the same memory or in fresh one, and the sums of squares of its columns.

        Returns:
            Whether a block was measured.

        Raises:
            NonFiniteError: the deviations overflowed; what was measured until the last block stays.
        """
        return self._count(*self.prepare(apply_))

    def prepare(self, make: Callable[[Tensor], _T]) -> _T:
        """What the first half of a step makes of Y, which it does not write to.

        Raises:
            NonFiniteError: its own, with the number of the step; or the run has stopped.
        """
        if self.stopped is not None:
            raise NonFiniteError(
                f"the run stopped at step {self.stopped}; make a new analyzer, or resume an older state"
            )
        try:
            return make(self.Y)
        except NonFiniteError as error:
            raise NonFiniteError(f"step {self.steps}: {error}; results until then are kept") from error

    def commit(self, write_: Callable[[], Tensor | None]) -> bool:
        """The second half of a step: ``write_`` replaces Y by J Y in place and returns the sums of squares.

        To be called with signals put off. What else may break in is noticed by ``torn``.

        Returns:
            Whether a block was measured.

        Raises:
            NonFiniteError: as of ``advance``.
        """
        self.torn = True
        return self._count(self.Y, write_())

    def _count(self, Y: Tensor, squares: Tensor | None) -> bool:
        """Each change of several attributes is one call of native code: nothing comes between."""
        low, high = self.frame.extremes(Y, squares)
        if not (math.isfinite(low) and math.isfinite(high)):
            vars(self).update(Y=Y, stopped=self.steps, torn=False)
            raise NonFiniteError(f"step {self.steps}: the deviations have NaN or infinity; results until then are kept")
        vars(self).update(Y=Y, steps=self.steps + 1, pending=self.pending + 1, torn=False)
        if self.steps != self.transient and not self._is_due(low, high):
            return False
        return self._close()

    def _is_due(self, low: float, high: float) -> bool:
        """Whether another step could pass the allowed stretch."""
        n = self.pending
        at_multiple = isinstance(self.every, int) and (self.steps - self.transient) % self.every == 0
        if low == 0 or n >= self._allowed or at_multiple:
            return True
        down, up = math.log(low), math.log(high)
        stretch = max(up - down, up, -down, self._rate * n)
        return stretch * (n + 1) / n > STRETCH[self.Y.dtype]

    def _close(self) -> bool:
        n, measured = self.pending, self.steps > self.transient
        Q, diagonal, R = self.frame.factored(self.Y)
        growth = diagonal.log()
        finite = growth[torch.isfinite(growth)]
        # Parallel columns of equal length are as bad as unequal ones, and only R shows them.
        rate = float(finite.max() - finite.min()) / n if len(finite) else 0.0
        rate = max(rate, 0.9 * self._rate)  # strongly stretching regions come back
        # A QR costs about k / (3 N) products on a batch of N: make it a small part, yet keep a useful history.
        longest = self.every if isinstance(self.every, int) else max(16, len(growth) // 2)
        after = {"Y": Q, "_rate": rate, "_allowed": min(4 * n, longest), "pending": 0}
        after |= record_block(self.record, self.recorded, self.steps, Q, R if measured else None)
        vars(self).update(after | (self._measured(growth, n, R) if measured else {}))
        return measured

    def _measured(self, growth: Tensor, n: int, R: Tensor | None) -> dict[str, Any]:
        """What a measured block changes."""
        gali = None if self.gali is None or R is None else _turn(self.gali, R)
        lost = self._sound is None and not _is_sound(growth, self.Y.dtype)
        own = {"growth": self.growth + growth, "last": (growth, n), "gali": gali}
        return {**own, "_sound": self._closed() if lost else self._sound, **self._history_with(growth)}

    def sound(self) -> Benettin:
        """The run as it was after its last whole block before the first that lost digits: what is left of an escape.

        Its deviations are not those of that moment.
        """
        return self._closed() if self._sound is None else self._sound

    @property
    def is_sound(self) -> bool:
        """Whether every measured block so far was within what the dtype can bear, and the last one has just ended."""
        return self._sound is None and not self.pending

    def _closed(self) -> Benettin:
        """A copy without the steps after the last block."""
        other = copy.copy(self)
        other.ends, other.blocks, other.growth = list(self.ends), [b.clone() for b in self.blocks], self.growth.clone()
        other.steps, other.pending = self.ends[-1] if self.ends else min(self.steps, self.transient), 0
        return other

    def _history_with(self, growth: Tensor) -> dict[str, Any]:
        ends, blocks, merged = list(self.ends), list(self.blocks), self._merged
        if self._open == 0:
            ends.append(self.steps)
            blocks.append(growth)
        else:
            ends[-1], blocks[-1] = self.steps, blocks[-1] + growth
        now_open = (self._open + 1) % merged
        if len(blocks) == KEEP and now_open == 0:
            ends, merged = ends[1::2], 2 * merged
            blocks = [a + b for a, b in zip(blocks[::2], blocks[1::2], strict=True)]
        return {"ends": ends, "blocks": blocks, "_open": now_open, "_merged": merged}

    def reading(self) -> Reading:
        """The state after all steps so far, without touching it: reading changes no later result."""
        done = max(self.steps - self.pending - self.transient, 0)
        gali = self.gali
        if not self.pending or self.stopped is not None:
            return Reading(self.growth.clone(), done, self.Y, _log_gali(gali, self.growth))
        Q, diagonal, R = self.frame.factored(self.Y)
        if self.steps <= self.transient:
            return Reading(self.growth.clone(), 0, Q, _log_gali(gali, self.growth))
        growth = self.growth + diagonal.log()
        gali = None if gali is None or R is None else _turn(gali, R)
        return Reading(growth, done + self.pending, Q, _log_gali(gali, growth))

    def history(self) -> tuple[Tensor, Tensor]:
        """Step after each kept block, [m], and growth in it, [m, k]."""
        k = len(self.growth)
        blocks = torch.stack(self.blocks) if self.blocks else self.growth.new_zeros(0, k)
        return torch.tensor(self.ends, dtype=torch.int64, device="cpu"), blocks

    def errors(self) -> Tensor:
        """Standard error of each mean growth per step, float64 [k]."""
        ends, blocks = self.history()
        return block_errors(ends, blocks, self.transient)

    _PLAIN = ("steps", "pending", "stopped", "ends", "_merged", "_open", "_allowed", "_rate")

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-identical continuation needs."""
        plain = {n: getattr(self, n) for n in self._PLAIN}
        last = None if self.last is None else [self.last[0].clone(), self.last[1]]
        gali = None if self.gali is None else [t.clone() for t in self.gali]
        return {
            **plain,
            "ends": list(self.ends),
            "Y": self.Y.clone(),
            "growth": self.growth.clone(),
            "blocks": self.history()[1],
            "last": last,
            "gali": gali,
            **stored(self.record, self.recorded),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict()``, or changes nothing; the caller has checked that it fits."""

        def own(t: Tensor) -> Tensor:
            return t.to(self.Y.device, copy=True)

        last, gali = state["last"], state["gali"]
        after = {name: state[name] for name in self._PLAIN} | {
            "ends": list(state["ends"]),
            "Y": self.frame.placed(own(state["Y"])),
            "growth": own(state["growth"]),
            "blocks": list(own(state["blocks"])),
            "last": None if last is None else (own(last[0]), last[1]),
            "gali": None if gali is None else (own(gali[0]), own(gali[1])),
            "torn": False,
        }
        vars(self).update(after | restored(self.record, state, self.Y.device))


def _is_sound(growth: Tensor, dtype: torch.dtype) -> bool:
    """Whether the smallest growth of a block still has digits beside the largest."""
    low, high = torch.stack(torch.aminmax(growth)).tolist()
    return math.isfinite(low) and math.isfinite(high) and high - low <= _TRUSTED[dtype]


def _turn(gali: tuple[Tensor, Tensor], R: Tensor) -> tuple[Tensor, Tensor]:
    """The triangular product T <- R T as unit columns and the logarithms of their lengths."""
    T = R @ gali[0]
    norms = torch.linalg.vector_norm(T, dim=0)
    return T / norms, gali[1] + norms.log()


def _log_gali(gali: tuple[Tensor, Tensor] | None, growth: Tensor) -> Tensor | None:
    """ln of the volume of the first j free deviations, each of length one: sum_(i <= j) ln T_ii - ln ||T e_i||.

    (The generalised alignment index of Skokos, Bountis, Antonopoulos 2007.)
    """
    return None if gali is None else (growth - gali[1]).cumsum(0)
