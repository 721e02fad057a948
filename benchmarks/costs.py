"""``python benchmarks/costs.py``: what several processes send each other, counted, beside docs/scale.md's formulas.

Messages are collectives, one after the other; bytes are those that come to a rank from others, whatever the way that a
backend takes. Both agree with the formulas exactly (python_tests/test_distributed_costs.py); times are printed only.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import chaos_ext as ce
from chaos_ext.distributed.line import Line

MEETING = 13 * 8  # bytes of a rank: that it is at the same call, and what
SHAPES = 10 * 8  # of a piece of an exchange
SMALL, PART = 1 << 18, 1 << 23  # bytes of all ranks up to which a sum is one message, and numbers of a part of others
PANEL = 64  # columns
LOSS = nn.CrossEntropyLoss()


class Cost(NamedTuple):
    """Of one rank: collectives, bytes that come to it, and of these objects that were pickled."""

    messages: int = 0
    bytes: int = 0
    pickled: int = 0

    def __add__(self, other: tuple[Any, ...]) -> Cost:
        return Cost(*map(sum, zip(self, other, strict=True)))


def total(*costs: Cost) -> Cost:
    found = Cost()
    for c in costs:
        found += c
    return found


@contextmanager
def counting() -> Iterator[list[Cost]]:
    """What the collectives inside cost; the list has one entry, of now."""
    kept = Line.gather, Line.swap, Line.send_to_all
    found = [Cost()]

    def gather(line: Line, group: Any, t: Tensor, what: str, timeout: float) -> Tensor:
        n = (line.size - 1) * t.nbytes
        if t.numel():
            found[0] += Cost(1, 0, n) if t.dtype == torch.uint8 else Cost(1, n)
        return kept[0](line, group, t, what, timeout)

    def swap(line: Line, group: Any, t: Tensor, sent: Any, got: Any, what: str, timeout: float) -> Tensor:
        own = len(t) // line.size if got is None else got[line.rank]
        out = kept[1](line, group, t, sent, got, what, timeout)
        found[0] += Cost(1, (len(out) - own) * t.element_size())
        return out

    def send_to_all(line: Line, group: Any, t: Tensor, source: int, what: str, timeout: float) -> None:
        if t.numel():
            found[0] += Cost(1, 0 if line.rank == source else t.nbytes)
        kept[2](line, group, t, source, what, timeout)

    Line.gather, Line.swap, Line.send_to_all = gather, swap, send_to_all  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        Line.gather, Line.swap, Line.send_to_all = kept  # type: ignore[method-assign]


def meeting(n: int) -> Cost:
    return Cost(1, (n - 1) * MEETING)


def gathering(n: int, size: int) -> Cost:
    """Of so many bytes of each of n ranks."""
    return meeting(n) + Cost(1, (n - 1) * size)


def summing(n: int, numbers: int, width: int) -> Cost:
    """Of numbers of so many bytes."""
    if numbers * width * n <= SMALL:
        return gathering(n, numbers * width)
    parts = [min(PART, numbers - i) for i in range(0, numbers, PART)]
    return total(meeting(n), *[Cost(2, 2 * (n - 1) * -(-part // n) * width) for part in parts])


def sending(n: int, size: int, mine: bool) -> Cost:
    """Of so many bytes, which one rank has."""
    return meeting(n) + Cost(1, 0 if mine else size)


def exchanging(n: int, numbers: int, width: int) -> Cost:
    """Of which so many numbers come to this rank from others."""
    return meeting(n) + Cost(2, (n - 1) * SHAPES + numbers * width)


def product(n: int, P: int, k: int) -> Cost:
    """H V, V [P, k], data parallel."""
    return summing(n, P * k, 8)


def cgd_step(n: int, P: int, parameters: int, width: int) -> Cost:
    """The making of a HessianOperator, and a step with its complete spectrum."""
    made = total(meeting(n), meeting(n), Cost(1), summing(n, P + 1 + parameters, 8))
    return made + summing(n, P * P, width)


def tangent_step(n: int) -> Cost:
    """An update of Y [S, k] whose columns are spread, without QR."""
    return gathering(n, 5 * 8) + gathering(n, 3 * 8)


def by_rows(n: int, r: int, S: int, k: int, width: int) -> Cost:
    """CholeskyQR2 of rows: where k n <= S / 2."""
    own, columns = S * (r + 1) // n - S * r // n, len(columns_of(n, r, k))
    return total(
        exchanging(n, own * (k - columns), width),
        summing(n, k, width),
        *[summing(n, k * k, width), sending(n, k * k * width, r == 0)] * 2,
        exchanging(n, (S - own) * columns, width),
    )


def by_panels(n: int, r: int, S: int, k: int, width: int) -> Cost:
    """Householder's reflections, panel by panel, and back."""
    sent = [2 * [sending(n, (S - a + b - a) * (b - a) * width, owner == r)] for a, b, owner in panels(n, k)]
    longest = max(len(columns_of(n, q, k)) for q in range(n))
    return total(*[c for pair in sent for c in pair], gathering(n, 8 * longest))


def panels(n: int, k: int) -> list[tuple[int, int, int]]:
    """First column, the one behind the last, and owner."""
    full = k // (PANEL * n) * n
    left = k - full * PANEL
    widths = [PANEL] * full + [left // n + (r < left % n) for r in range(n)]
    ends = [sum(widths[:i]) for i in range(len(widths) + 1)]
    return [(a, b, i % n) for i, (a, b) in enumerate(itertools.pairwise(ends)) if b > a]


def columns_of(n: int, r: int, k: int) -> list[int]:
    return [c for a, b, owner in panels(n, k) if owner == r for c in range(a, b)]


def ensemble_step(n: int, B: int, width: int) -> Cost:
    """A step of B members, whose losses have so many bytes each."""
    return meeting(n) + gathering(n, -(-B // n) * width)


def distances(n: int, B: int, P: int, width: int, mine: bool) -> Cost:
    """To a member that this rank has or has not."""
    return sending(n, P * width, mine) + gathering(n, -(-B // n) * 8)


def network(sizes: tuple[int, ...]) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


class Case:
    """One network on one group: what each kind of step costs, and how long it takes.

    Args:
        sizes: of the layers.
        k: columns of a product.
        columns: of deviations by rows; those by panels are all S.
        members: of an ensemble.
    """

    def __init__(self, sizes: tuple[int, ...], k: int, columns: int, members: int) -> None:
        self.model, self.k, self.columns, self.members = network(sizes), k, columns, members
        self.n, self.rank, self.group = dist.get_world_size(), dist.get_rank(), dist.group.WORLD
        self.P = sum(p.numel() for p in self.model.parameters())
        g = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(16, sizes[0], generator=g), torch.randint(sizes[-1], (16,), generator=g)

    def rows(self) -> list[tuple[str, Cost, Cost, float]]:
        """Name, counted, predicted, seconds."""
        return [*self._data_parallel(), *self._tangents(None), *self._tangents(self.columns), *self._ensemble()]

    def _operator(self, group: Any) -> ce.HessianOperator:
        return ce.HessianOperator(self.model, LOSS, self.x, self.y, group=group)

    def _data_parallel(self) -> Iterator[tuple[str, Cost, Cost, float]]:
        op, V = self._operator(self.group), torch.randn(self.P, self.k, generator=torch.Generator().manual_seed(2))
        yield self._row("product H V", lambda: op @ V, product(self.n, self.P, self.k))
        opt = ce.CGD(self.model.parameters(), lr=0.01, prune="negative")
        predicted = cgd_step(self.n, self.P, len(list(self.model.parameters())), 4)
        yield self._row("CGD step, H dense", lambda: opt.step(self._operator(self.group)), predicted)

    def _tangents(self, k: int | None) -> Iterator[tuple[str, Cost, Cost, float]]:
        opt = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        an = ce.LyapunovAnalyzer(self.model, opt, k=k, qr_every=2, group=self.group)
        how, name = (by_rows, "by rows") if k else (by_panels, "by panels")
        step, qr = tangent_step(self.n), how(self.n, self.rank, self.P, k or self.P, 4)
        for _ in range(2):  # each of the first two updates is followed by a QR
            an.update(self._operator(None))
            opt.step()
        for what, predicted in (("tangent update", step), (f"tangent update, QR {name}", step + qr)):
            op = self._operator(None)
            yield self._row(f"{what}, k = {k or self.P}", lambda op=op: an.update(op), predicted)
            opt.step()

    def _ensemble(self) -> Iterator[tuple[str, Cost, Cost, float]]:
        opt = torch.optim.SGD(self.model.parameters(), lr=0.01)
        deltas = 0.1 * torch.randn(self.P, self.members - 1, generator=torch.Generator().manual_seed(3))
        ens = ce.Ensemble.around(self.model, LOSS, opt, deltas, group=self.group)
        predicted = ensemble_step(self.n, self.members, 4)
        yield self._row(f"ensemble step, B = {self.members}", lambda: ens.step(self.x, self.y), predicted)
        predicted = distances(self.n, self.members, self.P, 4, self.rank == 0)
        yield self._row("its distances", ens.distances, predicted)

    def _row(self, name: str, run: Callable[[], object], predicted: Cost) -> tuple[str, Cost, Cost, float]:
        dist.barrier()
        began = time.perf_counter()
        with counting() as found:
            run()
        return name, found[0], predicted, time.perf_counter() - began


def table(rows: list[tuple[str, Cost, Cost, float]], n: int) -> str:
    """To be pasted into docs/scale.md."""
    lines = [
        f"| {n} | {name} | {c.messages} | {c.bytes:,} | {'yes' if c[:2] == p[:2] else 'NO'} | {s:.2g} |"
        for name, c, p, s in rows
    ]
    head = "| processes | what | messages | bytes | as predicted | seconds |\n|---|---|---|---|---|---|"
    return "\n".join([head, *lines] if n == 1 else lines)


def process(rank: int, size: int, folder: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    case = Case(tuple(args.sizes), args.k, args.columns, args.members)
    case.rows()  # once, to be warm
    best = min([case.rows() for _ in range(args.repeat)], key=lambda rows: math.fsum(s for *_, s in rows))
    if rank == 0:
        print(table(best, size), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--sizes", type=int, nargs="+", default=[40, 24, 16, 10], help="of the layers")
    parser.add_argument("--k", type=int, default=16, help="columns of a product")
    parser.add_argument("--columns", type=int, default=32, help="deviations where they are few")
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    for n in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(process, (n, folder, args), nprocs=n)


if __name__ == "__main__":
    main()
