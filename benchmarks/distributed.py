"""``python benchmarks/distributed.py``: one process against several with one thread each, where nothing else runs.

The tangent update of all of Y [P, P] beside training (problem (a), float32), with its re-orthonormalisation at the
usual interval, and products with the Hessian of a data set. All processes are there all the time and take turns: rank 0
measures alone while the others wait, then all measure together. Minima over repetitions, wall seconds; CPU seconds
beside them. Writes results/distributed.json.
"""

from __future__ import annotations

import report  # isort: skip  (before torch: it sets OMP_WAIT_POLICY)

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from problems import CASES
from table import seconds

import chaos_ext as ce

PROBLEM, LR = CASES["a"], 1e-3
# A run is re-orthonormalised after these steps at first; later after at most k / 2 steps, if nothing stretches.
RENEWED = (1, 5, 21)
ROUNDS = 3  # of 5 steps, between the last two of these
BATCHES, SAMPLES, COLUMNS, PRODUCTS = 64, 256, 16, 5  # of the data set, and of what its Hessian is multiplied with
Row = dict[str, Any]
Times = tuple[float, float]  # wall and CPU seconds


def timed(run: Callable[[], object]) -> Times:
    began, used = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - began, time.process_time() - used


class Training:
    """Problem (a), with an analyzer in front of each step; ``times`` of each."""

    def __init__(self, group: Any, k: int | None) -> None:
        self.model, self.loss_fn, self.x, self.y = PROBLEM.build()
        self.opt = torch.optim.SGD(self.model.parameters(), LR)
        self.analyzer = ce.LyapunovAnalyzer(self.model, self.opt, k=k, group=group)
        self.times: list[Times] = []

    def _step(self) -> None:
        self.analyzer.update(ce.HessianOperator(self.model, self.loss_fn, self.x, self.y))
        self.opt.zero_grad()
        self.loss_fn(self.model(self.x), self.y).backward()
        self.opt.step()

    def run(self, steps: int) -> None:
        self.times += [timed(self._step) for _ in range(steps)]

    def found(self) -> Row:
        """Of a step, of a re-orthonormalisation, and of a step with its share of one at the usual interval."""
        calm = [t for i, t in enumerate(self.times, 1) if i not in RENEWED]
        row: Row = {"interval": max(16, self.analyzer.tangent.size // 2)}
        for i, clock in enumerate(("wall", "CPU")):
            step = min(t[i] for t in calm)
            qr = min(self.times[n - 1][i] for n in RENEWED) - step
            row |= {f"{clock}: step": step, f"{clock}: QR": qr, f"{clock}: both": step + qr / row["interval"]}
        return row


class Products:
    """H V of a data set, of which each rank of a group has its share of the batches."""

    def __init__(self, group: Any, rank: int, size: int) -> None:
        model, loss_fn, _, _ = PROBLEM.build()
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(BATCHES, SAMPLES, 256, generator=g), torch.randint(10, (BATCHES, SAMPLES), generator=g)
        own = [(x[i], y[i]) for i in range(BATCHES) if group is None or i % size == rank]
        self.operator = ce.DatasetHessian(model, loss_fn, own, group=group)
        self.V = torch.randn(PROBLEM.P, COLUMNS, generator=g)
        self.times: list[Times] = []

    def run(self, products: int) -> None:
        self.times += [timed(lambda: self.operator @ self.V) for _ in range(products)]

    def found(self) -> Row:
        return {f"{clock}: both": min(t[i] for t in self.times[1:]) for i, clock in enumerate(("wall", "CPU"))}


def in_turn(alone: Any, together: Any, amount: int) -> None:
    """The same by rank 0 alone, while the others wait, and by all."""
    dist.barrier()
    if alone is not None:
        alone.run(amount)
    dist.barrier()
    together.run(amount)


def process(rank: int, size: int, folder: str, k: int | None) -> None:
    """One of the processes; rank 0 writes what was found."""
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    group, first = ce.Ranks(timeout=3600.0), rank == 0
    trainings = Training(None, k) if first else None, Training(group, k)
    for amount in [RENEWED[1], *[5] * ROUNDS, RENEWED[2] - RENEWED[1] - 5 * ROUNDS]:
        in_turn(*trainings, amount)
    rows = [row("tangent update of Y [P, P], QR included", *trainings, size)]
    del trainings
    products = Products(None, 0, 1) if first else None, Products(group, rank, size)
    for _ in range(ROUNDS):
        in_turn(*products, PRODUCTS)
    rows.append(row("product of a DatasetHessian", *products, size))
    if first:
        Path(folder, "rows").write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


def row(what: str, alone: Any, together: Any, size: int) -> Row:
    """Seconds of both, those of the slowest rank, and their ratio."""
    own = together.found()
    all_: list[Any] = [None] * size
    dist.all_gather_object(all_, own)
    several = {name: max(of_one[name] for of_one in all_) for name in own}
    if alone is None:
        return {}
    one = alone.found()
    ratio = {clock: round(one[f"{clock}: both"] / several[f"{clock}: both"], 3) for clock in ("wall", "CPU")}
    return {"what": what, "problem": PROBLEM.title, "processes": size, "one": one, "several": several, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--k", type=int, default=None, help="columns; default: all")
    parser.add_argument("--no-file", action="store_true", help="print only")
    args = parser.parse_args()
    started = report.environment()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(process, (args.processes, folder, args.k), nprocs=args.processes)
        rows: list[Row] = json.loads(Path(folder, "rows").read_text())
    for r in rows:
        times = {n: {k: v if k == "interval" else seconds(v) for k, v in r[n].items()} for n in ("one", "several")}
        print(f"{r['what']}: {r['ratio']}\n  one: {times['one']}\n  {r['processes']}: {times['several']}")
    if not args.no_file:
        report.write("distributed", rows, started)


if __name__ == "__main__":
    main()
