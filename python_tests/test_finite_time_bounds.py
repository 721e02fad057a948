"""What finite-time exponents are said to be off by, and extreme ones on the way, where that is hard to keep."""

import math

import pytest
import torch
from exact_products import product_logs
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()
F64 = torch.float64


def _trained(make, options, steps, seed, act, dtype=F64, scale=2.0):
    """An analyzer of a small net on one batch, and the Jacobians of its steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 4), act(), nn.Linear(4, 3)).to(dtype)
    opt = make(model.parameters(), **options)
    an, g, maps = ce.LyapunovAnalyzer(model, opt, method="svd"), torch.Generator().manual_seed(7), []
    x = (scale * torch.randn(12, 2, generator=g, dtype=F64)).to(dtype)
    y = torch.randint(0, 3, (12,), generator=g)
    for _ in range(steps):
        op = ce.HessianOperator(model, CE, x, y)
        maps.append(an.tangent.apply_(op, torch.eye(an.tangent.size, dtype=dtype)).double().numpy())
        an.update(op)
        opt.zero_grad()
        CE(model(x), y).backward()
        opt.step()
    return an, maps


@pytest.mark.parametrize(
    ("lr", "steps", "seed", "act", "dtype"),
    [
        (2.0, 120, 103, nn.Sigmoid, F64),
        (1.5, 150, 0, nn.Tanh, F64),
        (2.5, 100, 2, nn.Tanh, F64),
        (0.8, 100, 2, nn.Tanh, torch.float32),
        (2.0, 120, 103, nn.Sigmoid, torch.float32),
    ],
)
def test_large_learning_rates_stay_within_the_tolerance(lr, steps, seed, act, dtype):
    scale = 3.0 if act is nn.Sigmoid else 2.0
    an, maps = _trained(torch.optim.SGD, {"lr": lr}, steps, seed, act, dtype, scale)
    found, exact = an.finite_time(), torch.tensor(product_logs(maps, 900), dtype=F64)
    assert ((found.exponents * steps - exact).abs() <= found.tolerance).all()
    assert found.tolerance.isfinite().sum() > 20


def _of_maps(maps, **options):
    """Finite-time exponents of a product of given matrices."""

    def step(x):
        following = x.clone()
        following[0] += 1
        return following

    def tangent(x, V):
        return maps[min(round(float(x[0])), len(maps) - 1)] @ V

    x0 = torch.zeros(len(maps[0]), dtype=F64)
    return ce.lyapunov_spectrum(step, tangent, x0, steps=len(maps), method="svd", full_output=True, **options)


def test_an_exactly_singular_step_is_not_neutral_and_says_that_its_exponent_is_not_known():
    g = torch.Generator().manual_seed(0)
    maps = [torch.randn(6, 6, generator=g, dtype=F64) for _ in range(26)]
    maps[5][:, 2] = 0.0
    found = _of_maps(maps)
    assert float(found.exponents[-1]) == -math.inf or float(found.tolerance[-1]) == math.inf
    assert not bool(found.neutral[-1])
    exact = torch.tensor(product_logs([J.numpy() for J in maps], 300), dtype=F64)[:-1]
    assert ((found.exponents * 26)[:-1] - exact).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (torch.optim.SGD, {"lr": 0.2, "momentum": 0.9}),
        (torch.optim.SGD, {"lr": 0.5, "momentum": 0.9}),
        (torch.optim.SGD, {"lr": 0.2, "momentum": 0.5}),
        (torch.optim.Adam, {"lr": 0.05, "betas": (0.9, 0.99)}),
    ],
)
@pytest.mark.parametrize("every", [1, 5])
def test_extremes_of_the_theta_block_whose_rows_lean(make, options, every):
    """Condition up to 1e5: the smallest one is not to be found by the lengths of columns."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    opt = make(model.parameters(), **options)
    an, g = ce.LyapunovAnalyzer(model, opt, method="svd", state="theta", every=every), torch.Generator().manual_seed(3)
    X, Y = 2 * torch.randn(200, 6, generator=g, dtype=F64), torch.randint(0, 4, (200,), generator=g)
    for t in range(1, 61):
        i = torch.randint(0, 200, (8,), generator=g)
        an.update(ce.HessianOperator(model, CE, X[i], Y[i]))
        opt.zero_grad()
        CE(model(X[i]), Y[i]).backward()
        opt.step()
        if t % every == 0:
            whole, read = an.finite_time(), an.extremes
            for end, value, tolerance in (
                (0, read.largest[-1], read.largest_tolerance[-1]),
                (-1, read.smallest[-1], read.smallest_tolerance[-1]),
            ):
                assert abs(value - whole.exponents[end]) <= tolerance + whole.tolerance[end] / t
    assert whole.condition > 10


def test_extremes_of_the_theta_block_go_on_after_resuming():
    def start():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        opt = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        return model, opt, ce.LyapunovAnalyzer(model, opt, method="svd", state="theta", every=1)

    g = torch.Generator().manual_seed(3)
    X, Y = 2 * torch.randn(40, 8, 6, generator=g, dtype=F64), torch.randint(0, 4, (40, 8), generator=g)

    def go(model, opt, an, steps):
        for t in steps:
            an.update(ce.HessianOperator(model, CE, X[t], Y[t]))
            opt.zero_grad()
            CE(model(X[t]), Y[t]).backward()
            opt.step()

    whole = start()
    go(*whole, range(40))
    for cut in (3, 17, 26):
        first, second = start(), start()
        go(*first, range(cut))
        second[0].load_state_dict(first[0].state_dict())
        second[1].load_state_dict(first[1].state_dict())
        second[2].load_state_dict(first[2].state_dict())
        go(*second, range(cut, 40))
        for a, b in zip(second[2].extremes, whole[2].extremes):
            assert torch.equal(a, b)
        assert torch.equal(second[2].exponents(), whole[2].exponents())
