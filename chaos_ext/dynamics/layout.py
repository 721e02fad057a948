"""Where each parameter lies in a deviation of the optimizer's whole state [S, k]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..base.parameters import ParameterSpace


@dataclass(frozen=True)
class Layout:
    """Rows of theta in its own order, then buffer 0 of the parameters that have one, then buffer 1.

    Attributes:
        parameters: ids of the parameters, in theta's order.
        theta: rows of each parameter.
        buffers: rows of each of its buffers.
        size: S.
    """

    parameters: tuple[int, ...]
    theta: tuple[slice, ...]
    buffers: tuple[tuple[slice, ...], ...]
    size: int

    @classmethod
    def of(cls, space: ParameterSpace, counts: Mapping[int, int]) -> Layout:
        """From the number of buffers of each parameter, by id.

        Raises:
            ValueError: a parameter without a count.
        """
        ids = tuple(map(id, space.params))
        if not counts.keys() >= set(ids):
            raise ValueError("opt: a parameter joined the optimizer after the TangentMap was made; make a new one")
        rows: list[list[slice]] = [[] for _ in ids]
        start = space.size
        for j in range(max(counts[i] for i in ids)):
            for own, i, size in zip(rows, ids, space.sizes, strict=True):
                if counts[i] > j:
                    own.append(slice(start, start + size))
                    start += size
        theta = tuple(space.slice(i) for i in range(len(ids)))
        return cls(ids, theta, tuple(map(tuple, rows)), start)
