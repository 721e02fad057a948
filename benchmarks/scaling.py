"""``python benchmarks/scaling.py``: cost as the work grows, P from 1e3 to 1e5 and N from 1 to 512, one thread, float32.

Writes results/scaling.json and results/scaling.md: the dense Hessian, the spectrum by the compressed and by the dense
route, a Hessian-vector product and a CGD step, and where compression stops paying. What would not fit or would take too
long is left out with the reason.
"""

from __future__ import annotations

import report  # isort: skip  (before torch: it sets OMP_WAIT_POLICY)

import argparse
from collections.abc import Callable
from typing import Any

import torch
from problems import Problem
from table import markdown, provenance, seconds

import chaos_ext as ce
from chaos_ext.base import memory
from chaos_ext.curvature.basis import Basis

SIZES = [(64, 14, 10), (256, 20, 10), (784, 20, 10), (784, 40, 10), (784, 126, 10)]
BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
# Networks and ratios n / P at which both routes are measured.
NEAR_SWITCH = [(64, 14, 10), (32, 32, 10), (32, 24, 24, 10), (128, 20, 10)]
RATIOS = [0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0]
LONGEST_EIGH = 3000  # rows
LR = 1e-3

Row = dict[str, Any]


def measured(run: Callable[[], object], budget: float = 0.5) -> Row:
    best, rounds = report.best_of(run, seconds=budget, most=50)
    return {"seconds": round(best, 7), "rounds": rounds}


def too_long(rows: int) -> Row | None:
    return {"skipped": f"eigh of {rows} rows"} if rows > LONGEST_EIGH else None


def force(op: ce.HessianOperator, route: str) -> ce.HessianOperator:
    """Makes ``ce.spectrum(op)`` take the compressed or the dense route, whatever it would choose by itself."""
    op.compressed_bound = lambda dtype: 0 if route == "compressed" else None  # type: ignore[method-assign]
    return op


def bound(problem: Problem) -> int:
    """n, the size of the compressed matrix, from shapes."""
    op = ce.HessianOperator(*problem.build())
    n = op.compressed_bound(op.dtype)
    assert n is not None
    return n


def chosen(problem: Problem) -> str:
    """The route that ``ce.spectrum`` takes by itself."""
    return "compressed" if isinstance(ce.spectrum(ce.HessianOperator(*problem.build())).basis, Basis) else "dense"


def dense(problem: Problem) -> Row:
    need, free = 4 * problem.P**2, memory.available_bytes(torch.device("cpu"))
    if need > 0.8 * free:
        return {"skipped": f"H takes {need / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"}
    out, args = torch.empty(problem.P, problem.P), problem.build()
    return measured(lambda: ce.hessian(*args, out=out))


def hvp(problem: Problem) -> Row:
    op, v = ce.HessianOperator(*problem.build()), torch.randn(problem.P)
    return measured(lambda: op @ v)


def spectrum(problem: Problem, route: str, rows: int) -> Row:
    """From model and batch to all nonzero eigenpairs."""
    args = problem.build()
    return too_long(rows) or measured(lambda: ce.spectrum(force(ce.HessianOperator(*args), route)))


def cgd_step(problem: Problem, route: str | None = None, budget: float = 0.5) -> Row:
    """The step by a forced route, or by the one that ``ce.spectrum`` chooses."""
    model, loss_fn, x, y = problem.build()
    opt = ce.CGD(model.parameters(), lr=LR)

    def step() -> None:
        op = ce.HessianOperator(model, loss_fn, x, y)
        opt.step(force(op, route) if route else op)

    return measured(step, budget)


def grid_row(problem: Problem) -> Row:
    n, P = bound(problem), problem.P
    return {
        "problem": "-".join(map(str, problem.sizes)),
        "P": P,
        "N": problem.batch,
        "n": n,
        "dense": dense(problem),
        "hvp": hvp(problem),
        "compressed_spectrum": spectrum(problem, "compressed", n),
        "dense_spectrum": spectrum(problem, "dense", P),
        "cgd_step": too_long(min(n, P)) or cgd_step(problem),
        "chosen": "-" if too_long(min(n, P)) else chosen(problem),
    }


def switch_problems() -> list[Problem]:
    """For each network the batches whose n / P comes closest to the ratios."""
    found: dict[Problem, None] = {}
    for sizes in NEAR_SWITCH:
        ratio = {p: bound(p) / p.P for p in (Problem(sizes, n) for n in range(1, max(sizes) + 2))}
        for r in RATIOS:
            found[min(ratio, key=lambda p, r=r, ratio=ratio: (round(abs(ratio[p] - r), 4), p.batch))] = None
    return list(found)


def switch_row(problem: Problem) -> Row:
    routes = {r: cgd_step(problem, r, budget=1.0) for r in ("compressed", "dense")}
    n = bound(problem)
    return {
        "problem": "-".join(map(str, problem.sizes)),
        "P": problem.P,
        "N": problem.batch,
        "n": n,
        "ratio": round(n / problem.P, 3),
        **routes,
        "chosen": chosen(problem),
        "faster": min(routes, key=lambda r: routes[r]["seconds"]),
    }


def cell(row: Row) -> str:
    return seconds(row["seconds"]) if "seconds" in row else f"({row['skipped']})"


def grid_markdown(rows: list[Row]) -> str:
    fixed, timed = ("problem", "P", "N", "n"), ("dense", "hvp", "compressed_spectrum", "dense_spectrum", "cgd_step")
    head = ["network", "P", "N", "n", "dense H", "H v", "spectrum, compressed", "spectrum, dense", "CGD step", "chosen"]
    return markdown(head, [[*(str(r[k]) for k in fixed), *(cell(r[k]) for k in timed), r["chosen"]] for r in rows])


def switch_markdown(rows: list[Row]) -> str:
    head = ["network", "P", "N", "n / P", "step, compressed", "step, dense", "compressed / dense", "chosen"]
    lines = []
    for r in rows:
        quotient = r["compressed"]["seconds"] / r["dense"]["seconds"]
        fixed = [r["problem"], str(r["P"]), str(r["N"]), f"{r['ratio']:.2f}"]
        lines.append([*fixed, cell(r["compressed"]), cell(r["dense"]), f"{quotient:.2f}", r["chosen"]])
    return markdown(head, lines)


def verdict(rows: list[Row]) -> str:
    wrong = [r for r in rows if r["chosen"] != r["faster"]]
    if not wrong:
        return f"In all {len(rows)} cases it is the faster one."
    worst = max(r[r["chosen"]]["seconds"] / r[r["faster"]]["seconds"] for r in wrong)
    return f"In {len(wrong)} of {len(rows)} cases the other one was faster, by at most {worst:.2f}x."


def page(grid: list[Row], switch: list[Row], started: dict[str, Any]) -> str:
    parts = [
        "# Cost as the work grows",
        "CPU seconds of one thread, float32, minimum of several runs, made by `python benchmarks/scaling.py`. n is the "
        "size of the compressed matrix S (an upper bound from shapes); in brackets why a cell is empty.",
        grid_markdown(grid),
        "## Where compression stops paying",
        "A CGD step by either route as n approaches P, and the route that `spectrum` chooses by itself. "
        + verdict(switch),
        switch_markdown(switch),
        provenance(started),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest network and few batches; writes nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    started, grid, switch = report.environment(), [], []
    for sizes in SIZES[: 1 if quick else None]:
        for n in BATCHES[: 4 if quick else None]:
            grid.append(grid_row(Problem(sizes, n)))
            print(grid_markdown(grid[-1:]).splitlines()[-1], flush=True)
    for problem in switch_problems()[: 4 if quick else None]:
        switch.append(switch_row(problem))
        print(switch_markdown(switch[-1:]).splitlines()[-1], flush=True)
    if not quick:
        rows = [{"table": "grid", **r} for r in grid] + [{"table": "switch", **r} for r in switch]
        print("wrote", report.write("scaling", rows, started))
        (report.RESULTS / "scaling.md").write_text(page(grid, switch, started))


if __name__ == "__main__":
    main()
