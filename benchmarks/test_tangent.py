"""The tangent map and Lyapunov exponents beside what they are measured against: passes over Y, and a training step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import rivals
import torch
from problems import CASES
from torch import Tensor
from torch.func import grad, jvp, vmap

import chaos_ext as ce
from chaos_ext.base.tensors import fresh

LR, PROBLEM = 1e-3, CASES["a"]
STEPS = 64  # a run: long enough that re-orthonormalisations count with their share
Step = Callable[[], object]

UPDATE, PASS = "chaos_ext: fused update", "an in-place pass over Y"
PRODUCT = "Y - lr H Y with H by chaos_ext"
JVP = "jvp(grad), vmapped, chunk 512"


def _operator() -> tuple[ce.HessianOperator, torch.optim.Optimizer]:
    model, loss_fn, x, y = PROBLEM.build()
    return ce.HessianOperator(model, loss_fn, x, y), torch.optim.SGD(model.parameters(), LR)


def _by_product(Y: Tensor) -> Step:
    H = _operator()[0].dense()
    return lambda: Y.sub_(H @ Y, alpha=LR)


def _by_jvp(Y: Tensor) -> Step:
    loss = rivals._FlatLoss(*PROBLEM.build())
    products = vmap(lambda t: jvp(grad(loss), (loss.theta,), (t,))[1], in_dims=1, out_dims=1)

    def run() -> None:
        for block in Y.split(512, 1):
            block.sub_(products(block), alpha=LR)

    return run


def _fused(Y: Tensor) -> Step:
    op, opt = _operator()
    tangent = ce.TangentMap(opt)
    return lambda: tangent.apply_(op, Y)


METHODS = {UPDATE: _fused, PASS: lambda Y: lambda: Y.mul_(1.0001), JVP: _by_jvp, PRODUCT: _by_product}


def _validate(make: Callable[[Tensor], Step]) -> None:
    """Random columns against float64 double backward."""
    model, loss_fn, x, y = PROBLEM.build(torch.float64)
    params = list(model.parameters())
    Y = torch.randn(PROBLEM.P, 3, generator=torch.Generator().manual_seed(1))
    gradient = torch.autograd.grad(loss_fn(model(x), y), params, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    HY = [torch.autograd.grad(flat, params, v, retain_graph=True) for v in Y.double().T]
    expected = Y.double() - LR * torch.stack([torch.cat([p.reshape(-1) for p in v]) for v in HY], 1)
    make(Y)()
    assert (Y.double() - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_update(method: str, threads: int, benchmark, measure) -> None:
    """All of Y [P, P], wall seconds on a machine with nothing else to do."""
    benchmark.group = f"tangent map of SGD, Y [{PROBLEM.P}, {PROBLEM.P}], {threads} threads, wall seconds"
    if method != PASS:
        _validate(METHODS[method])
    Y = fresh((PROBLEM.P, PROBLEM.P), torch.float32, torch.device("cpu")).zero_().fill_diagonal_(1)
    row = {"what": "update", "problem": PROBLEM.title, "method": method, "dtype": "float32"}
    measure(METHODS[method](Y), clock="wall", threads=threads, seconds=4.0, **row)


class _Training:
    """Training on one batch, with something done before each step."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer] = torch.optim.SGD, **options: object) -> None:
        self.model, self.loss_fn, self.x, self.y = PROBLEM.build()
        self.opt = make(self.model.parameters(), lr=LR, **options)

    def torch_step(self) -> None:
        self.opt.zero_grad()
        self.loss_fn(self.model(self.x), self.y).backward()
        self.opt.step()

    def operator(self) -> ce.HessianOperator:
        return ce.HessianOperator(self.model, self.loss_fn, self.x, self.y)


def _plain() -> Step:
    return _Training().torch_step


def _with_operator() -> Step:
    training = _Training()

    def step() -> None:
        training.operator()
        training.torch_step()

    return step


def _analysed(k: int) -> Step:
    """A loop that torch steps, as it was, and the analyzer in front of each step."""
    training = _Training()
    analyzer = ce.LyapunovAnalyzer(training.model, training.opt, k=k)

    def step() -> None:
        analyzer.update(training.operator())
        training.torch_step()

    return step


def _analysed_by_cgd(k: int) -> Step:
    """The same steps on the gradient that the operator has anyway: no backward pass of torch."""
    training = _Training(ce.CGD, prune=None)
    analyzer = ce.LyapunovAnalyzer(training.model, training.opt, k=k)

    def step() -> None:
        op = training.operator()
        analyzer.update(op)
        training.opt.step(op)

    return step


STAGES: dict[str, Callable[[], Step]] = {
    "plain torch: forward, backward, SGD": _plain,
    "with a HessianOperator": _with_operator,
    "with the maximal exponent": lambda: _analysed(1),
    "with the maximal exponent, stepped by CGD(prune=None)": lambda: _analysed_by_cgd(1),
    "with 32 leading exponents": lambda: _analysed(32),
    "with 32 leading exponents, stepped by CGD(prune=None)": lambda: _analysed_by_cgd(32),
}


@pytest.mark.parametrize("stage", STAGES)
def test_training_step(stage: str, benchmark, measure) -> None:
    """A stretch of steps, re-orthonormalisations included; CPU seconds of one thread."""
    benchmark.group = f"{STEPS} training steps of {PROBLEM.title}, 1 thread, CPU seconds"
    step = STAGES[stage]()

    def run() -> None:
        for _ in range(STEPS):
            step()

    row = {"what": "training", "problem": PROBLEM.title, "method": stage, "dtype": "float32", "steps": STEPS}
    measure(run, seconds=6.0, **row)
