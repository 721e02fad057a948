"""``python benchmarks/ensemble.py``: a step of many copies of the paper's MLP at once, CPU seconds of one thread.

With ``--cgd`` steps of CGD(prune="negative"), each member on a batch of its own, against as many separate runs of CGD;
with ``--device cuda`` on a GPU, wall seconds. Writes results/ensemble.json, or ensemble-cgd[-cuda].json.

The floor of a step of B members, 256-20-10 at N = 8, one of plain SGD:

    arithmetic  2 N (2 * 5320 + 200) flops a member: both products with every weight, one with those of the last layer
                back to the hidden units; 3.5 Mflop for 20 members, 35 Mflop for 200
    memory      every parameter read and written once, 16 P bytes a member in float64: 1.7 MB for 20, 17 MB for 200

``bare products`` are the five batched matrix products of a step and nothing else, ``an in-place pass`` is one read and
one write of [B, P]. The rivals are B loops of plain torch, and vmap(grad) with an update in place.
"""

from __future__ import annotations

import report  # isort: skip  (before torch: it sets OMP_WAIT_POLICY)

import argparse
import time
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


class SeparateCGD:
    """Every member as a model with a CGD of its own, on a batch of its own."""

    def __init__(self, problem: CGDProblem) -> None:
        self.problem, self.models = problem, []
        for theta in problem.thetas:
            model = ce.models.paper_mlp(seed=0, dtype=problem.dtype, device=problem.device)
            vector_to_parameters(theta.clone(), model.parameters())
            self.models.append((model, ce.CGD(model.parameters(), lr=LR, prune="negative")))

    def __call__(self) -> None:
        p = self.problem
        for (model, opt), x, y in zip(self.models, p.x, p.y, strict=True):
            opt.step(ce.HessianOperator(model, p.loss_fn, x, y))


class CGDProblem:
    """B seeds of the paper's MLP, each with a batch of its own."""

    def __init__(self, members: int, dtype: torch.dtype, device: str) -> None:
        self.dtype, self.device = dtype, device
        models = [ce.models.paper_mlp(seed=seed, dtype=dtype, device=device) for seed in range(members)]
        self.model, self.loss_fn = models[0], nn.CrossEntropyLoss()
        self.thetas = torch.stack([parameters_to_vector(m.parameters()).detach() for m in models])
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(members, N, 1, 16, 16, generator=g, dtype=torch.float64).to(device, dtype)
        self.y = torch.randint(0, 10, (members, N), generator=g).to(device)

    def ensemble(self) -> ce.Ensemble:
        opt = ce.CGD(self.model.parameters(), lr=LR, prune="negative")
        return ce.Ensemble(self.model, self.loss_fn, opt, self.thetas)

    def validate(self) -> None:
        """Five steps against separate runs."""
        ens, alone = self.ensemble(), SeparateCGD(self)
        for _ in range(5):
            ens.step(self.x, self.y, batched=True)
            alone()
        expected = torch.stack([parameters_to_vector(m.parameters()).detach() for m, _ in alone.models])
        error = float((ens.thetas - expected).norm() / expected.norm())
        if not error <= (1e-12 if self.dtype == torch.float64 else 1e-5):
            raise AssertionError(f"the members are off by {error:.2g}")


def _cgd_ours(problem: CGDProblem) -> Step:
    ens = problem.ensemble()
    return lambda: ens.step(problem.x, problem.y, batched=True)


def cgd_rows(device: str) -> list[Row]:
    """Both methods in turns, for 1, 8 and 32 members."""
    rows: list[Row] = []
    for dtype in (torch.float64, torch.float32):
        for members in (1, 8, 32):
            problem = CGDProblem(members, dtype, device)
            problem.validate()
            best: dict[str, tuple[float, int]] = {}
            for _ in range(PASSES):
                for name, make in (("chaos_ext", _cgd_ours), ("separate runs of CGD", SeparateCGD)):
                    took, rounds = _best(make(problem), device)
                    known = best.get(name, (float("inf"), 0))
                    best[name] = min(known[0], took), known[1] + rounds
            shared = {"problem": "256-20-10, N = 8", "members": members, "dtype": str(dtype).removeprefix("torch.")}
            clock = "CPU" if device == "cpu" else "wall"
            shared |= {"optimizer": "CGD", "threads": torch.get_num_threads(), "clock": clock}
            for name, (seconds, rounds) in best.items():
                rows.append({**shared, "method": name, "seconds": round(seconds, 7), "rounds": rounds})
                print(f"{members:4} {shared['dtype']:8} CGD  {name:24} {1e3 * seconds:9.3f} ms")
    return rows


def _best(step: Step, device: str) -> tuple[float, int]:
    """Seconds of the fastest round, and how many there were."""
    if device == "cpu":
        return report.best_of(step, seconds=1.0, most=400)
    step()
    best, rounds, end = float("inf"), 0, time.perf_counter() + 2.0
    while rounds < 5 or time.perf_counter() < end:
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        best, rounds = min(best, time.perf_counter() - began), rounds + 1
    return best, rounds


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
    parser.add_argument("--cgd", action="store_true", help="steps of CGD")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="with --cgd")
    args = parser.parse_args()
    dry = args.dry
    if args.device == "cpu":
        torch.set_num_threads(1)
    started = report.environment()
    if args.cgd:
        name, rows = "ensemble-cgd" + ("-cuda" if args.device == "cuda" else ""), cgd_rows(args.device)
        if not dry:
            print(f"wrote {report.write(name, rows, started)}")
        return
    rows = []
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
