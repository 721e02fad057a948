"""lyapunov_spectrum with method="svd", and maps that bring no tangent."""

import math

import pytest
import torch
from torch import nn

import chaos_ext as ce

F64 = torch.float64


def cat(x):
    return torch.stack([2 * x[0] + x[1], x[0] + x[1]]) % 1.0


def henon(x):
    return torch.stack([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])


START = torch.tensor([0.1, 0.2], dtype=F64)


@pytest.mark.parametrize("method", ["qr", "svd"])
def test_published_exponents_without_a_tangent(method):
    values = ce.lyapunov_spectrum(cat, x0=START, steps=400, method=method)
    expected = math.log((3 + math.sqrt(5)) / 2)
    assert values.tolist() == pytest.approx([expected, -expected], abs=1e-12 if method == "svd" else 5e-3)
    values = ce.lyapunov_spectrum(henon, x0=START, steps=4000, transient=100, method=method)
    assert values.tolist() == pytest.approx([0.4192, -1.6232], abs=0.02)
    assert float(values.sum()) == pytest.approx(math.log(0.3), abs=1e-12)


def test_the_linearised_step_is_the_tangent_map():
    system = ce.systems.henon()
    own = ce.lyapunov_spectrum(system.step, system.tangent, system.x0, steps=500, method="svd")
    assert torch.allclose(ce.lyapunov_spectrum(system.step, x0=system.x0, steps=500, method="svd"), own, atol=1e-13)


def test_a_recurrent_network_needs_only_its_step():
    torch.manual_seed(0)
    cell = nn.GRUCell(3, 5).double()
    drive = torch.randn(3, dtype=F64)
    values = ce.lyapunov_spectrum(lambda h: cell(drive, h), x0=torch.zeros(5, dtype=F64), steps=50, method="svd")
    h, product = torch.zeros(5, dtype=F64), torch.eye(5, dtype=F64)
    for _ in range(50):
        product = torch.func.jacrev(lambda h: cell(drive, h))(h) @ product
        h = cell(drive, h).detach()
    assert torch.allclose(values[:2] * 50, torch.linalg.svdvals(product)[:2].log(), atol=1e-8)
    assert all(p.grad is None for p in cell.parameters())


def test_many_columns_go_in_chunks():
    A = torch.eye(300, dtype=F64) + 0.01 * torch.diag(torch.linspace(-1, 1, 300, dtype=F64))
    values = ce.lyapunov_spectrum(lambda x: A @ x, x0=torch.ones(300, dtype=F64), steps=30, method="svd")
    assert torch.allclose(values, A.diagonal().log().sort(descending=True).values, atol=1e-14)


def test_the_full_output():
    result = ce.lyapunov_spectrum(henon, x0=START, steps=100, transient=20, full_output=True, method="svd", every=10)
    assert isinstance(result, ce.FiniteTimeSpectrum)
    assert (result.steps, result.transient, result.is_restricted) == (100, 20, False)
    assert result.extremes.steps.tolist() == list(range(30, 121, 10))
    assert float(result.extremes.largest[-1]) == pytest.approx(float(result.exponents[0]), abs=1e-12)
    x, product = START, torch.eye(2, dtype=F64)
    for t in range(120):
        product = torch.func.jacrev(henon)(x) @ product if t >= 20 else product
        x = henon(x)
    assert torch.equal(result.x, x)
    # J^T u = sigma v, column by column; of the second sigma only its logarithm is left in this product.
    assert (result.exponents[0] * 100).exp() == pytest.approx(float(torch.linalg.matrix_norm(product, 2)), rel=1e-10)
    grown = product @ result.right[:, 0]
    assert torch.allclose(grown / grown.norm(), result.left[:, 0], atol=1e-9)
    assert (result.exponents * 100).sum() == pytest.approx(100 * math.log(0.3), abs=1e-10)
    assert not result.neutral.any()


def test_a_rotation_is_neutral():
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=F64)).Q
    result = ce.lyapunov_spectrum(
        lambda x: turn @ x, x0=torch.ones(4, dtype=F64), steps=1000, full_output=True, method="svd"
    )
    assert result.neutral.all()
    assert result.tolerance.max() < 1e-9


@pytest.mark.parametrize("d", [1, 3])
def test_a_map_that_loses_every_direction(d):
    """The superstable orbit of the logistic map: its derivative vanishes."""
    x0 = torch.full((d,), 0.5, dtype=torch.float64)
    found = ce.lyapunov_spectrum(lambda x: 2 * x * (1 - x), x0=x0, steps=5, method="svd", full_output=True)
    assert found.exponents.tolist() == [-math.inf] * d
    assert not found.neutral.any()
    assert torch.equal(found.right.abs(), torch.eye(d, dtype=torch.float64))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extremes_follow_a_direction_that_overtakes(sign):
    """One direction leads for 40 steps, then stands still while another overtakes it after 80."""
    d, every = 50, 5
    logs = sign * torch.linspace(0, -0.02, d, dtype=torch.float64).repeat(160, 1)
    logs[:40, 3], logs[40:, 3], logs[40:, 25] = sign * 0.05, 0.0, sign * 0.06

    def tangent(x, V):
        return logs[int(x[0])].exp().unsqueeze(1) * V

    x0 = torch.zeros(d, dtype=torch.float64)
    found = ce.lyapunov_spectrum(lambda x: x + 1, tangent, x0, steps=160, method="svd", every=every, full_output=True)
    sums, t = logs.cumsum(0)[every - 1 :: every], found.extremes.steps
    values, truth = (found.extremes.largest, sums.amax(1)) if sign > 0 else (found.extremes.smallest, sums.amin(1))
    assert ((values * t - truth)[t > 80].abs() < 1e-4).all()


def test_restricted_to_fewer_columns():
    A = torch.diag(torch.tensor([3.0, 2.0, 0.5], dtype=F64))
    result = ce.lyapunov_spectrum(
        lambda x: A @ x, x0=torch.ones(3, dtype=F64), steps=60, k=2, method="svd", full_output=True
    )
    assert result.is_restricted
    assert (result.exponents <= torch.tensor([math.log(3), math.log(2)], dtype=F64)).all()
    assert result.exponents.tolist() == pytest.approx([math.log(3), math.log(2)], abs=0.05)


def test_an_escape_keeps_the_last_whole_block():
    with pytest.raises(ce.NonFiniteError, match="step") as caught:
        ce.lyapunov_spectrum(lambda x: x**2, x0=torch.tensor([3.0, 0.5], dtype=F64), steps=100, method="svd")
    result = caught.value.result
    assert isinstance(result, ce.FiniteTimeSpectrum)
    assert 1 <= result.steps < 12
    assert torch.isfinite(result.exponents).all()
    assert result.left is None


def test_progress_is_told_of_every_step():
    seen = []
    ce.lyapunov_spectrum(
        henon, x0=START, steps=5, transient=2, method="svd", progress=lambda t, of: seen.append((t, of))
    )
    assert seen == [(t, 7) for t in range(1, 8)]


def detached(x):
    return x.detach() * 2


def without_grad(x):
    with torch.no_grad():
        return 2 * x + 1


def through_numpy(x):
    return torch.from_numpy(x.numpy() * 2)


def by_value(x):
    return x * 2 if x.sum().item() > 0 else x * 3


@pytest.mark.parametrize(
    ("step", "error", "match"),
    [
        (detached, ValueError, "disagree at x0"),
        (through_numpy, ce.UnsupportedError, "cannot differentiate step"),
    ],
)
def test_a_step_without_derivative_is_refused_not_believed(step, error, match):
    with pytest.raises(error, match=match):
        ce.lyapunov_spectrum(step, x0=START, steps=5)


@pytest.mark.parametrize("step", [by_value, without_grad])
def test_steps_that_branch_on_values_or_run_without_grad(step):
    values = ce.lyapunov_spectrum(step, x0=START, steps=5)
    assert values.tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"x0": None}, TypeError, "x0"),
        ({"method": "gram"}, ValueError, "method"),
        ({"every": 3}, ValueError, "every: only of"),
        ({"method": "svd", "gali": True}, ValueError, "gali: only of"),
        ({"method": "svd", "every": 0}, ValueError, "every"),
        ({"method": "svd", "k": 3}, ValueError, "k"),
        ({"method": "svd", "neutral_tol": "1"}, ValueError, "neutral_tol"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        ce.lyapunov_spectrum(henon, **{"x0": START, "steps": 5, **arguments})
