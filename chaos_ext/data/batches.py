"""The order of mini-batches, as a function of (seed, epoch) and of nothing else."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.arguments import require_int, require_seed


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2^63) from any values: equal values give equal seeds, different ones unrelated seeds."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class BatchOrder:
    """Shuffled mini-batches of ``n`` samples; the last, incomplete batch of an epoch is kept.

    Each epoch draws its permutation from a CPU generator of its own, seeded by (seed, epoch). So the global random
    state is neither read nor changed, and any step of a run can be revisited without replaying those before it.

    Attributes:
        n: number of samples.
        batch_size: samples per batch.
        seed: any integer.

    Raises:
        ValueError: ``n`` or ``batch_size`` is below 1.

    Example:
        >>> order = BatchOrder(n=10, batch_size=4, seed=0)
        >>> [len(index) for index in order.epoch(0)]
        [4, 4, 2]
    """

    n: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("n", "batch_size"):
            require_int(name, getattr(self, name), 1)
        require_seed("seed", self.seed)

    @property
    def steps_per_epoch(self) -> int:
        """ceil(n / batch_size)."""
        return -(-self.n // self.batch_size)

    def epoch(self, epoch: int) -> tuple[Tensor, ...]:
        """The index tensors (int64, CPU) of one epoch; together they hold 0..n-1 once each.

        Args:
            epoch: its number, from 0; each has an order of its own.

        Returns:
            ``steps_per_epoch`` tensors [batch_size], the last one shorter where n is no multiple.
        """
        require_seed("epoch", epoch)
        generator = torch.Generator().manual_seed(derive_seed("batches", self.seed, epoch))
        return torch.split(torch.randperm(self.n, generator=generator, device="cpu"), self.batch_size)


def batches(n: int, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Yields the index tensors of one epoch of ``BatchOrder(n, batch_size, seed)``.

    Args:
        n: number of samples.
        batch_size: samples per batch.
        seed: any integer.
        epoch: its number, from 0.

    Raises:
        ValueError: at the first batch, if ``n`` or ``batch_size`` is below 1.
    """
    yield from BatchOrder(n, batch_size, seed).epoch(epoch)


def tensor_bytes(tensor: Tensor) -> bytes:
    """The values of a tensor, row-major, as raw bytes (works without numpy)."""
    t = tensor.detach().contiguous().cpu()
    return ctypes.string_at(t.data_ptr(), t.numel() * t.element_size()) if t.numel() else b""


def batch_hash(x: Tensor, y: Tensor, index: Tensor | None = None) -> str:
    """The first 16 hex digits of the SHA-256 of a batch: shapes, dtypes and values, and the indices where given.

    Two runs that are to differ in one thing only (twins) can prove with it that they saw the same batches.

    Args:
        x: inputs of the batch.
        y: its targets.
        index: which samples of the data set it holds; None leaves them out of the hash.
    """
    sha = hashlib.sha256()
    for t in (x, y) if index is None else (index, x, y):
        sha.update(f"{t.dtype}{tuple(t.shape)}".encode())
        sha.update(tensor_bytes(t))
    return sha.hexdigest()[:16]
