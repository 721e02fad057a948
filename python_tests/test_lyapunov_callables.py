"""What users give to lyapunov_spectrum: wrong tangents, orbits that escape, steps in place; and GALI on tori."""

import math

import pytest
import torch

import chaos_ext as ce
from chaos_ext import systems

F64 = torch.float64


def _henon_jacobian(x):
    return torch.stack([torch.stack([-2.8 * x[0], torch.ones_like(x[0])]), torch.tensor([0.3, 0.0], dtype=x.dtype)])


WRONG = {
    "J instead of J V": (ValueError, "linear", lambda x, V: _henon_jacobian(x)),
    "J * V": (ValueError, "linear", lambda x, V: _henon_jacobian(x) * V),
    "V J": (ValueError, "linear", lambda x, V: V @ _henon_jacobian(x)),
    "J V + c": (ValueError, "linear", lambda x, V: _henon_jacobian(x) @ V + 1.0),
    "normalised": (ValueError, "linear", lambda x, V: torch.nn.functional.normalize(_henon_jacobian(x) @ V, dim=0)),
    "absolute": (ValueError, "linear", lambda x, V: (_henon_jacobian(x) @ V) ** 2),
    "one column": (ValueError, "shape", lambda x, V: (_henon_jacobian(x) @ V)[:, :1]),
    "a vector": (ValueError, "shape", lambda x, V: (_henon_jacobian(x) @ V)[:, 0]),
    "float32": (TypeError, "float64", lambda x, V: (_henon_jacobian(x) @ V).float()),
    "numpy": (TypeError, "ndarray", lambda x, V: (_henon_jacobian(x) @ V).numpy()),
    "nothing": (TypeError, "NoneType", lambda x, V: None),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("gali", [False, True])
def test_tangents_that_are_no_j_v_are_refused_by_name(name, gali):
    error, match, tangent = WRONG[name]
    s = systems.henon()
    with pytest.raises(error, match=rf"^tangent: .*{match}"):
        ce.lyapunov_spectrum(s.step, tangent, s.x0, steps=100, gali=gali)


@pytest.mark.parametrize("k", [1, 3])
def test_a_jacobian_is_refused_for_fewer_columns_too(k):
    s = systems.lorenz96(8, 8.0)
    eye = torch.eye(8, dtype=F64)
    with pytest.raises(ValueError, match="tangent: expected it to return J"):
        ce.lyapunov_spectrum(s.step, lambda x, V: s.tangent(x, eye), s.x0, steps=10, k=k)


@pytest.mark.parametrize("h", [1e-4, 1e-7])
def test_tangents_by_differences_are_accepted(h):
    s = systems.henon()

    def differences(x, V):
        return torch.stack([(s.step(x + h * v) - s.step(x - h * v)) / (2 * h) for v in V.T], 1)

    exponents = ce.lyapunov_spectrum(s.step, differences, s.x0, steps=500)
    exact = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=500)
    assert exponents.tolist() == pytest.approx(exact.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("step", "error", "match"),
    [
        (lambda x: x[:1], ValueError, "shape"),
        (lambda x: x.float(), TypeError, "float64"),
        (lambda x: x.tolist(), TypeError, "list"),
    ],
)
def test_steps_that_return_no_state_are_refused_by_name(step, error, match):
    with pytest.raises(error, match=rf"^step: .*{match}"):
        ce.lyapunov_spectrum(step, lambda x, V: V, torch.ones(2, dtype=F64), steps=5)


def _assert_finite(result):
    for t in (result.exponents, result.x, result.directions, result.history.exponents):
        assert bool(torch.isfinite(t).all())
    k = len(result.exponents)
    eye = torch.eye(k, dtype=result.directions.dtype)
    assert torch.allclose(result.directions.T @ result.directions, eye, atol=1e-5)
    assert int(result.history.steps[-1]) == result.steps + result.transient


@pytest.mark.parametrize("qr_every", ["auto", 1, 3, 50])
@pytest.mark.parametrize("gali", [False, True])
@pytest.mark.parametrize("start", [(2.0, 2.0), (1.3, 0.0), (-1.5, 0.2), (0.63, 1.2)])
def test_an_orbit_that_escapes_leaves_the_last_good_block(start, gali, qr_every):
    """The determinant of Henon's map is -0.3 everywhere: whatever is kept has exponents of sum ln 0.3."""
    s = systems.henon()
    with pytest.raises(ce.NonFiniteError, match="step") as error:
        ce.lyapunov_spectrum(
            s.step, s.tangent, torch.tensor(start, dtype=F64), steps=1000, gali=gali, qr_every=qr_every
        )
    result = error.value.result
    if result is None:
        assert qr_every == 50
        return
    _assert_finite(result)
    assert float(result.exponents.sum()) == pytest.approx(math.log(0.3), abs=1e-3)
    x = torch.tensor(start, dtype=F64)
    for _ in range(result.steps):
        x = s.step(x)
    assert torch.equal(result.x, x)
    again = ce.lyapunov_spectrum(
        s.step,
        s.tangent,
        torch.tensor(start, dtype=F64),
        steps=result.steps,
        gali=gali,
        qr_every=qr_every,
        full_output=True,
    )
    assert torch.equal(again.exponents, result.exponents)
    assert torch.equal(again.directions, result.directions)
    assert (result.log_gali is None) == (not gali)
    assert not gali or torch.equal(again.log_gali, result.log_gali)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_escapes_of_other_kinds(dtype):
    def square(x):
        return torch.stack([x[0] * x[0], x[1] / 2])

    def tangent(x, V):
        return torch.stack([2 * x[0] * V[0], V[1] / 2])

    x0 = torch.tensor([1.01, 1.0], dtype=dtype)
    with pytest.raises(ce.NonFiniteError) as error:
        ce.lyapunov_spectrum(square, tangent, x0, steps=1000)
    _assert_finite(error.value.result)
    assert float(error.value.result.exponents[1]) == pytest.approx(-math.log(2), abs=1e-2)

    def poisoned(x, V):  # deviations that overflow while the orbit stays
        return V * 1e200 if len(calls) > 20 else calls.append(0) or 2 * V

    calls = []
    with pytest.raises(ce.NonFiniteError) as error:
        ce.lyapunov_spectrum(lambda x: x, poisoned, x0, steps=1000, qr_every=7)
    _assert_finite(error.value.result)
    assert error.value.result.exponents.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-5)


def test_an_escape_during_the_transient_has_no_result():
    s = systems.henon()
    with pytest.raises(ce.NonFiniteError) as error:
        ce.lyapunov_spectrum(s.step, s.tangent, torch.tensor([2.0, 2.0], dtype=F64), steps=100, transient=100)
    assert error.value.result is None


def _in_place(step):
    def run(x):
        x.copy_(step(x))
        return x

    return run


def _same_memory(step, memory):
    def run(x):
        memory.copy_(step(x))
        return memory

    return run


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("how", ["step", "memory", "tangent", "tangent memory", "x in tangent", "all"])
def test_callables_that_write_in_place_change_neither_x0_nor_results(how, k):
    s = systems.henon()
    expected = ce.lyapunov_spectrum(s.step, s.tangent, s.x0.clone(), steps=300, k=k, full_output=True)
    step, tangent, memory = s.step, s.tangent, torch.empty(2, k, dtype=F64)
    if how in ("step", "all"):
        step = _in_place(s.step)
    if how == "memory":
        step = _same_memory(s.step, torch.empty(2, dtype=F64))
    if how == "tangent":
        tangent = lambda x, V: V.copy_(s.tangent(x, V))  # noqa: E731
    if how == "tangent memory":
        tangent = lambda x, V: memory.copy_(s.tangent(x, V))  # noqa: E731
    if how in ("x in tangent", "all"):
        tangent = lambda x, V: (s.tangent(x, V), x.zero_())[0]  # noqa: E731
    x0 = s.x0.clone()
    result = ce.lyapunov_spectrum(step, tangent, x0, steps=300, k=k, full_output=True)
    assert torch.equal(x0, s.x0)
    for name in ("exponents", "x", "directions", "errors"):
        assert torch.equal(getattr(result, name), getattr(expected, name))


def test_a_step_in_place_that_escapes_keeps_x0_and_the_last_good_state():
    s = systems.henon()
    x0 = torch.tensor([2.0, 2.0], dtype=F64)
    with pytest.raises(ce.NonFiniteError) as error:
        ce.lyapunov_spectrum(_in_place(s.step), s.tangent, x0, steps=100)
    assert x0.tolist() == [2.0, 2.0]
    _assert_finite(error.value.result)


def _twist(x):
    """Two uncoupled twist maps (q, p) -> (q + p + sin(p) / 2, p): each orbit winds around a two-torus."""
    q, p = x[0::2], x[1::2]
    return torch.stack([q + p + torch.sin(p) / 2, p], 1).reshape(-1)


def _twist_tangent(x, V):
    p = x[1::2].unsqueeze(1)
    q = V[0::2] + (1 + torch.cos(p) / 2) * V[1::2]
    return torch.stack([q, V[1::2]], 1).reshape(4, -1)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_gali_of_a_two_torus_stays_for_two_deviations_whatever_k(k):
    """GALI_2 stays away from zero on a torus of dimension two, GALI_3 and GALI_4 fall as t^-2 and t^-4."""
    x0 = torch.tensor([0.1, 1.0, 0.2, math.sqrt(2)], dtype=F64)
    runs = [
        ce.lyapunov_spectrum(_twist, _twist_tangent, x0, steps=t, k=k, gali=True, full_output=True, qr_every=10)
        for t in (500, 4000)
    ]
    early, late = (r.log_gali for r in runs)
    assert float(late[1]) > -2.5
    assert abs(float(late[1] - early[1])) < 0.05
    for j, power in ((2, 2), (3, 4)):
        if k > j:
            assert float(late[j] - early[j]) == pytest.approx(-power * math.log(8), rel=0.05)
    assert runs[1].exponents.abs().max() < 0.01


def test_without_gali_the_start_is_still_the_identity():
    s = systems.henon()
    r = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=1, full_output=True)
    J = s.tangent(s.x0, torch.eye(2, dtype=F64))
    R = torch.linalg.qr(J).R.diagonal().abs().log()
    assert r.exponents.tolist() == pytest.approx(R.sort(descending=True).values.tolist(), abs=1e-14)
