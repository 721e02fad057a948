"""What a forward run leaves for the way back: the triangular factor of every block, and some of the frames between."""

from __future__ import annotations

import logging
import tempfile
from typing import IO, Any

import torch
from torch import Tensor

from ..base.contents import array, count, parts, require

BUDGET = 1 << 28  # bytes of factors that stay in memory
_log = logging.getLogger("chaos_ext")


class Factors:
    """Upper triangular matrices [k, k] in float64, packed; beyond a budget they go to an unnamed temporary file.

    Args:
        k: their size.
        budget: bytes that stay in memory; default 256 MB.
    """

    def __init__(self, k: int, budget: int | None = None) -> None:
        self._rows, self._columns = torch.triu_indices(k, k, device="cpu")
        self.k, self.budget = k, BUDGET if budget is None else budget
        self._filed, self._open = 0, []  # type: int, list[Tensor]
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return self._filed + len(self._open)

    def put(self, i: int, R: Tensor) -> None:
        """Sets the i-th; those from i on are forgotten."""
        self._truncate(i)
        self._open.append(R.to("cpu", torch.float64)[self._rows, self._columns])
        if len(self._open) * self._bytes > self.budget:
            self._spill()

    def __getitem__(self, i: int) -> Tensor:
        R = torch.zeros(self.k, self.k, dtype=torch.float64, device="cpu")
        R[self._rows, self._columns] = self._read(i) if i < self._filed else self._open[i - self._filed]
        return R

    def packed(self, n: int) -> Tensor:
        """The first n as rows, float64 [n, k (k + 1) / 2]."""
        rows = [self._read(i) if i < self._filed else self._open[i - self._filed] for i in range(n)]
        return torch.stack(rows) if rows else torch.zeros(0, len(self._rows), dtype=torch.float64, device="cpu")

    def fill(self, rows: Tensor) -> None:
        """Takes the rows that ``packed`` gave."""
        self._truncate(0)
        for row in rows:
            self._open.append(row.to("cpu", copy=True))
            if len(self._open) * self._bytes > self.budget:
                self._spill()

    @property
    def _bytes(self) -> int:
        return 8 * len(self._rows)

    def _truncate(self, i: int) -> None:
        if i < self._filed:
            self._filed, self._open = i, []
        del self._open[i - self._filed :]

    def _read(self, i: int) -> Tensor:
        assert self._file is not None
        self._file.seek(i * self._bytes)
        return torch.frombuffer(bytearray(self._file.read(self._bytes)), dtype=torch.float64)

    def _spill(self) -> None:
        """A disk that is full costs memory, not the run."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            self._file.seek(self._filed * self._bytes)
            content = memoryview(torch.stack(self._open).numpy().tobytes())
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            _log.warning("factors of covariant vectors stay in memory: the temporary file failed (%s)", error)
            self.budget *= 2
            return
        self._filed, self._open = self._filed + len(self._open), []


class Record:
    """Factors of all measured blocks, and the frames at some of the places between them.

    Place i is before block i: J_(block i) Q_i = Q_(i + 1) R_i. Writing a place again forgets what came after it, so a
    step that was broken off after it wrote here leaves nothing wrong.

    Args:
        k: columns of a frame.
        every: keep the frames at multiples of this many steps after the first; None: those of evenly spread blocks.
        most: then at most this many.
        budget: as of ``Factors``.

    Attributes:
        factors: R of every block.
        steps: number of the step at every place.
        frames: place -> Q [S, k].
        stride: of the places whose frames are kept, without ``every``.
    """

    def __init__(self, k: int, every: int | None = None, most: int = 64, budget: int | None = None) -> None:
        self.factors, self._every, self._most = Factors(k, budget), every, most
        self.steps: list[int] = []
        self.frames: dict[int, Tensor] = {}
        self.stride = 1

    def begin(self, step: int, Q: Tensor) -> int:
        """The first place; returns the number of blocks, 0."""
        self.steps, self.frames, self.stride = [step], {0: Q.clone()}, 1
        return 0

    def put(self, blocks: int, step: int, Q: Tensor, R: Tensor) -> int:
        """The block after the first ``blocks``, which ends at this step in this frame; returns the new number."""
        place = blocks + 1
        self.factors.put(blocks, R)
        del self.steps[place:]
        self.steps.append(step)
        while next(reversed(self.frames)) >= place:  # they are in order, and the first one stays
            self.frames.popitem()
        if self._is_kept(place):
            self.frames[place] = Q.clone()
        while self._every is None and len(self.frames) > self._most:
            self.stride *= 2
            self.frames = {i: F for i, F in self.frames.items() if i % self.stride == 0}
        return place

    def _is_kept(self, place: int) -> bool:
        if self._every is None:
            return place % self.stride == 0
        return (self.steps[place] - self.steps[0]) % self._every == 0

    def state_dict(self, blocks: int) -> dict[str, Any]:
        """Of the first ``blocks`` blocks, all in memory."""
        frames = {i: F.clone() for i, F in self.frames.items() if i <= blocks}
        return {
            "factors": self.factors.packed(blocks),
            "steps": self.steps[: blocks + 1],
            "frames": frames,
            "stride": self.stride,
        }

    def loaded(self, state: dict[str, Any], device: torch.device) -> Record:
        """Another record with this state."""
        other = Record(self.factors.k, self._every, self._most, self.factors.budget)
        other.factors.fill(state["factors"])
        other.steps, other.stride = list(state["steps"]), state["stride"]
        other.frames = {i: F.to(device, copy=True) for i, F in state["frames"].items()}
        return other


def record_block(record: Record | None, blocks: int, step: int, Q: Tensor, R: Tensor | None) -> dict[str, Any]:
    """What a block changes in its run: one that is measured goes into the record, others move the first place."""
    if record is None:
        return {}
    return {"recorded": record.begin(step, Q) if R is None else record.put(blocks, step, Q, R)}


def stored(record: Record | None, blocks: int) -> dict[str, Any]:
    """The record's part of a saved run."""
    return {} if record is None else {"record": record.state_dict(blocks)}


def restored(record: Record | None, state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What a saved run changes; the record itself stays as it is."""
    if record is None:
        return {}
    other = record.loaded(state["record"], device)
    return {"record": other, "recorded": len(other.factors)}


def check_record(state: Any, Y: Tensor, end: int) -> None:
    """Raises UnfitError unless this is the state of a record of frames like Y [S, k] whose last block ends there."""
    parts(state, ("factors", "steps", "frames", "stride"), "record")
    k = Y.shape[1]
    steps, frames = state["steps"], state["frames"]
    array("record.factors", state["factors"], (None, k * (k + 1) // 2), (torch.float64,))
    require(isinstance(steps, list) and bool(steps), "record.steps", "a list of ints", steps)
    for before, step in zip([-1, *steps], steps, strict=False):
        count("record.steps", step, before + 1)
    require(steps[-1] == end, "record.steps", f"a last block up to step {end}", steps[-1:])
    blocks = len(state["factors"])
    require(len(steps) == blocks + 1, "record.steps", f"{blocks + 1} steps", len(steps))
    count("record.stride", state["stride"], 1)
    require(isinstance(frames, dict) and 0 in frames, "record.frames", "a dict of frames with the first", frames)
    for place, frame in frames.items():
        count("record.frames", place, 0, blocks)
        array("record.frames", frame, Y.shape, (Y.dtype,))
