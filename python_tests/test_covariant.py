"""Covariant Lyapunov vectors against eigenvectors, flows, inverse maps, and what is published of them."""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD
from training import CE, RUNS, batches, small_model, take_step

import chaos_ext as ce
from chaos_ext.dynamics.benettin import Benettin
from chaos_ext.dynamics.covariant import covariant_of
from chaos_ext.dynamics.factors import Record
from chaos_ext.dynamics.start import start_block


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _sine(a, b):
    """Of the angle between the columns of a and of b."""
    a, b = a / a.norm(dim=0), b / b.norm(dim=0)
    return (b - a * (a * b).sum(0)).norm(dim=0)


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("every", [1, 7])
def test_a_constant_matrix_has_its_eigenvectors(every, k):
    """Oblique ones, with eigenvalues of both signs; the frames of QR are far from them."""
    X, values = _random(5, 5), torch.tensor([2.0, -1.5, 1.1, -0.7, 0.4], dtype=torch.float64)
    A = X @ torch.diag(values) @ torch.linalg.inv(X)
    found = ce.covariant_vectors(
        lambda x: x, lambda x, V: A @ V, _random(5), steps=21, k=k, transient=300, settle=300, every=every
    )
    k = k or 5
    assert found.steps.tolist() == list(range(300, 322, every))
    assert found.stacked().shape == (len(found), 5, k)
    for V in found:
        assert float(_sine(V, X[:, :k]).max()) < 1e-10
        assert torch.allclose(V.norm(dim=0), torch.ones(k, dtype=torch.float64))
    assert torch.allclose(found.exponents, values[:k].abs().log(), atol=1e-12)
    # Eigenvectors 0 to 2 expand, the others contract: the angle of their spans, by another route.
    if k == 5:
        a, b = (torch.linalg.qr(B).Q for B in (X[:, :3], X[:, 3:]))
        angle = math.acos(float(torch.linalg.svdvals(a.T @ b)[0]))
        assert found.angles.tolist() == pytest.approx([angle] * len(found.angles), abs=1e-7)
        assert (found.expanding, found.neutral) == (3, 0)
    else:
        assert bool(found.angles.isnan().all())  # nothing contracts among the first three


@pytest.mark.parametrize(
    ("name", "k", "every", "settle", "tol"),
    [("henon", None, 1, 150, 1e-9), ("henon", None, 4, 150, 1e-9), ("lorenz96", 12, 10, 1000, math.inf)],
)
def test_the_map_takes_each_vector_into_the_next_one(name, k, every, settle, tol):
    """Any way back is covariant, also before it has forgotten its start; its growth is that of QR."""
    s, steps = getattr(ce.systems, name)(), 200
    found = ce.covariant_vectors(
        s.step, s.tangent, s.x0, steps=steps, k=k, transient=settle, settle=settle, every=every, tol=tol
    )
    known = found.errors[-1] <= tol
    assert bool(known.all())
    at = found.block_steps.tolist()
    for i in range(len(found) - 1):
        x, V = found.x[i], found[i]
        for _ in range(every):
            x, V = s.step(x), s.tangent(x, V)
        first, last = at.index(int(found.steps[i])), at.index(int(found.steps[i + 1]))
        expected = found[i + 1] * found.growth[first:last].sum(0).exp()
        assert torch.allclose(V[:, known], expected[:, known], rtol=1e-7, atol=1e-7)
        assert torch.allclose(x, found.x[i + 1], rtol=1e-12)
    # ln R_ii = ln growth_i + ln C_ii at the end - ln C_ii at the beginning, whatever the frames: QR's own exponents.
    qr = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=steps, transient=settle, k=k, qr_every=every)
    tilt = [found.coefficients[i].diagonal().log() for i in (0, -1)]
    ours = (found.growth.sum(0) + tilt[1] - tilt[0])[known] / steps
    assert ours.sort().values.tolist() == pytest.approx(qr.sort().values.tolist()[len(qr) - len(ours) :], abs=1e-9)
    assert torch.allclose(found.exponents[known], found.growth.sum(0)[known] / steps)


def test_henon_s_directions_are_those_of_the_map_and_of_its_inverse():
    """Unstable: anything pushed forwards from far back; stable: anything pulled back from far ahead by the inverse."""
    s, n = ce.systems.henon(), 60
    found = ce.covariant_vectors(s.step, s.tangent, s.x0, steps=200, transient=200, settle=200)
    eye = torch.eye(2, dtype=torch.float64)
    J = [s.tangent(x, eye) for x in found.x]
    for t in range(n, len(found) - n):
        unstable, stable = _random(2, 1, seed=t), _random(2, 1, seed=t + 1)
        for i in range(t - n, t):
            unstable = J[i] @ unstable / unstable.norm()
        for i in range(t + n - 1, t - 1, -1):
            stable = torch.linalg.solve(J[i], stable / stable.norm())
        assert float(_sine(found[t], torch.cat([unstable, stable], 1)).max()) < 1e-9
        angle = math.asin(min(1.0, float(_sine(unstable, stable))))
        assert float(found.angles[t]) == pytest.approx(angle, abs=1e-6)


def test_henon_has_tangencies_and_lozi_has_none():
    """Ginelli et al. 2007: the angles between stable and unstable directions reach zero for Henon's map and stay away
    from it for Lozi's, which is hyperbolic, at the same parameters."""
    angles = {}
    for name, s in (("henon", ce.systems.henon()), ("lozi", ce.systems.lozi(1.4, 0.3))):
        found = ce.covariant_vectors(s.step, s.tangent, s.x0, steps=8000, transient=200, settle=200)
        assert not bool(found.angles.isnan().any())
        angles[name] = found.angles.sort().values
    assert float(angles["henon"][0]) < 2e-3
    assert float(angles["lozi"][0]) > 0.5
    # The density of Henon's angles does not vanish at zero: there are about twice as many below twice an angle.
    below = [int((angles["henon"] < a).sum()) for a in (0.02, 0.04, 0.08)]
    assert below[0] >= 20
    assert [below[1] / below[0], below[2] / below[1]] == pytest.approx([2, 2], rel=0.5)


def test_the_cat_map_s_spaces_are_orthogonal():
    s = ce.systems.cat_map()
    found = ce.covariant_vectors(s.step, s.tangent, s.x0, steps=20, transient=50, settle=50)
    assert found.angles.tolist() == pytest.approx([math.pi / 2] * 21)
    golden = (1 + math.sqrt(5)) / 2
    assert found.exponents.tolist() == pytest.approx([2 * math.log(golden), -2 * math.log(golden)], abs=1e-12)


def test_the_neutral_vector_of_a_flow_is_its_velocity():
    """But for the error of the Runge-Kutta step, of fourth order."""

    def field(x):
        return torch.stack([10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])

    worst = []
    for dt, n in ((0.01, 3000), (0.005, 6000)):
        s = ce.systems.lorenz63(dt=dt)
        found = ce.covariant_vectors(
            s.step, s.tangent, s.x0, steps=n // 5, transient=n, settle=n, every=20, expanding=1, neutral=1
        )
        worst.append(max(float(_sine(V[:, 1:2], field(x).unsqueeze(1))) for x, V in zip(found.x, found)))
        assert (found.expanding, found.neutral) == (1, 1)
        assert bool((found.angles > 0).all())
    assert worst[0] < 1e-5
    assert worst[1] < worst[0] / 8


def test_what_is_not_known_is_nan():
    """Without steps beyond the window its last vectors depend on where the way back began."""
    s = ce.systems.henon()
    cut = ce.covariant_vectors(s.step, s.tangent, s.x0, steps=100, transient=100, settle=0)
    whole = ce.covariant_vectors(s.step, s.tangent, s.x0, steps=100, transient=100, settle=200)
    unknown = cut.coefficients.isnan().any(1)
    assert unknown[-1].tolist() == [False, True]  # the first vector never depends on it
    assert not bool(unknown[0].any())
    known = ~unknown
    assert torch.equal(known, cut.errors <= 1e-6)
    assert bool(((cut.stacked() - whole.stacked()).norm(dim=1)[known] <= 2e-6).all())
    assert torch.equal(cut.angles.isnan(), unknown[:, 1])
    assert torch.equal(cut.growth.isnan(), unknown[1:])
    assert bool(torch.isfinite(cut.exponents).all())


def test_equal_exponents_have_no_vectors_of_their_own():
    A = torch.diag(torch.tensor([3.0, 2.0, 2.0, 0.5], dtype=torch.float64))
    R = torch.linalg.qr(_random(4, 4)).Q
    found = ce.covariant_vectors(
        lambda x: x, lambda x, V: R @ A @ R.T @ V, _random(4), steps=5, transient=200, settle=200
    )
    assert found.coefficients.isnan().any(1).any(0).tolist() == [False, False, True, False]
    assert bool(found.angles.isfinite().all())  # of the spaces, which are known


def test_a_single_vector_and_the_number_of_them():
    s = ce.systems.lorenz96()
    found = ce.covariant_vectors(s.step, s.tangent, s.x0, steps=5, k=1, transient=100, settle=5)
    first = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=100, k=1, full_output=True)
    assert torch.allclose(found[0].abs(), first.directions.abs())
    with pytest.raises(ValueError, match="k: expected at most 64"):
        ce.covariant_vectors(lambda x: x, lambda x, V: V, _random(65), steps=5, transient=1)


def test_refusals():
    s = ce.systems.henon()
    good = {"steps": 5, "transient": 5, "settle": 5}
    for options, message in (
        ({"steps": 0}, "steps: expected an int >= 1"),
        ({"transient": 0}, "transient: expected an int >= 1"),
        ({"settle": -1}, "settle: expected an int >= 0"),
        ({"every": 0}, "every: expected an int >= 1"),
        ({"k": 3}, "k: expected an int in 1..d = 2"),
        ({"tol": 0.0}, "tol: expected a number > 0"),
        ({"expanding": 3}, r"expanding: expected an int in 0..k = 2"),
        ({"neutral": -1}, r"neutral: expected an int in 0..k = 2"),
    ):
        with pytest.raises(ValueError, match=message):
            ce.covariant_vectors(s.step, s.tangent, s.x0, **{**good, **options})
    with pytest.raises(ValueError, match="tangent: expected tangent"):
        ce.covariant_vectors(s.step, lambda x, V: s.tangent(x, torch.eye(2).double()), s.x0, **good)
    with pytest.raises(ce.MemoryBudgetError, match="raise every"):
        ce.covariant_vectors(s.step, s.tangent, s.x0, **{**good, "steps": 10**6}, memory_budget=1000)
    singular = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64))
    with pytest.raises(ce.UnsupportedError, match=r"singular.*fewer vectors"):
        ce.covariant_vectors(lambda x: x, lambda x, V: singular @ V, s.x0, **good)
    with pytest.raises(ce.NonFiniteError, match=r"step 1[0-9]: "):
        ce.covariant_vectors(lambda x: x**3, lambda x, V: V, torch.full((2,), 1.03).double(), **{**good, "steps": 100})


@pytest.mark.parametrize("wrong", [{"tol": 0.0}, {"tol": "tight"}, {"expanding": 3}, {"neutral": -1}, {"k": 3}])
def test_arguments_are_looked_at_before_the_first_step(wrong):
    henon, taken = ce.systems.henon(), []

    def step(x):
        taken.append(x)
        return henon.step(x)

    with pytest.raises(ValueError, match=next(iter(wrong))):
        ce.covariant_vectors(step, henon.tangent, henon.x0, steps=20, transient=10, settle=10, **wrong)
    assert not taken


def test_progress_and_arguments_that_callables_write_to():
    s, seen = ce.systems.henon(), []

    def step(x):
        new = s.step(x)
        x.fill_(math.nan)
        return new

    def tangent(x, V):
        JV = s.tangent(x, V)
        x.fill_(math.nan)
        return V.copy_(JV)

    options = {"steps": 10, "transient": 20, "settle": 5}
    rude = ce.covariant_vectors(step, tangent, s.x0, **options, progress=lambda done, of: seen.append((done, of)))
    kind = ce.covariant_vectors(s.step, s.tangent, s.x0, **options)
    assert torch.equal(rude.coefficients.nan_to_num(), kind.coefficients.nan_to_num())
    assert torch.equal(rude.x, kind.x)
    assert seen == [(i, 15) for i in range(1, 16)]


@pytest.mark.parametrize("name", ["sgd", "heavy_ball", "adam"])
def test_vectors_of_a_training_run_are_carried_by_its_tangent_map(name):
    cls, options = RUNS[name]
    model = small_model()
    opt = cls(model.parameters(), **options)
    tangent, k, n = ce.TangentMap(opt), 4, 400
    Y = start_block(tangent.size, k, torch.float64, torch.device("cpu"), seed=1)
    run = Benettin(Y, 10, 100, record=Record(k, every=10))
    data = [batches(4)[i % 4] for i in range(n)]
    maps, units = [], None
    for x, y in data:
        op = ce.HessianOperator(model, CE, x, y)
        units = tangent.units(op) if units is None else units
        maps.append(tangent.apply_(op, torch.eye(tangent.size, dtype=torch.float64), units))
        run.advance(lambda Y, J=maps[-1]: (J @ Y, None))
        take_step(model, opt, x, y, op)
    found = covariant_of(run, last=300, tol=math.inf)  # many exponents are equal, but any way back is covariant
    assert found.steps.tolist() == list(range(100, 301, 10))
    assert found.growth.shape[0] + 1 == len(found.block_steps) == len(found.angles)
    at = found.block_steps.tolist()
    for i, t in enumerate(found.steps.tolist()[:-1]):
        V = found[i]
        for J in maps[t : t + 10]:
            V = J @ V
        grown = found.growth[at.index(t) : at.index(t + 10)].sum(0).exp()
        assert torch.allclose(V, found[i + 1] * grown, rtol=1e-8, atol=1e-8)
    strict = covariant_of(run, last=300)
    assert bool(torch.isfinite(strict.coefficients[:, :, 0]).all())
    assert torch.equal(strict.coefficients[:, :, 0], found.coefficients[:, :, 0])


def test_full_batch_descent_on_a_quadratic_has_the_hessian_s_eigenvectors():
    x = _random(40, 4, seed=3) * torch.tensor([2.0, 1.5, 1.0, 0.5], dtype=torch.float64)
    model, y = nn.Linear(4, 1, bias=False).double(), _random(40, 1, seed=4)
    opt, loss_fn = SGD(model.parameters(), lr=0.3), nn.MSELoss()
    tangent, run = ce.TangentMap(opt), Benettin(torch.eye(4, dtype=torch.float64), transient=100, record=Record(4))
    op = ce.HessianOperator(model, loss_fn, x, y)
    for _ in range(600):
        run.advance(lambda Y: (tangent.apply_(op, Y), None))
    found, spec = covariant_of(run), ce.spectrum(op)
    exponents, order = (1 - 0.3 * spec.eigenvalues).abs().log().sort(descending=True)
    assert torch.allclose(found.exponents, exponents, atol=1e-9)
    middle = len(found) // 2
    aligned = ce.direction_alignment(found[middle], spec.eigenvectors(order))
    assert torch.allclose(aligned.cosines.abs(), torch.eye(4, dtype=torch.float64), atol=1e-8)
    assert torch.allclose(aligned.shares, torch.ones(4, dtype=torch.float64))
    assert aligned.theta.tolist() == pytest.approx([1.0] * 4)


def test_alignment_of_directions():
    V = torch.linalg.qr(_random(6, 2)).Q
    D = _random(12, 3, seed=5)
    D[:, 2] = math.nan
    found = ce.direction_alignment(D, V)
    part = D[:6, 0]
    assert found.cosines[0].tolist() == pytest.approx((V.T @ part / part.norm()).tolist())
    assert float(found.shares[0]) == pytest.approx(float((V @ (V.T @ part)).norm() ** 2 / part.norm() ** 2))
    assert float(found.theta[0]) == pytest.approx(float(part.norm() ** 2 / D[:, 0].norm() ** 2))
    assert found.baseline == pytest.approx(2 / 6)
    assert bool(found.shares[2].isnan())
    with pytest.raises(ValueError, match="eigenvectors: expected orthonormal"):
        ce.direction_alignment(D, 2 * V)
    for bad in (D[:5], D[:, 0]):
        with pytest.raises(ValueError, match="directions, eigenvectors: expected"):
            ce.direction_alignment(bad, V)


def test_a_run_without_a_record_has_no_vectors():
    run = Benettin(torch.eye(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="records its factors"):
        covariant_of(run)
    assert "record" not in run.state_dict()


def test_a_map_without_a_tangent_is_linearised():
    s = ce.systems.henon()
    options = {"steps": 30, "transient": 50, "settle": 50}
    given = ce.covariant_vectors(s.step, s.tangent, s.x0, **options)
    found = ce.covariant_vectors(s.step, x0=s.x0, **options)
    assert torch.allclose(found.stacked(), given.stacked(), atol=1e-9)
    with pytest.raises(TypeError, match="x0: expected a float32 or float64 tensor, got NoneType"):
        ce.covariant_vectors(s.step, steps=3)
