"""Prints the peak resident memory in bytes of a fresh process that prepares a dense Hessian and, if asked to, computes
it: ``python benchmarks/peak.py CASE METHOD with|without``."""

from __future__ import annotations

import report  # noqa: F401  isort: skip  (before torch: it sets OMP_WAIT_POLICY)

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from problems import CASES, Problem, check
from rivals import RIVALS

import chaos_ext as ce


def main(case: str, method: str, which: str) -> None:
    torch.set_num_threads(1)
    warm_up(method)
    problem = CASES[case]
    run = prepare(problem, method)
    H = run() if which == "with" else None
    peak = peak_bytes()
    if H is not None:
        check(H, problem)
    print(peak)


def peak_bytes() -> int:
    """The kernel's high-water mark of this process. (ru_maxrss starts at the size of the process that spawned it.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def warm_up(method: str) -> None:
    """Loads every library that the measured call will use, on a tiny problem."""
    prepare(Problem((4, 3, 2), 2), method)()


def prepare(problem: Problem, method: str) -> Callable[[], torch.Tensor]:
    if method == "chaos_ext":
        op = ce.HessianOperator(*problem.build())
        return op.dense
    return RIVALS[method](*problem.build())


if __name__ == "__main__":
    main(*sys.argv[1:])
