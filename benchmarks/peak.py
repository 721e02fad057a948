"""Prints the peak resident memory in bytes of a fresh process that prepares a dense Hessian and, if asked to, computes
it: ``python benchmarks/peak.py CASE METHOD with|without``."""

from __future__ import annotations

import report  # noqa: F401  isort: skip  (before torch: it sets OMP_WAIT_POLICY)

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from networks import DENSE, Network, reference_products
from problems import CASES, Problem, check
from rivals import RIVALS

import chaos_ext as ce


def main(case: str, method: str, which: str) -> None:
    torch.set_num_threads(1)
    warm_up(method)
    problem = {**CASES, **DENSE}[case]
    run = prepare(problem, method)
    H = run() if which == "with" else None
    peak = peak_bytes()
    if H is not None:
        validate(H, problem)
    print(peak)


def peak_bytes() -> int:
    """The kernel's high-water mark of this process. (ru_maxrss starts at the size of the process that spawned it.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def validate(H: torch.Tensor, problem: Problem | Network) -> None:
    """All rows of a small problem, some products of a network."""
    if isinstance(problem, Problem):
        return check(H, problem)
    v = torch.randn(len(H), 3, generator=torch.Generator().manual_seed(1))
    expected = reference_products(problem, v)
    error = float(((H @ v).double() - expected).norm() / expected.norm())
    if not error <= 1e-4:
        raise AssertionError(f"H v differs from float64 double backward by {error:.2g}")
    return None


def warm_up(method: str) -> None:
    """Loads every library that the measured call will use, on tiny problems."""
    prepare(Problem((4, 3, 2), 2), method)()
    prepare(Network("tiny", tiny_conv_net, 2), method)()


def tiny_conv_net() -> torch.nn.Module:
    layers = [torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(4), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(32, 10))


def prepare(problem: Problem | Network, method: str) -> Callable[[], torch.Tensor]:
    if method == "chaos_ext":
        op = ce.HessianOperator(*problem.build())
        return op.dense
    return RIVALS[method](*problem.build())


if __name__ == "__main__":
    main(*sys.argv[1:])
