"""A process group as the package uses it: a few collectives of fixed order, which end, or say who is missing."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

import torch
from torch import Tensor

from ..errors import RanksDisagreeError
from .meetings import Meetings
from .said import differing
from .shapes import described, equal, in_order, read, require_pieces, require_sendable, signature

_SMALL = 1 << 18  # bytes of all ranks together, up to which a sum is one message to each
_PART = 1 << 23  # numbers that are summed at a time: three times as many are in memory beside the sum


class Ranks(Meetings):
    """The processes of a torch.distributed group: sums in a fixed order, and failures that name their rank.

    Everything here is called by all processes of the group, in the same order. Whatever one of them cannot go on with
    (an error inside ``together``, another call, another shape, a process that was killed or that hangs) raises on all.

    Results are the same bits on every rank, and in every repetition with as many ranks.

    A process that was killed or does not come leaves the group of no more use: whatever is asked of it then raises at
    once, and the run has to be started again. All else leaves it as it was.

    Example:
        >>> alone = dict(rank=0, world_size=1, store=torch.distributed.HashStore())
        >>> torch.distributed.init_process_group("gloo", **alone)  # under torchrun: without these, and of all processes
        >>> ce.Ranks(timeout=600.0).sum(torch.ones(2))
        tensor([1., 1.])
        >>> torch.distributed.destroy_process_group()

    Args:
        group: a process group that holds this process; None: the default one.
        timeout: how many seconds a rank waits for the others at each meeting: more than the most that one of them
            computes longer than another.

    Attributes:
        group: the process group.
        rank, size: of this process in the group, and how many there are.
        timeout: as given.

    Raises:
        ValueError: torch.distributed is not initialised, the group was destroyed or does not hold this process, or a
            ``timeout`` that is not positive.
        TypeError: no process group.
        UnsupportedError: a torch without torch.distributed.
    """

    def __init__(self, group: Any = None, *, timeout: float = 60.0) -> None:
        super().__init__(group, timeout=timeout)

    def __repr__(self) -> str:
        return f"Ranks(rank={self.rank}, size={self.size}, timeout={self.timeout:g})"

    def __reduce__(self) -> str:
        raise TypeError("Ranks: it belongs to this process and can be neither copied nor pickled")

    def named(self, kind: str) -> Ranks:
        """The same ranks for one object, made by all of them at this moment: calls of two such objects do not mix.

        Where one rank is at a call of one object and another at the same call of another object, all raise.

        Args:
            kind: of the object, in a word, for messages.
        """
        own = Ranks.__new__(Ranks)
        vars(own).update(vars(self), _whose=f"of the {kind} made at meeting {self._line.number}")
        return own

    def sum(self, tensor: Tensor, what: str = "a sum", *, same: str = "", out: Tensor | None = None) -> Tensor:
        """The sum over the ranks, element by element in the order of the ranks, in the tensor's own dtype.

        Args:
            tensor: [...], of the same shape and dtype on every rank.
            what: its name in messages, as everywhere here.
            same: what else has to be the same on all ranks, in words.
            out: a contiguous tensor of this shape, dtype and device to write to; it may be ``tensor`` itself.

        Raises:
            RanksDisagreeError: the ranks are at different calls, shapes or dtypes, or ``same`` differs.
            RankFailedError: another rank raised, was lost, or did not come.
        """
        local = self._local(tensor)
        with self._meeting(what, "sum", f"{signature(tensor)} {same}".strip()):
            if local.numel() * local.element_size() * self.size <= _SMALL:
                total = in_order(self._gather(local, what))
            else:
                here = out is not None and out.device == local.device
                total = torch.empty_like(local) if out is None or not here else out.view(-1)
                for part, place in zip(local.split(_PART), total.split(_PART), strict=True):
                    place.copy_(self._sum_by_blocks(part, what))
        if out is None:
            return total.view(tensor.shape).to(tensor.device)
        return out if total.data_ptr() == out.data_ptr() else out.copy_(total.view(out.shape))

    def _sum_by_blocks(self, local: Tensor, what: str) -> Tensor:
        """Each rank adds up one block for all."""
        n = local.numel()
        block = -(-n // self.size)
        padded = local if n == block * self.size else torch.cat([local, local.new_zeros(block * self.size - n)])
        mine = self._line.swap(self.group, padded, None, None, what, self.timeout).view(self.size, block)
        return self._gather(in_order(mine), what).view(-1)[:n]

    def gather(self, tensor: Tensor, what: str = "a gather") -> list[Tensor]:
        """The tensors of all ranks, in their order. Errors as of ``sum``.

        Args:
            tensor, what: as of ``sum``.
        """
        local = self._local(tensor)
        with self._meeting(what, "gather", signature(tensor)):
            rows = self._gather(local, what)
        return [row.view(tensor.shape).to(tensor.device) for row in rows]

    def gather_objects(self, value: object, what: str = "a gather of objects") -> list[Any]:
        """Small values of all ranks, in their order. Errors as of ``sum``.

        Args:
            value: anything that can be pickled.
            what: its name in messages.
        """
        data = self._or_all_raise(lambda: pickle.dumps(value), what)
        with self._meeting(what, "gather of objects", aux=[len(data)]) as lengths:
            longest = max(row[0] for row in lengths)
            padded = torch.zeros(longest, dtype=torch.uint8, device=self._place(torch.device("cpu")))
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            rows = self._gather(padded, what).cpu()
        return [pickle.loads(bytes(row[: n[0]].tolist())) for row, n in zip(rows, lengths, strict=True)]

    def broadcast(self, tensor: Tensor | None, source: int, what: str = "a broadcast") -> Tensor:
        """The tensor of rank ``source``.

        Args:
            tensor: on that rank; elsewhere only its device counts, and None is the CPU.
            source: a rank of this group.
            what: its name in messages.

        Raises:
            ValueError: no such rank, or no tensor on it. Else as of ``sum``.
        """
        if not 0 <= source < self.size:
            raise ValueError(f"source: expected a rank from 0 to {self.size - 1}, got {source!r}")
        local = self._or_all_raise(lambda: self._to_send(tensor, source), what)
        device = torch.device("cpu") if tensor is None else tensor.device
        with self._meeting(
            what, f"broadcast from {source}", aux=described(tensor if self.rank == source else None)
        ) as metas:
            dtype, shape = read(metas[source])
            if local is None:
                local = torch.empty(shape.numel(), dtype=dtype, device=self._place(device))
            self._line.send_to_all(self.group, local, source, what, self.timeout)
        out = local.view(shape)
        return tensor.detach().clone() if tensor is not None and self.rank == source else out.to(device)

    def _to_send(self, tensor: Tensor | None, source: int) -> Tensor | None:
        if self.rank != source:
            return None
        require_sendable(f"tensor on rank {source}", tensor)
        assert tensor is not None
        return self._local(tensor)

    def exchange(self, pieces: list[Tensor], what: str = "an exchange") -> list[Tensor]:
        """``pieces[r]`` goes to rank r; the pieces that came, by the rank that they came from.

        Args:
            pieces: a tensor for each rank, of any shapes of at most 8 axes, all of one dtype and device.
            what: its name in messages.

        Raises:
            ValueError: not as many as ranks, or of different dtypes. Else as of ``sum``.
        """
        self._or_all_raise(lambda: require_pieces(pieces, self.size), what)
        flat = [self._local(p) for p in pieces]
        place = flat[0].device
        sent = torch.tensor([described(p) for p in pieces], dtype=torch.int64, device=place).view(-1)
        with self._meeting(what, "exchange", f"{pieces[0].dtype} on {pieces[0].device.type}"):
            theirs = self._line.swap(self.group, sent, None, None, what, self.timeout)
            shapes = [read(row)[1] for row in theirs.view(self.size, -1).tolist()]
            lengths = [p.numel() for p in flat], [s.numel() for s in shapes]
            got = self._line.swap(self.group, torch.cat(flat), *lengths, what, self.timeout)
        parts = got.split(lengths[1])
        return [t.view(s).to(pieces[0].device) for t, s in zip(parts, shapes, strict=True)]

    def agree(self, what: str, value: object) -> None:
        """Makes sure that a small value is the same on all ranks.

        Args:
            what: the value's name in messages.
            value: anything that can be pickled; equal where == or repr says so. Of dicts the entries that differ are
                named.

        Raises:
            RanksDisagreeError: on every rank, with the values. RankFailedError: as of ``sum``.
        """
        meeting, data = f"the comparison of {what}", self._or_all_raise(lambda: pickle.dumps(value), what)
        digest = int.from_bytes(hashlib.blake2b(data, digest_size=7).digest(), "little")
        with self._meeting(meeting, "comparison", aux=[digest]) as digests:
            pass
        if all(row == digests[0] for row in digests):
            return
        values = self.gather_objects(value, meeting)
        if any(not equal(values[0], v) for v in values):
            self._announce(RanksDisagreeError(differing(what, values)))

    def _place(self, device: torch.device) -> torch.device:
        return self._line.place(device)

    def _local(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self._place(tensor.device)).contiguous().view(-1)

    def _gather(self, local: Tensor, what: str) -> Tensor:
        return self._line.gather(self.group, local, what, self.timeout)
