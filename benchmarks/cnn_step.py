"""Prints the wall times of exact CGD steps of the paper's CNN, in a process as users start it: torch's threads wait as
their runtime has them wait by default. ``python benchmarks/cnn_step.py float32|float64 THREADS``."""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
from networks import DENSE

import chaos_ext as ce

ROUNDS = 40


def main(dtype: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    model, loss_fn, x, y = DENSE["c"].build(getattr(torch, dtype))
    opt = ce.CGD(model.parameters(), lr=1e-3, prune="negative")
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        opt.step(ce.HessianOperator(model, loss_fn, x, y))
        times.append(time.perf_counter() - start)
    times = times[3:]
    print(json.dumps({"seconds": min(times), "median": statistics.median(times), "rounds": len(times)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
