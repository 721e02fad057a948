"""``python benchmarks/grid.py``: products H V of MLPs of every width, batch and number of columns, and of networks.

Writes results/grid-DTYPE-THREADS.json and .md: our time, that of the best way that torch has, their ratio, and for MLPs
the share of the rate of a large matrix product that either reaches; with the operator at hand and made anew (torch's
ways start from the batch each time). A way whose products differ from ours is reported and not timed. Compiled ways,
whose compilation is reported beside and not counted, are measured for some numbers of columns. ``--quick`` takes a few
cells; ``--threads`` and ``--dtype`` name other results; times of several threads are wall time.
"""

from __future__ import annotations

import report  # isort: skip  (before torch: it sets OMP_WAIT_POLICY)

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from networks import BLOCK, DENSE, VISION
from products import COMPILED, EAGER, Run, compiled
from table import markdown, provenance, seconds
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import chaos_ext as ce

SIZES = [(256, 20, 10), (256, 100, 10), (256, 100, 100, 10), (784, 512, 512, 10)]
BATCHES, COLUMNS = [8, 64, 512], [1, 3, 4, 8, 15, 32, 128]
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda _: nn.Identity(),
    "LayerNorm": nn.LayerNorm,
    # Without running statistics: torch's ways cannot differentiate a forward that updates them.
    "BatchNorm": lambda n: nn.BatchNorm1d(n, track_running_stats=False),
}
NETWORKS = [DENSE["c"], DENSE["d"], BLOCK["e"], *VISION]
NETWORK_COLUMNS = [1, 4, 8, 15, 16]
WHERE_COMPILED = [(n, k) for n in (8, 64) for k in (1, 8)]  # batches and columns
AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-9}

Row = dict[str, Any]
Problem = tuple[nn.Module, nn.Module, Tensor, Tensor]


def mlp(sizes: tuple[int, ...], norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers.append(nn.Linear(before, after))
        if after is not sizes[-1]:
            layers += [] if norm == "none" else [NORMS[norm](after)]
            layers.append(nn.Tanh())
    return nn.Sequential(*layers)


def mlp_flops(sizes: tuple[int, ...], batch: int, k: int) -> int:
    """Of the least that k products take: two matrix products a column in the first layer, six in each other one."""
    weights = [m * n for m, n in itertools.pairwise(sizes)]
    return 2 * batch * k * (2 * weights[0] + 6 * sum(weights[1:]))


class Measure:
    """Times on one thread as CPU seconds, else as wall time."""

    def __init__(self, dtype: torch.dtype, threads: int) -> None:
        self.dtype, self._timer = dtype, time.process_time if threads == 1 else time.perf_counter
        a = torch.randn(1024, 1024, dtype=dtype)
        self.gemm_rate = 2 * 1024**3 / self(lambda: a @ a)

    def __call__(self, run: Callable[[], object]) -> float:
        return report.best_of(run, seconds=0.3, most=50, timer=self._timer)[0]


def mlp_cells(quick: bool) -> Iterator[tuple[tuple[int, ...], str, int, int]]:
    every = itertools.product(SIZES, NORMS, BATCHES, COLUMNS)
    return (c for i, c in enumerate(every) if not quick or (i % 29 == 0 and c[2] < 512))


def mlp_row(sizes: tuple[int, ...], norm: str, batch: int, k: int, measure: Measure, compile: bool) -> Row:
    torch.manual_seed(0)
    model = mlp(sizes, norm).to(measure.dtype)
    problem = model, nn.CrossEntropyLoss(), torch.randn(batch, sizes[0]).to(measure.dtype), torch.randint(10, (batch,))
    row = cell(problem, k, measure, compile)
    work = mlp_flops(sizes, batch, k) / measure.gemm_rate
    shares = {"share": round(work / row["ours"], 3), "share, best": round(work / row[row["best"]], 3)}
    return {"net": "-".join(map(str, sizes)), "norm": norm, "N": batch, "k": k, **row, **shares}


def cell(problem: Problem, k: int, measure: Measure, compile: bool) -> Row:
    """Our time and that of every way that agrees with ours; what does not, or cannot be run, is named."""
    op = ce.HessianOperator(*problem)
    V = torch.randn(op.shape[0], k, dtype=measure.dtype)
    row, ours, wrong = Row(), op @ V, list[str]()
    for name, way in EAGER.items():
        row[name] = _timed(name, lambda way=way: way(*problem, V), ours, measure, wrong)
    for name, way in COMPILED.items() if compile else ():

        def make(way=way, name=name) -> Run:
            run, row[f"{name}: compilation"] = compiled(way, *problem, V)
            return run

        row[name] = _timed(name, make, ours, measure, wrong)
    row["ours"] = round(measure(lambda: op @ V), 7)
    row["ours, new operator"] = round(measure(lambda: ce.HessianOperator(*problem) @ V), 7)
    times = [(row[n], n) for n in (*EAGER, *COMPILED) if row.get(n)]
    row["best"] = min(times)[1] if times else None
    for suffix in ("", ", new operator"):
        row[f"ratio{suffix}"] = round(min(times)[0] / row[f"ours{suffix}"], 3) if times else None
    return row | ({"off": "; ".join(wrong)} if wrong else {})


def _timed(name: str, make: Callable[[], Run], ours: Tensor, measure: Measure, wrong: list[str]) -> float | None:
    try:
        run = make()
        off = float((run() - ours).norm() / ours.norm())
    except Exception as e:  # torch cannot do it: that is a result
        wrong.append(f"{name}: {type(e).__name__}")
        return None
    if not off < AGREEMENT[measure.dtype]:
        wrong.append(f"{name}: differs by {off:.1g}")
        return None
    return round(measure(run), 7)


def table(rows: list[Row]) -> str:
    head = ["net", "norm", "N", "k", "ours", "best of torch", "ratio", "with a new operator", "GEMM rate"]
    lines = [
        [
            *(str(r[c]) for c in ("net", "norm", "N", "k")),
            seconds(r["ours"]),
            f"{seconds(r[r['best']])} ({r['best']})" if r["best"] else r["off"],
            *("-" if r[c] is None else f"{r[c]:.2f}" for c in ("ratio", "ratio, new operator")),
            f"{100 * r['share']:.0f} % ({100 * r['share, best']:.0f} %)" if "share" in r else "",
        ]
        for r in rows
    ]
    below = [sum((r[c] or 2) < 1 for r in rows) for c in ("ratio", "ratio, new operator")]
    text = f"{len(rows)} cells; torch is faster in {below[0]}, and in {below[1]} where our operator is made anew."
    return f"{text}\n\n{markdown(head, lines)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--eager", action="store_true", help="without compiled ways")
    parser.add_argument("--networks", action="store_true", help="without MLPs; writes other results")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started, measure = report.environment(), Measure(getattr(torch, args.dtype), args.threads)
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        print(row, flush=True)

    with sdpa_kernel(SDPBackend.MATH):  # of the fused kernels torch has no second derivative
        for c in () if args.networks else mlp_cells(args.quick):
            add(mlp_row(*c, measure, compile=not args.eager and c[2:] in WHERE_COMPILED))
        for net, k in itertools.product(NETWORKS[::4] if args.quick else NETWORKS, NETWORK_COLUMNS):
            small = net not in VISION  # those take minutes to compile
            own = cell(
                net.build(measure.dtype), k, measure, small and not args.eager and (net.batch, k) in WHERE_COMPILED
            )
            add({"net": net.name, "norm": "", "N": net.batch, "k": k, **own})
    name = f"grid-{args.dtype}-{args.threads}{'-quick' if args.quick else ''}{'-networks' if args.networks else ''}"
    path = report.write(name, rows, started)
    clock = "CPU seconds" if args.threads == 1 else "wall time"
    title = f"# Products H V, {args.dtype}, {args.threads} thread(s)\n\n{clock}; {provenance(started)}\n\n"
    path.with_suffix(".md").write_text(title + table(rows))


if __name__ == "__main__":
    main()
