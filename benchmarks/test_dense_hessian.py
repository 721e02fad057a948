"""The dense Hessian, from model and batch to H [P, P] in a reused buffer, against other methods in the same run."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import problems
import pytest
import rivals
import torch
from problems import CASES, Problem

import chaos_ext as ce
from chaos_ext.base import memory

OURS, FLOOR = "chaos_ext, out=", "memset of H"
METHODS = (OURS, *rivals.RIVALS, FLOOR)


def ours(problem: Problem) -> Callable[[], torch.Tensor]:
    model, loss_fn, x, y = problem.build()
    out = torch.empty(problem.P, problem.P)
    return lambda: ce.hessian(model, loss_fn, x, y, out=out)


def floor(problem: Problem) -> Callable[[], object]:
    """libc's memset on one thread: the cost of writing P * P numbers, with no arithmetic at all."""
    H = torch.ones(problem.P, problem.P)
    return lambda: ctypes.memset(H.data_ptr(), 0, H.nbytes)


def obstacle(method: str, problem: Problem) -> str | None:
    """Why a method cannot be run here, or None."""
    need = rivals.COPIES.get(method, 3) * 4 * problem.P**2
    available = memory.available_bytes(torch.device("cpu"))
    if need > available:
        return f"may need {need / 1e9:.0f} GB, {available / 1e9:.0f} GB are available"
    return rivals.missing(method)


def prepared(method: str, problem: Problem) -> Callable[[], object]:
    """What is timed; a method that gives an H has shown here that it is the right one."""
    if method == FLOOR:
        return floor(problem)
    run = ours(problem) if method == OURS else rivals.RIVALS[method](*problem.build())
    problems.check(run(), problem)
    return run


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", [OURS, *list(rivals.RIVALS)[:1]])
@pytest.mark.parametrize("case", CASES)
def test_wall_time_by_threads(case: str, method: str, threads: int, benchmark, measure) -> None:
    """On a machine with nothing else to do: two threads cannot be faster than one where a core is taken."""
    problem, benchmark.group = CASES[case], f"({case}) {CASES[case].title}, wall seconds"
    row = {"case": case, "problem": problem.title, "P": problem.P, "method": method, "dtype": "float32"}
    measure(prepared(method, problem), clock="wall", threads=threads, seconds=5.0, **row)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_one_thread(case: str, method: str, benchmark, record, measure) -> None:
    problem, benchmark.group = CASES[case], f"({case}) {CASES[case].title}, 1 thread, CPU seconds"
    row = {"case": case, "problem": problem.title, "P": problem.P, "method": method, "dtype": "float32"}
    if reason := obstacle(method, problem):
        record(**row, threads=1, clock="CPU", skipped=reason)
        pytest.skip(reason)
    measure(prepared(method, problem), **row)
