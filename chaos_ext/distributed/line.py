"""The collectives of one process group, one after the other: each is waited for, and a loss gets its rank's name."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from ..base.torch_internals import group_store
from ..errors import RankFailedError
from .groups import backends_of, place_of, require_alive
from .roll import Roll
from .said import ranks_named

_STEP = 1.0  # s, after which one that waits leaves a note, and looks for others'
_GRACE = 3.0  # s for the others to leave their notes after a connection broke


class Line:
    """What all ``Ranks`` of one group share: how many collectives there were, and whether it is broken.

    Args:
        group: the process group, which is handed to every method: a line is kept only as long as that lives.

    Attributes:
        number: of the collective that is going on.
        broken: why there will be no more, or "".
        announced: the error that all ranks know of already, while it passes through nested ``together``.
        depth: how many ``together`` are open.
    """

    def __init__(self, group: Any) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.number, self.broken, self.depth = 0, "", 0
        self.announced: BaseException | None = None
        self._roll = Roll(group_store(group), self.rank, self.size)
        self._backends = backends_of(group)

    def place(self, device: torch.device) -> torch.device:
        """Where a tensor on this device takes part in a collective."""
        return place_of(self._backends, device)

    def begin(self, group: Any, what: str) -> None:
        """The next collective begins.

        Raises:
            RankFailedError: there was a loss before, or the group was destroyed.
        """
        if self.broken:
            raise RankFailedError(f"{what}: the process group is broken: {self.broken}; make a new one")
        require_alive(group, what)
        self.number += 1

    def gather(self, group: Any, t: Tensor, what: str, timeout: float) -> Tensor:
        """The contiguous tensors t of all ranks, of one shape, as [ranks, ...]."""
        out = t.new_empty(self.size, *t.shape)
        if t.numel():
            parts = list(_bytes(out).view(self.size, -1).unbind())
            self._run(lambda: dist.all_gather(parts, _bytes(t), group=group, async_op=True), t, what, timeout)
        return out

    def numbers(self, group: Any, values: list[int], what: str, timeout: float) -> list[list[int]]:
        """A few integers of every rank."""
        t = torch.tensor(values, dtype=torch.int64, device=self.place(_CPU))
        rows: list[list[int]] = self.gather(group, t, what, timeout).tolist()
        return rows

    def texts(self, group: Any, text: str, what: str, timeout: float) -> list[str]:
        """The beginning of a text of every rank."""
        data = text.encode()[:_TEXT]
        rows = self.numbers(group, [*data, *([0] * (_TEXT - len(data)))], what, timeout)
        return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]

    def swap(
        self, group: Any, t: Tensor, sent: list[int] | None, got: list[int] | None, what: str, timeout: float
    ) -> Tensor:
        """Piece r of the contiguous t [n] goes to rank r; the pieces of all ranks, in their order.

        Args:
            group: the process group.
            t: the pieces, one after the other.
            sent, got: their lengths; None: equal ones.
            what: for messages.
            timeout: seconds.
        """
        out, width = t.new_empty(len(t) if got is None else sum(got)), t.element_size()
        outs, ins = [None if s is None else [n * width for n in s] for s in (got, sent)]
        a, b = _bytes(out), _bytes(t)
        self._run(lambda: dist.all_to_all_single(a, b, outs, ins, group, async_op=True), t, what, timeout)
        return out

    def send_to_all(self, group: Any, t: Tensor, source: int, what: str, timeout: float) -> None:
        """The contiguous t of all ranks becomes that of the source."""
        origin = dist.get_global_rank(group, source)
        if t.numel():
            self._run(lambda: dist.broadcast(_bytes(t), origin, group=group, async_op=True), t, what, timeout)

    def _run(self, start: Callable[[], Any], t: Tensor, what: str, timeout: float) -> None:
        """Starts a collective of torch's on a tensor like t, and waits for its end.

        Raises:
            RankFailedError: a rank was lost, or did not come in time.
        """
        try:
            self._wait(start(), t.is_cpu, what, timeout)
        except RankFailedError:
            raise
        except (RuntimeError, ValueError) as e:
            self._roll.waits(self.number, what)
            self._lost(what, f"({_brief(e)})", _GRACE)
        except BaseException as e:  # Ctrl-C: the others would wait for what this rank will not take up again
            self.leave(f"rank {self.rank} was interrupted at {what} ({type(e).__name__})")
            raise

    def _wait(self, work: Any, on_cpu: bool, what: str, timeout: float) -> None:
        end, step, noted = time.monotonic() + timeout, min(_STEP, timeout / 4), False
        while not _ended(work, on_cpu, step):
            if not noted:
                self._roll.waits(self.number, what)
                noted = True
            if (why := self._roll.failure()) is not None:
                self._break(why)
            if time.monotonic() >= end:
                self._lost(what, f"within {timeout:g} s", 2 * step)

    def leave(self, why: str) -> None:
        """Makes known that the group is of no more use."""
        self.broken = self.broken or why
        self._roll.fails(why)

    def _lost(self, what: str, how: str, grace: float) -> NoReturn:
        if (why := self._roll.failure()) is not None:  # somebody has looked into it already
            self._break(why)
        missing = self._roll.absent(self.number, grace)
        if missing is None:
            message = f"the store of the group does not answer, and {what} did not end {how}: its rank was lost"
        elif missing:
            message = f"{ranks_named(missing)} did not arrive at {what} {how}"
        else:
            message = f"{what} did not end {how}, though all ranks arrived"
        self._roll.fails(message)
        self._break(message, tuple(missing or ()))

    def _break(self, why: str, ranks: tuple[int, ...] = ()) -> NoReturn:
        self.broken = why
        if not ranks and (named := _NAMED.match(why)):
            ranks = tuple([int(r) for r in re.findall(r"\d+", named[1])])
        raise RankFailedError(f"{why}; the process group is of no more use: start again from a checkpoint", ranks)


_NAMED = re.compile(r"ranks? ((?:\d+(?:, )?)+)")  # in what another rank has found out
_CPU = torch.device("cpu")
_TEXT = 400  # bytes
_LINES: WeakKeyDictionary[Any, Line] = WeakKeyDictionary()


def line_of(group: Any) -> Line:
    """The one line of this group."""
    if group not in _LINES:
        _LINES[group] = Line(group)
    return _LINES[group]


def _bytes(t: Tensor) -> Tensor:
    """The memory of a contiguous tensor: every backend moves bytes."""
    return t.view(-1).view(torch.uint8)


def _ended(work: Any, on_cpu: bool, seconds: float) -> bool:
    """Whether the work came to its end within these seconds; raises what it raised."""
    if not on_cpu:  # there a wait with a time limit would end the process
        end = time.monotonic() + seconds
        while not work.is_completed():
            if time.monotonic() >= end:
                return False
            time.sleep(1e-4)
    else:
        try:
            work.wait(timedelta(seconds=seconds))
            return True
        except RuntimeError:
            if not work.is_completed():
                return False  # it was the wait that ended, not the work
    work.wait()
    return True


def _brief(e: Exception) -> str:
    """What torch says, without where in its source and what it recommends."""
    line = str(e).split("\n", 1)[0]
    return re.sub(r"^\[\S*\] ?", "", line).split(". This is typically")[0][:200]
