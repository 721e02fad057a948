"""``python benchmarks/ensemble.py``: a step of many copies of the paper's MLP at once, CPU seconds of one thread.

Writes results/ensemble.json. The floor of a step of B members, 256-20-10 at N = 8, one of plain SGD:

    arithmetic  2 N (2 * 5320 + 200) flops a member: both products with every weight, one with those of the last layer
                back to the hidden units; 3.5 Mflop for 20 members, 35 Mflop for 200
    memory      every parameter read and written once, 16 P bytes a member in float64: 1.7 MB for 20, 17 MB for 200

``bare products`` are the five batched matrix products of a step and nothing else, ``an in-place pass`` is one read and
one write of [B, P]. The rivals are B loops of plain torch, and vmap(grad) with an update in place.
"""

from __future__ import annotations

import report  # isort: skip  (before torch: it sets OMP_WAIT_POLICY)

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import chaos_ext as ce

LR, N, PASSES = 1e-3, 8, 3
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": LR}),
    "SGD, momentum": (torch.optim.SGD, {"lr": LR, "momentum": 0.9}),
    "Adam": (torch.optim.Adam, {"lr": LR}),
}
Step = Callable[[], object]
Row = dict[str, Any]


class Problem:
    """B copies of the paper's MLP around one, and a batch."""

    def __init__(self, members: int, dtype: torch.dtype, optimizer: str) -> None:
        self.dtype, (make, options) = dtype, OPTIMIZERS[optimizer]
        self.model = ce.models.paper_mlp(seed=0, dtype=dtype)
        self.make = lambda params: make(params, **options)
        theta = parameters_to_vector(self.model.parameters()).detach()
        g = torch.Generator().manual_seed(0)
        self.thetas = theta + 1e-3 * torch.randn(members, len(theta), generator=g, dtype=dtype)
        self.x = torch.randn(N, 1, 16, 16, generator=g, dtype=dtype)
        self.y = torch.randint(0, 10, (N,), generator=g)
        self.loss_fn = nn.CrossEntropyLoss()

    def ensemble(self) -> ce.Ensemble:
        return ce.Ensemble(self.model, self.loss_fn, self.make(self.model.parameters()), self.thetas)


def ours(problem: Problem) -> Step:
    ens = problem.ensemble()
    return lambda: ens.step(problem.x, problem.y)


class Loops:
    """Every member as a model with an optimizer of its own."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.models = problem, []
        for theta in problem.thetas:
            model = ce.models.paper_mlp(seed=0, dtype=problem.dtype)
            vector_to_parameters(theta.clone(), model.parameters())
            self.models.append((model, problem.make(model.parameters())))

    def __call__(self) -> None:
        for model, opt in self.models:
            opt.zero_grad()
            self.problem.loss_fn(model(self.problem.x), self.problem.y).backward()
            opt.step()


def vmapped(problem: Problem) -> Step:
    """vmap(grad), then torch's optimizer on the stacked parameters: the same elementwise recurrence."""
    model, sizes = problem.model, [p.numel() for p in problem.model.parameters()]
    parts = zip(model.named_parameters(), problem.thetas.split(sizes, 1), strict=True)
    stacked = {n: t.reshape(len(t), *p.shape).clone().requires_grad_() for (n, p), t in parts}
    opt = problem.make(stacked.values())

    def loss(params: dict[str, Tensor]) -> Tensor:
        return problem.loss_fn(functional_call(model, params, (problem.x,)), problem.y)

    gradients = vmap(grad(loss))

    def run() -> None:
        for n, g in gradients({n: p.detach() for n, p in stacked.items()}).items():
            stacked[n].grad = g
        opt.step()

    return run


def products(problem: Problem) -> Step:
    """The five batched products, into memory that is there already."""
    b, like = len(problem.thetas), problem.thetas
    W1, W2 = like.new_empty(b, 20, 256).normal_(), like.new_empty(b, 10, 20).normal_()
    z, q, back = like.new_empty(b, N, 20), like.new_empty(b, N, 10), like.new_empty(b, N, 20)
    x, g1, g2 = problem.x.flatten(1).expand(b, N, 256), torch.empty_like(W1), torch.empty_like(W2)

    def run() -> None:
        torch.bmm(x, W1.transpose(1, 2), out=z)
        torch.bmm(z, W2.transpose(1, 2), out=q)
        torch.bmm(q, W2, out=back)
        torch.bmm(q.transpose(1, 2), z, out=g2)
        torch.bmm(back.transpose(1, 2), x, out=g1)

    return run


def in_place_pass(problem: Problem) -> Step:
    thetas = problem.thetas.clone()
    return lambda: thetas.mul_(1.0000001)


METHODS: dict[str, Callable[[Problem], Step]] = {
    "chaos_ext": ours,
    "bare products": products,
    "an in-place pass": in_place_pass,
    "vmap(grad) and torch's optimizer": vmapped,
    "plain torch, one after the other": Loops,
}
FLOORS = ("bare products", "an in-place pass")  # the same for every optimizer


def validate(problem: Problem) -> None:
    """Ten steps against plain torch."""
    ens, loops = problem.ensemble(), Loops(problem)
    for _ in range(10):
        ens.step(problem.x, problem.y)
        loops()
    expected = torch.stack([parameters_to_vector(m.parameters()).detach() for m, _ in loops.models])
    error = float((ens.thetas - expected).norm() / expected.norm())
    if not error <= (1e-12 if problem.dtype == torch.float64 else 1e-5):
        raise AssertionError(f"the members are off by {error:.2g}")


def measured(members: int, dtype: torch.dtype, optimizer: str) -> list[Row]:
    """All methods in turns, the minimum over several passes."""
    problem = Problem(members, dtype, optimizer)
    validate(problem)
    names = [n for n in METHODS if optimizer == "SGD" or n not in FLOORS]
    best: dict[str, tuple[float, int]] = {}
    for _ in range(PASSES):
        for name in names:
            took, rounds = report.best_of(METHODS[name](problem), seconds=1.0, most=400)
            known = best.get(name, (float("inf"), 0))
            best[name] = min(known[0], took), known[1] + rounds
    shared = {"problem": "256-20-10, N = 8", "members": members, "dtype": str(dtype).removeprefix("torch.")}
    return [
        {
            **shared,
            "optimizer": optimizer,
            "method": n,
            "threads": 1,
            "clock": "CPU",
            "seconds": round(s, 7),
            "rounds": r,
        }
        for n, (s, r) in best.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="print the rows, write nothing")
    dry = parser.parse_args().dry
    torch.set_num_threads(1)
    started, rows = report.environment(), []
    for dtype in (torch.float64, torch.float32):
        for members in (20, 200):
            for optimizer in OPTIMIZERS:
                found = measured(members, dtype, optimizer)
                rows += found
                for r in found:
                    print(f"{members:4} {r['dtype']:8} {optimizer:14} {r['method']:34} {1e3 * r['seconds']:9.3f} ms")
    if not dry:
        print(f"wrote {report.write('ensemble', rows, started)}")


if __name__ == "__main__":
    main()
