"""``python benchmarks/lanczos.py``: 20 extreme eigenpairs of MLPs, ours against scipy's eigsh (ARPACK), one thread.

The same operator and tolerance for both, in turns; CPU seconds, minima, products with H. Writes results/lanczos.json
and results/lanczos.md. ``--quick`` leaves the largest network out.
"""

from __future__ import annotations

import report  # isort: skip  (before torch: it sets OMP_WAIT_POLICY)

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from problems import Problem
from scipy.sparse.linalg import LinearOperator, eigsh
from table import markdown, provenance, seconds
from torch import Tensor

import chaos_ext as ce
from chaos_ext.spectra.lanczos import lanczos

NETS = [Problem((256, 20, 10), 8), Problem((784, 100, 100, 10), 64), Problem((784, 200, 200, 10), 64)]
ENDS = {"both_ends": "BE", "largest": "LA"}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
K, TURNS = 20, 3

Row = dict[str, Any]


class Counted:
    def __init__(self, op: ce.HessianOperator) -> None:
        self.op, self.products = op, 0

    def __call__(self, X: Tensor) -> Tensor:
        self.products += X.shape[1] if X.dim() == 2 else 1
        return self.op @ X


def arpack(product: Counted, P: int, which: str, dtype: torch.dtype, turn: int) -> Tensor:
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    A = LinearOperator((P, P), matvec=lambda v: product(torch.from_numpy(v.reshape(-1).copy())).numpy(), dtype=kind)
    v0 = np.random.default_rng(turn).standard_normal(P).astype(kind)
    return torch.from_numpy(np.sort(eigsh(A, k=K, which=ENDS[which], tol=TOLERANCE[dtype], v0=v0)[0]))


def ours(product: Counted, P: int, which: str, dtype: torch.dtype, turn: int, confirm: bool = True) -> Tensor:
    device = torch.device("cpu")
    return lanczos(product, P, K, which, dtype=dtype, device=device, seed=turn, confirm=confirm)[0]


WAYS: dict[str, Callable[..., Tensor]] = {
    "eigsh": arpack,
    "ours, one eigenvector of each": lambda *args: ours(*args, confirm=False),
    "ours": ours,
}


def cell(problem: Problem, dtype: torch.dtype, which: str) -> Row:
    op = ce.HessianOperator(*problem.build(dtype))
    row: Row = {"net": problem.title, "dtype": str(dtype)[6:], "which": which}
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    products: dict[str, list[int]] = {name: [] for name in WAYS}
    for turn in range(TURNS):
        values = {}
        for name, way in WAYS.items():
            counted, began = Counted(op), time.process_time()
            values[name] = way(counted, op.shape[0], which, dtype, turn)
            times[name].append(time.process_time() - began)
            products[name].append(counted.products)
        off = max(float((v - values["ours"]).abs().max() / v.abs().max()) for v in values.values())
        assert off <= 10 * TOLERANCE[dtype], f"eigenvalues differ by {off:.2g}"
    for name in WAYS:
        row[name], row[f"{name}, products"] = round(min(times[name]), 5), min(products[name])
    return row


def table(rows: list[Row]) -> str:
    head = ["net", "dtype", "which", *WAYS, "eigsh / ours"]
    lines = [
        [
            *(str(r[c]) for c in ("net", "dtype", "which")),
            *(f"{seconds(r[name])}, {r[f'{name}, products']} products" for name in WAYS),
            f"{r['eigsh'] / r['ours']:.2f}",
        ]
        for r in rows
    ]
    return markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    started, rows = report.environment(), list[Row]()
    for problem in NETS[: 2 if args.quick else 3]:
        for dtype in TOLERANCE:
            for which in ENDS:
                rows.append(cell(problem, dtype, which))
                print(rows[-1], flush=True)
    path = report.write("lanczos", rows, started)
    path.with_suffix(".md").write_text(f"# {K} extreme eigenpairs\n\n{provenance(started)}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
