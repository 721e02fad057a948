"""Finite-time exponents of training against exact products of its Jacobians, and the laws that they obey."""

import functools
import math

import pytest
import torch
from exact_products import product_logs
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()


def net(seed=0, bias=True):
    """P = 27: 2-4-3 with tanh (24 without the last bias)."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3, bias=bias)).double()


@functools.cache
def batches(count, n=12):
    g = torch.Generator().manual_seed(7)
    x = 2 * torch.randn(count, n, 2, generator=g, dtype=torch.float64)
    return list(zip(x, torch.randint(0, 3, (count, n), generator=g)))


@functools.cache
def benign():
    """A batch on which training at lr 0.4 contracts: no direction grows again that has shrunk by much."""
    net()
    x = 2 * torch.randn(12, 2, dtype=torch.float64)
    return x, torch.randint(0, 3, (12,))


def trained(model, opt, an, data, look=None):
    """All steps; the Jacobian of each, in the analyzer's units, if ``look``."""
    Js, units = [], None
    for x, y in data:
        op = ce.HessianOperator(model, CE, x, y)
        if look:
            units = units or an.tangent.units(op)
            Js.append(an.tangent.apply_(op, torch.eye(an.tangent.size, dtype=torch.float64), units))
        an.update(op)
        opt.zero_grad()
        CE(model(x), y).backward()
        opt.step()
    return Js


def run(steps, lr=0.4, look=False, data=None, bias=True, make=torch.optim.SGD, options=None, **analyzer):
    model = net(bias=bias)
    opt = make(model.parameters(), lr=lr, **(options or {}))
    an = ce.LyapunovAnalyzer(model, opt, method="svd", **analyzer)
    return an, trained(model, opt, an, data or batches(1) * steps, look)


def exact(Js, spread):
    return torch.tensor(product_logs([J.numpy() for J in Js], spread), dtype=torch.float64)


def test_600_steps_against_the_exact_product_of_their_jacobians():
    an, Js = run(0, data=[benign()] * 600, look=True)
    logs = an.exponents() * 600
    reference = exact(Js, 800)
    assert reference[0] - reference[-1] > 400
    assert (logs - reference).abs().max() < 1e-8
    assert ((logs - reference).abs() <= an.finite_time().tolerance).all()
    assert torch.equal(an.errors(), an.finite_time().tolerance / 600)


@pytest.mark.parametrize(("lr", "most"), [(1.5, 0.1), (0.4, math.inf)])
def test_where_training_is_chaotic_errors_stay_within_the_reported_bound(lr, most):
    """Steps of lr lambda near 1 and beyond 2; directions that shrink by e^-25, or e^-50, and grow again."""
    an, Js = run(0, data=[benign() if lr > 1 else batches(1)[0]] * 600, lr=lr, look=True)
    error = (an.exponents() * 600 - exact(Js, 1100)).abs()
    tolerance = an.finite_time().tolerance
    assert (error <= tolerance).all()
    assert error.max() > 1e-6
    assert float(tolerance.max()) < most


def test_the_gram_matrix_in_float32_loses_most_of_them():
    _, Js = run(100, look=True)
    Y, logs = torch.eye(27), None
    for t, J in enumerate(Js, 1):
        Y = J.float() @ Y
        if t == 100:  # later it overflows
            naive = torch.linalg.eigvalsh(Y.mT @ Y).flip(0).double().log() / 2
            logs = exact(Js[:100], 200)
    wrong = ~((naive - logs).abs() < 0.5)
    assert int(wrong.sum()) >= 7


@pytest.mark.parametrize(
    ("options", "weight_decay"),
    [
        ({"momentum": 0.9}, 0.0),
        ({"momentum": 0.5, "dampening": 0.3}, 0.0),
        ({"momentum": 0.8, "weight_decay": 0.1}, 0.1),
    ],
)
def test_singular_values_of_heavy_ball_pair_up(options, weight_decay):
    """sigma_i sigma_(2P+1-i) = mu^t at every t, on changing batches, in the metric of (theta, lr v)."""
    model = net()
    opt = torch.optim.SGD(model.parameters(), lr=0.2, **options)
    an = ce.LyapunovAnalyzer(model, opt, method="svd")
    for t, batch in enumerate(batches(40), 1):
        trained(model, opt, an, [batch])
        logs = an.exponents() * t
        expected = t * math.log(options["momentum"])
        assert logs + logs.flip(0) == pytest.approx(torch.full((54,), expected, dtype=torch.float64), abs=1e-9)
    assert float(an.exponents().sum()) == pytest.approx(27 * math.log(options["momentum"]), abs=1e-11)


@pytest.mark.parametrize(("bias", "zeros"), [(True, 5), (False, 4)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_shift_of_logits_gives_zeros_and_signs(bias, zeros, momentum):
    """h_last + 1 directions (h_last without bias) are in the kernel of every H; lambda_1 >= 0 >= lambda_P."""
    an, _ = run(0, data=batches(60), bias=bias, options={"momentum": momentum}, lr=0.1, state="theta")
    spec = an.finite_time()
    assert len(spec.exponents) == (27 if bias else 24)
    assert int(an.neutral.sum()) >= zeros
    assert torch.equal(an.neutral, spec.neutral)
    tol = float(spec.tolerance.max()) / 60
    assert spec.exponents[0] >= -tol
    assert spec.exponents[-1] <= tol
    assert (spec.condition > 1) == (momentum > 0)


def test_the_theta_block_of_heavy_ball_is_the_papers_equation_8():
    an, Js = run(0, data=batches(25), options={"momentum": 0.9}, lr=0.1, state="theta", look=True)
    Y = torch.eye(54, 27, dtype=torch.float64)
    for J in Js:
        Y = J @ Y
    assert torch.allclose(an.exponents() * 25, torch.linalg.svdvals(Y[:27]).log(), atol=1e-8)


@pytest.mark.parametrize("every", [1, 7, 20])
def test_sums_are_the_accumulated_determinants_and_extremes_the_ends(every):
    model, lr = net(), 0.3
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    an = ce.LyapunovAnalyzer(model, opt, method="svd", every=every)
    volume = 0.0
    for t, (x, y) in enumerate(batches(60), 1):
        H = ce.HessianOperator(model, CE, x, y).dense()
        volume += float(torch.linalg.slogdet(torch.eye(27, dtype=torch.float64) - lr * H).logabsdet)
        trained(model, opt, an, [(x, y)])
        if t % every == 0:
            values, e = an.exponents(), an.extremes
            assert int(e.steps[-1]) == t == every * len(e.steps)
            assert abs(float(e.largest[-1] - values[0])) <= float(e.largest_tolerance[-1]) + 1e-13
            assert abs(float(e.smallest[-1] - values[-1])) <= float(e.smallest_tolerance[-1]) + 1e-13
            assert float(e.largest_tolerance[-1]) * t <= 1e-3
    assert float(an.exponents().sum()) * 60 == pytest.approx(volume, abs=1e-9)


def test_the_first_right_singular_vector_grows_by_sigma_1():
    """Real training from theta + eps v, without any tangent map."""
    ends, eps = [], 1e-6
    an, _ = run(40, lr=0.4)
    right, left = an.singular_vectors(), an.singular_vectors("left")
    assert right.shape == left.shape == (27, 27)
    for sign in (1, -1):
        model = net()
        ce.perturb(model, sign * right[:, 0], eps)
        opt = torch.optim.SGD(model.parameters(), lr=0.4)
        for x, y in batches(1) * 40:
            opt.zero_grad()
            CE(model(x), y).backward()
            opt.step()
        ends.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach())
    moved = (ends[0] - ends[1]) / (2 * eps)
    sigma = float((an.exponents()[0] * 40).exp())
    assert float(moved.norm()) == pytest.approx(sigma, rel=1e-5)
    assert torch.allclose(moved / sigma, left[:, 0], atol=1e-5)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_is_the_product_of_its_jacobians(make):
    an, Js = run(0, lr=0.01, data=batches(12), make=make, look=True)
    logs = an.exponents() * 12
    assert len(logs) == 81
    assert ((logs - exact(Js, 200)).abs() <= an.finite_time().tolerance).all()
    assert float(logs.sum()) == pytest.approx(sum(float(torch.linalg.slogdet(J).logabsdet) for J in Js), abs=1e-7)


def test_fewer_columns_are_lower_bounds_and_labelled():
    whole, _ = run(50)
    some, _ = run(50, k=6)
    assert some.finite_time().is_restricted
    assert not whole.finite_time().is_restricted
    assert (some.exponents() <= whole.exponents()[:6] + 1e-12).all()
    assert some.singular_vectors().shape == (27, 6)


def test_gradient_descent_on_a_quadratic_at_every_step():
    """ln|1 - lr lambda_i|, exactly, also where lr lambda = 1."""
    lam = torch.tensor([-1.0, 0.0, 0.5, 2.0, 10.0], dtype=torch.float64)

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(5, dtype=torch.float64))

        def forward(self, x):
            return (lam * self.w**2).sum() / 2 + 0 * x.sum()

    model = Quadratic()
    opt = torch.optim.SGD(model.parameters(), lr=0.5)
    an = ce.LyapunovAnalyzer(model, opt, method="svd", every=3)
    x = torch.zeros(1, dtype=torch.float64)
    for _ in range(30):
        op = ce.HessianOperator(model, lambda out, _: out, x, x)
        an.update(op)
        with torch.no_grad():
            model.w -= 0.5 * lam * model.w
        expected = (1 - 0.5 * lam).abs().log().sort(descending=True).values
        assert torch.allclose(an.exponents(), expected, rtol=0, atol=1e-14)
    assert an.exponents()[-1] == -math.inf
    assert an.neutral.tolist() == [False, False, True, False, False]
    assert an.extremes.smallest.eq(-math.inf).all()


def test_a_tolerance_of_the_user_decides_what_is_neutral():
    an, _ = run(10, lr=1e-3, neutral_tol=1e-2)
    spec = an.finite_time()
    assert spec.neutral_tolerance.eq(1e-2).all()
    assert torch.equal(spec.neutral, (spec.exponents * 10).abs() <= 1e-2)


def test_transient_maps_are_left_out():
    late, _ = run(0, data=batches(30), transient=10)
    model = net()
    opt = torch.optim.SGD(model.parameters(), lr=0.4)
    trained(model, opt, ce.LyapunovAnalyzer(model, opt, k=1), batches(30)[:10])
    an = ce.LyapunovAnalyzer(model, opt, method="svd")
    trained(model, opt, an, batches(30)[10:])
    assert torch.equal(late.exponents(), an.exponents())
    assert late.steps == 30
    assert late.extremes.steps.tolist() == [30]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"every": 0}, "every"),
        ({"every": 2.5}, "every"),
        ({"every": True}, "every"),
        ({"qr_every": 3}, "qr_every: only of"),
        ({"gali": True}, "gali: only of"),
        ({"k": 28}, "k"),
        ({"neutral_tol": -1.0}, "neutral_tol"),
        ({"neutral_tol": math.nan}, "neutral_tol"),
        ({"method": "qr", "every": 5}, "every: only of method='svd'"),
        ({"method": "product"}, "method"),
    ],
)
def test_options_out_of_range_or_of_the_other_method(arguments, match):
    model = net()
    with pytest.raises(ValueError, match=match):
        ce.LyapunovAnalyzer(model, torch.optim.SGD(model.parameters(), lr=0.1), **{"method": "svd", **arguments})


def test_readings_of_the_other_method_are_refused_by_name():
    model = net()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    qr, svd = ce.LyapunovAnalyzer(model, opt), ce.LyapunovAnalyzer(model, opt, method="svd")
    for name in ("local_exponents", "history"):
        with pytest.raises(ce.UnsupportedError, match=f"{name}: only of method='qr'"):
            getattr(svd, name)
    for name in ("directions", "log_gali"):
        with pytest.raises(ce.UnsupportedError, match=f"{name}: only of method='qr'"):
            getattr(svd, name)()
    with pytest.raises(ce.UnsupportedError, match="extremes: only of method='svd'"):
        _ = qr.extremes
    with pytest.raises(ce.UnsupportedError, match="singular_vectors: only"):
        qr.singular_vectors()
    with pytest.raises(ValueError, match="at least one step"):
        svd.exponents()
    with pytest.raises(ValueError, match="side"):
        svd.singular_vectors("up")


def test_memory_is_estimated_before_anything_is_allocated():
    model = ce.models.paper_mlp(seed=0, dtype=torch.float64)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ce.MemoryBudgetError, match=r"method='svd' with k = 5350 of S = 5350: needs 1.06 GiB"):
        ce.LyapunovAnalyzer(model, opt, method="svd", memory_budget=500 << 20)


class Scaled(torch.optim.SGD):
    """A custom optimizer whose deviations grow by a factor that the test sets."""

    factor = 1.0


ce.register_tangent(Scaled, lambda opt, op, Y: Y.mul_(opt.factor))


def test_uniform_growth_beyond_the_range_of_a_double():
    an, _ = run(20, make=functools.partial(_scaled, 1e30))
    assert torch.allclose(an.exponents(), torch.full((27,), math.log(1e30), dtype=torch.float64), rtol=1e-14)


def test_divergence_keeps_what_was_whole():
    model = net()
    opt = _scaled(2.0, model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, method="svd", every=1)
    trained(model, opt, an, batches(5))  # blocks of 1 and 4 steps
    before = an.exponents()
    opt.factor = math.inf
    op = ce.HessianOperator(model, CE, *batches(5)[0])
    with pytest.raises(ce.NonFiniteError, match="step 5"):
        an.update(op)
    assert torch.equal(an.exponents(), before)
    assert len(an.extremes.steps) == 5
    with pytest.raises(ce.NonFiniteError, match="stopped at step 5"):
        an.update(op)
    with pytest.raises(ce.UnsupportedError, match="last block is lost"):
        an.singular_vectors("left")
    assert an.singular_vectors("right").shape == (27, 27)


def _scaled(factor, params, lr):
    opt = Scaled(params, lr=lr)
    opt.factor = factor
    return opt


def test_what_a_stopped_run_of_the_theta_block_has_lost_is_said():
    torch.manual_seed(0)
    model = nn.Linear(2, 3)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    an = ce.LyapunovAnalyzer(model, opt, method="svd", state="theta", every=2)
    x, zero = torch.randn(8, 2), torch.zeros(8, 3)
    for _ in range(5):
        an.update(ce.HessianOperator(model, nn.MSELoss(), x, zero))
        nn.MSELoss()(model(x), zero).backward()
        opt.step()
        opt.zero_grad()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e-18)
    with pytest.raises(ce.NonFiniteError, match="step 5"):
        an.update(ce.HessianOperator(model, nn.MSELoss(), 1e18 * x, zero))  # the curvature is finite, J Y is not
    with pytest.raises(ce.UnsupportedError, match="stopped at step 5"):
        an.exponents()
    assert an.extremes.steps.tolist() == [2, 4]
