"""CGD with k dominant directions of a large network: what a refresh and a step cost, in plain training steps.

    python benchmarks/dominant.py [--sizes 100000,1000000] [--batch 128] [--k 10] [--every 5] [--threads 1] \\
        [--directions "data set"] [--dry]

For P parameters (an MLP 784-..-10) and batches of N, in CPU seconds, minima of several, all in one process:

- ``plain_ms``: one step of torch's own loop (zero_grad, forward, backward, SGD);
- for directions of one fixed batch, of a data set of ``--batches`` such batches, and of the mini-batch (a new one at
  every refresh): what a step takes that refreshes warm directions, what the steps in between take, and their mean over
  ``every`` steps, each over ``plain_ms``, with the Hessian-vector products and the residual of the refresh, for each
  tolerance; the first refresh, from nothing, apart.

Refreshes are warm: training goes on between them at ``--lr``. Targets, where a refresh is one block product of one
batch: at most 30 plain steps a refresh, at most 8 a step on average. With B batches the product takes B times as long.
"""

from __future__ import annotations

import report  # isort: skip  (before torch: it sets OMP_WAIT_POLICY)

import argparse
import json
import time
from typing import Any

import torch
from torch import nn

import chaos_ext as ce

LOSS = nn.CrossEntropyLoss()
WIDTHS = {100_000: (110, 100), 1_000_000: (900, 320)}
TOLERANCES = (1e-1, 1e-2)
KINDS = ("one batch", "data set", "mini-batch")


def network(size: int) -> nn.Sequential:
    """784-a-b-10 with about that many parameters."""
    torch.manual_seed(0)
    a, b = WIDTHS.get(size) or (int(size / 1100), 320)
    return nn.Sequential(nn.Linear(784, a), nn.Tanh(), nn.Linear(a, b), nn.Tanh(), nn.Linear(b, 10))


def data(count: int, n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of ten clusters: outliers of curvature as classes make them."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 784, generator=generator)
    made = []
    for _ in range(count):
        y = torch.randint(10, (n,), generator=generator)
        made.append((0.3 * centres[y] + torch.randn(n, 784, generator=generator), y))
    return made


def backward(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    model.zero_grad()
    LOSS(model(x), y).backward()


def plain_ms(size: int, batches: list[tuple[torch.Tensor, torch.Tensor]], lr: float) -> float:
    """The fastest of some steps of torch's own."""
    model = network(size)
    opt, fastest = torch.optim.SGD(model.parameters(), lr=lr), float("inf")
    for t in range(20):
        began = time.process_time()
        backward(model, *batches[t % len(batches)])
        opt.step()
        fastest = min(fastest, time.process_time() - began)
    return 1e3 * fastest


def followed(kind: str, tol: float, args: argparse.Namespace, size: int, plain: float) -> dict[str, float | str]:
    """Steps with directions of this kind: refreshed, and in between."""
    model, batches = network(size), data(args.batches, args.batch)
    opt = ce.CGD(model.parameters(), lr=args.lr, prune="dominant", k=args.k, refresh_every=args.every, refresh_tol=tol)
    refreshes, between, products, residuals = [], [], [], []
    for t in range(args.refreshes * args.every + 1):
        x, y = batches[t % len(batches)]

        def curvature(x=x, y=y):
            if kind != "mini-batch":
                return ce.DatasetHessian(model, LOSS, batches[:1] if kind == "one batch" else batches)
            return ce.HessianOperator(model, LOSS, x, y)

        began = time.process_time()
        backward(model, x, y)
        opt.step(curvature=curvature)
        took = 1e3 * (time.process_time() - began) / plain
        if t == 0:
            cold = took
        elif opt.last_step.age == 0:
            refreshes.append(took)
            products.append(opt.last_step.products)
            residuals.append(opt.last_step.residual)
        else:
            between.append(took)
    refresh, step = sorted(refreshes)[len(refreshes) // 2], min(between)
    return {
        "directions": kind,
        "tolerance": tol,
        "first_refresh": round(cold, 1),
        "refresh": round(refresh, 1),
        "fastest_refresh": round(min(refreshes), 1),
        "between": round(step, 2),
        "amortised": round((refresh + (args.every - 1) * step) / args.every, 2),
        "products": sorted(products)[len(products) // 2],
        "residual": max(residuals),
    }


def main() -> None:
    """Writes results/dominant.json, and a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=lambda s: [int(v) for v in s.split(",")], default=[100_000, 1_000_000])
    for name, default in (("batch", 128), ("batches", 8), ("k", 10), ("every", 5), ("refreshes", 6), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--directions", choices=(*KINDS, "all"), default="all")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started, rows = report.environment(), list[dict[str, Any]]()
    for size in args.sizes:
        plain = plain_ms(size, data(args.batches, args.batch), args.lr)
        P = sum(p.numel() for p in network(size).parameters())
        for kind in KINDS if args.directions == "all" else (args.directions,):
            for tol in TOLERANCES:
                row = {
                    "P": P,
                    "N": args.batch,
                    "k": args.k,
                    "every": args.every,
                    "plain_ms": round(plain, 3),
                    **followed(kind, tol, args, size, plain),
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    if not args.dry:
        report.write("dominant", rows, started)


if __name__ == "__main__":
    main()
