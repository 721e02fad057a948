"""``pytest benchmarks/``: measures, validates what it measures, and writes results/*.json.

A run of some tests only (``-k``, ``-m``, ``file::test``) or one that fails leaves the results as they are.
"""

from __future__ import annotations

import report  # isort: skip  (sets OMP_WAIT_POLICY before torch is imported)

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

Rows = dict[str, list[dict[str, Any]]]
_ROWS = pytest.StashKey[Rows]()
_STARTED = pytest.StashKey[dict[str, Any]]()
CLOCKS = {"CPU": time.process_time, "wall": time.perf_counter}


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Overrides the --benchmark-disable that the project's pytest options set for its tests."""
    config.option.benchmark_enable = True
    config.option.benchmark_columns = ["min", "median", "max", "rounds"]
    config.addinivalue_line("markers", "slow: takes a minute or so; deselect with -m 'not slow'")
    config.stash[_ROWS], config.stash[_STARTED] = {}, report.environment()
    torch.set_num_threads(1)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    partial = config.option.keyword or config.option.markexpr or any("::" in a for a in config.args)
    if exitstatus or partial:
        return
    for name, rows in config.stash[_ROWS].items():
        print(f"\nwrote {report.write(name, rows, config.stash[_STARTED])}", file=sys.stderr)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds a row to this module's results."""
    name = Path(request.node.path).stem.removeprefix("test_")
    rows = request.config.stash[_ROWS].setdefault(name, [])
    return lambda **row: rows.append(row)


@pytest.fixture
def measure(benchmark: Any, record: Callable[..., None]) -> Callable[..., None]:
    """``measure(run, clock, threads, **row)``: the minimum over many runs, recorded with the row's other entries.

    Every method gets the same time, and at least five runs; the first one does not count. ``fresh`` makes the argument
    of each run, outside the clock.
    """

    def measured(
        run: Callable[..., object],
        *,
        clock: str = "CPU",
        threads: int = 1,
        seconds: float = 2.0,
        rounds: int | None = None,
        fresh: Callable[[], object] | None = None,
        **row: object,
    ) -> None:
        torch.set_num_threads(threads)
        benchmark._timer = CLOCKS[clock]
        benchmark.extra_info.update(clock=clock, threads=threads, **row)
        setup = None if fresh is None else lambda: ((fresh(),), {})
        if rounds is None:
            start = CLOCKS[clock]()
            run(*setup()[0] if setup else ())
            rounds = max(5, min(400, int(seconds / max(CLOCKS[clock]() - start, 1e-6))))
        benchmark.pedantic(run, setup=setup, rounds=rounds, iterations=1)
        stats = benchmark.stats.stats
        times = {"seconds": round(stats.min, 7), "median": round(stats.median, 7), "rounds": rounds}
        record(**row, threads=threads, clock=clock, **times)

    return measured
