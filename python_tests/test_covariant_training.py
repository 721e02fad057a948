"""Covariant vectors of a LyapunovAnalyzer: those of the run beside which it stood, also after it was resumed."""

import pytest
import torch
from torch.optim import SGD
from training import CE, batches, small_model, take_step

import chaos_ext as ce

OPTIONS = {"lr": 0.3, "momentum": 0.5}


def _analyzed(n, transient=20, state=None, k=3):
    """An analyzer after n steps, resumed at step 60 from a state if one is given, and the maps of all steps."""
    model = small_model()
    opt = SGD(model.parameters(), **OPTIONS)
    an = ce.LyapunovAnalyzer(model, opt, k=k, transient=transient, covariant=True)
    maps, saved, units = [], None, None
    for i in range(n):
        x, y = batches(4)[i % 4]
        op = ce.HessianOperator(model, CE, x, y)
        units = an.tangent.units(op) if units is None else units
        maps.append(an.tangent.apply_(op, torch.eye(an.tangent.size, dtype=torch.float64), units))
        if i == 60:
            saved = an.state_dict()
            if state is not None:
                an = ce.LyapunovAnalyzer(model, opt, k=k, transient=transient, covariant=True)
                an.load_state_dict(state)
        an.update(op)
        take_step(model, opt, x, y, op)
    return an, maps, saved


def test_the_tangent_maps_of_the_run_carry_the_vectors():
    an, maps, _ = _analyzed(150)
    found = an.covariant_vectors(tol=float("inf"))
    steps = found.steps.tolist()
    assert steps[0] == 20
    assert len(steps) >= 5
    for i in range(len(steps) - 1):
        V = found[i]
        for J in maps[steps[i] : steps[i + 1]]:
            V = J @ V
        assert torch.allclose(V / V.norm(dim=0), found[i + 1], rtol=1e-7, atol=1e-7)
    assert torch.allclose(found.exponents[0], an.exponents()[0], atol=0.05)
    assert bool(torch.isfinite(an.covariant_vectors().coefficients[:, :, 0]).all())


def test_a_resumed_analyzer_has_the_same_vectors():
    whole, _, saved = _analyzed(120)
    resumed, _, _ = _analyzed(120, state=saved)
    a, b = whole.covariant_vectors(), resumed.covariant_vectors()
    assert torch.equal(a.steps, b.steps)
    assert torch.equal(a.stacked().nan_to_num(), b.stacked().nan_to_num())
    assert torch.equal(a.growth.nan_to_num(), b.growth.nan_to_num())


def test_states_with_and_without_vectors_do_not_mix(tmp_path):
    an, _, _ = _analyzed(30)
    plain = ce.LyapunovAnalyzer(an.model, an.tangent.opt, k=3, transient=20)
    with pytest.raises(ce.CheckpointError, match="covariant"):
        an.load_state_dict(plain.state_dict())
    damaged = an.state_dict()
    damaged["run"]["record"]["steps"] = [0]
    with pytest.raises(ce.CheckpointError, match="record"):
        an.load_state_dict(damaged)
    an.save(tmp_path / "state")
    an.load(tmp_path / "state")
    with pytest.raises(ValueError, match="made with covariant=True"):
        plain.covariant_vectors()


def test_exponents_are_those_without():
    an, _, _ = _analyzed(50)
    model = small_model()
    opt = SGD(model.parameters(), **OPTIONS)
    plain = ce.LyapunovAnalyzer(model, opt, k=3, transient=20)
    for i in range(50):
        x, y = batches(4)[i % 4]
        op = ce.HessianOperator(model, CE, x, y)
        plain.update(op)
        take_step(model, opt, x, y, op)
    assert torch.equal(an.exponents(), plain.exponents())
    assert "record" not in plain.state_dict()["run"]


def test_the_number_of_vectors_is_limited():
    model = small_model(width=12)
    with pytest.raises(ValueError, match="at most 64"):
        ce.LyapunovAnalyzer(model, SGD(model.parameters(), lr=0.1), covariant=True, k=65)
