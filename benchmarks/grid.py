"""``python benchmarks/grid.py``: products H V of MLPs of every width, batch and number of columns, one thread, float32.

Writes results/grid.json and results/grid.md: our time, that of the best way that torch has, and their ratio; with the
operator at hand and made anew (torch's ways start from the batch each time). A way whose products differ from ours is
reported and not timed. ``--quick`` takes a few cells; ``--threads`` and ``--dtype`` name other results.
"""

from __future__ import annotations

import report  # isort: skip  (before torch: it sets OMP_WAIT_POLICY)

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from table import markdown, provenance, seconds
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

import chaos_ext as ce

SIZES = [(256, 20, 10), (256, 100, 10), (256, 100, 100, 10), (784, 512, 512, 10)]
BATCHES, COLUMNS = [8, 64, 512], [1, 3, 4, 8, 15, 32, 128]
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda _: nn.Identity(),
    "LayerNorm": nn.LayerNorm,
    # Without running statistics: torch's ways cannot differentiate a forward that updates them.
    "BatchNorm": lambda n: nn.BatchNorm1d(n, track_running_stats=False),
}
AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-9}

Run = Callable[[], Tensor]
Row = dict[str, Any]


def mlp(sizes: tuple[int, ...], norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers.append(nn.Linear(before, after))
        if after is not sizes[-1]:
            layers += [] if norm == "none" else [NORMS[norm](after)]
            layers.append(nn.Tanh())
    return nn.Sequential(*layers)


def _jvp_of_grad(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor, V: Tensor) -> Run:
    named = {n: p.detach() for n, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]

    def loss(params: dict[str, Tensor]) -> Tensor:
        return loss_fn(functional_call(model, params, (x,)), y)

    def product(v: Tensor) -> Tensor:
        parts = {n: t.view_as(named[n]) for n, t in zip(named, v.split(sizes), strict=True)}
        return torch.cat([t.reshape(-1) for t in jvp(grad(loss), (named,), (parts,))[1].values()])

    rows = V.T.contiguous()
    many = vmap(product)
    return lambda: (many(rows) if len(rows) > 1 else product(rows[0])[None]).T


def _double_backward(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor, V: Tensor, batched: bool) -> Run:
    params, rows = list(model.parameters()), V.T.contiguous()

    def run() -> Tensor:
        gradient = torch.autograd.grad(loss_fn(model(x), y), params, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradient])
        if batched:
            parts = torch.autograd.grad(flat, params, rows, is_grads_batched=True)
            return torch.cat([p.reshape(len(rows), -1) for p in parts], 1).T
        each = (torch.autograd.grad(flat, params, v, retain_graph=True) for v in rows)
        return torch.stack([torch.cat([p.reshape(-1) for p in parts]) for parts in each], 1)

    return run


def rivals(*problem: Any) -> dict[str, Run]:
    return {
        "jvp(grad)": _jvp_of_grad(*problem),
        "double backward": _double_backward(*problem, batched=False),
        "double backward, batched": _double_backward(*problem, batched=True),
    }


def measured(run: Callable[[], object]) -> float:
    return report.best_of(run, seconds=0.3, most=50)[0]


def cells(quick: bool) -> Iterator[tuple[tuple[int, ...], str, int, int]]:
    every = itertools.product(SIZES, NORMS, BATCHES, COLUMNS)
    return (c for i, c in enumerate(every) if not quick or (i % 29 == 0 and c[2] < 512))


def cell(sizes: tuple[int, ...], norm: str, batch: int, k: int, dtype: torch.dtype) -> Row:
    torch.manual_seed(0)
    model, loss_fn = mlp(sizes, norm).to(dtype), nn.CrossEntropyLoss()
    x, y = torch.randn(batch, sizes[0], dtype=dtype), torch.randint(sizes[-1], (batch,))
    V = torch.randn(sum(p.numel() for p in model.parameters()), k, dtype=dtype)
    op = ce.HessianOperator(model, loss_fn, x, y)
    row: Row = {"net": "-".join(map(str, sizes)), "norm": norm, "N": batch, "k": k}
    ours, wrong = op @ V, []
    for name, run in rivals(model, loss_fn, x, y, V).items():
        off = float((run() - ours).norm() / ours.norm())
        row[name] = round(measured(run), 7) if off < AGREEMENT[dtype] else None
        wrong += [] if row[name] else [f"{name} {off:.1g}"]
    row["ours"] = round(measured(lambda: op @ V), 7)
    row["ours, new operator"] = round(measured(lambda: ce.HessianOperator(model, loss_fn, x, y) @ V), 7)
    times = [(row[name], name) for name in rivals(model, loss_fn, x, y, V) if row[name]]
    row["best"] = min(times)[1]
    row["ratio"], row["ratio, new operator"] = (
        round(min(times)[0] / row[who], 3) for who in ("ours", "ours, new operator")
    )
    return row | ({"off": ", ".join(wrong)} if wrong else {})


def table(rows: list[Row]) -> str:
    head = ["net", "norm", "N", "k", "ours", "best of torch", "ratio", "with a new operator"]
    lines = [
        [
            *(str(r[c]) for c in ("net", "norm", "N", "k")),
            seconds(r["ours"]),
            f"{seconds(r[r['best']])} ({r['best']})",
            f"{r['ratio']:.2f}",
            f"{r['ratio, new operator']:.2f}",
        ]
        for r in rows
    ]
    below = sum(r["ratio"] < 1 for r in rows), sum(r["ratio, new operator"] < 1 for r in rows)
    text = f"{len(rows)} cells; torch is faster in {below[0]}, and in {below[1]} where our operator is made anew."
    return f"{text}\n\n{markdown(head, lines)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started, rows = report.environment(), list[Row]()
    for c in cells(args.quick):
        rows.append(cell(*c, getattr(torch, args.dtype)))
        print(rows[-1], flush=True)
    name = f"grid-{args.dtype}-{args.threads}{'-quick' if args.quick else ''}"
    path = report.write(name, rows, started)
    title = f"# Products of MLPs, {args.dtype}, {args.threads} thread(s)\n\nCPU seconds; {provenance(started)}\n\n"
    path.with_suffix(".md").write_text(title + table(rows))


if __name__ == "__main__":
    main()
