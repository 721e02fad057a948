"""Directions that are kept for some steps and refreshed from what they were, and the switch on the dominant share."""

import copy
import json
import pickle

import cases
import pytest
import torch
import torch.distributed.checkpoint as dcp
from oracles import double_backward, gradient, relative
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import chaos_ext as ce
from chaos_ext.errors import NotConvergedError
from chaos_ext.spectra import warm

CE = nn.CrossEntropyLoss()
LR, K = 0.1, 4
TIGHT = {torch.float64: 1e-9, torch.float32: 1e-4}


def _setting(dtype=torch.float64, seed=0):
    model = cases.mlp(3, "tanh", seed=seed, width=12).to(dtype)
    batches = [cases.batch(n, cases.LOSSES["ce"][1]) for n in (16, 9, 12)]
    return model, [(x.to(dtype), y) for x, y in batches]


def _theta(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def _op(model, batch):
    return ce.HessianOperator(model, CE, *batch)


def _space(H, prune, k=K):
    """The eigenvectors that the set takes k of, by LAPACK."""
    values, V = torch.linalg.eigh(H)
    return {"dominant": V[:, -k:], "bulk": V[:, -k:], "negative": V[:, :k], "positive": V[:, -k:]}[prune]


def _along(g, V, prune):
    inside = V @ (V.T @ g)
    return inside if prune == "bulk" else g - inside


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("prune", ["dominant", "bulk", "positive", "negative"])
def test_steps_along_directions_of_the_last_refresh(prune, every, dtype):
    model, batches = _setting(dtype)
    opt = ce.CGD(model.parameters(), lr=LR, prune=prune, k=K, refresh_every=every, refresh_tol=TIGHT[dtype])
    for t in range(7):
        batch = batches[t % 3]
        exact = copy.deepcopy(model).double()
        x, y = batch[0].double(), batch[1]
        if t % every == 0:
            V = _space(double_backward(exact, CE, x, y), prune)
        before, g = _theta(model).double(), gradient(exact, CE, x, y)
        opt.step(_op(model, batch))
        limit = 1e-6 if dtype == torch.float64 else 1e-2
        assert relative((before - _theta(model).double()) / LR, _along(g, V, prune)) < limit
        info = opt.last_step
        assert info.age == t % every
        assert info.residual <= TIGHT[dtype]
        assert info.products >= K
        assert (info.n_negative, info.running_share) == (None, None)


def test_a_refresh_near_the_last_one_is_one_block_product():
    model, (batch, *_) = _setting()
    opt = ce.CGD(model.parameters(), lr=1e-5, prune="dominant", k=K, refresh_every=1, refresh_tol=1e-3)
    products = []
    for _ in range(4):
        opt.step(_op(model, batch))
        products.append(opt.last_step.products)
    assert products[0] > 10
    assert products[1:] == [5, 5, 5]  # four directions and a guard


def test_the_residual_reported_is_that_of_the_directions():
    model, (batch, other, _) = _setting()
    opt = ce.CGD(model.parameters(), lr=LR, prune="bulk", k=K, refresh_every=1, refresh_tol=0.3)
    opt.step(_op(model, batch))
    H, g, before = double_backward(model, CE, *other), gradient(model, CE, *other), _theta(model)
    op = _op(model, other)
    project_ = opt.tangent_projection(op)
    P = torch.eye(len(g), dtype=torch.float64)
    project_(P)
    opt.step(op)  # what was looked at is what is taken
    assert relative((before - _theta(model)) / LR, P @ g) < 1e-9
    V = torch.linalg.eigh(P).eigenvectors[:, -K:]
    values, S = torch.linalg.eigh(V.T @ H @ V)
    residual = (H @ V @ S - V @ S * values).norm(dim=0).max()
    assert opt.last_step.residual == pytest.approx(float(residual / _largest(H)), rel=0.2)
    assert 1e-3 < opt.last_step.residual <= 0.3


def _largest(H):
    return torch.linalg.eigvalsh(H).abs().max()


def test_a_new_direction_comes_up_through_the_guards():
    """An eigenvalue that grows from small to largest, by an operator that changes a little at each refresh."""
    n, Q = 60, torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    values = torch.linspace(-1, 1, n, dtype=torch.float64)
    values[-3:] = torch.tensor([4.0, 5.0, 6.0], dtype=torch.float64)
    drawn = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    X = torch.linalg.qr(torch.cat([Q[:, -3:], drawn], 1)).Q
    for grown in torch.linspace(0, 10, 21, dtype=torch.float64):
        now = values.clone()
        now[7] = grown
        H = Q * now @ Q.T
        found = warm.refine(H.__matmul__, X, 3, "largest", 1e-8, 10_000)
        X = found.vectors
    assert relative(found.values, torch.tensor([5.0, 6.0, 10.0], dtype=torch.float64)) < 1e-9
    assert relative((X[:, 2] @ Q[:, 7]).abs(), torch.ones(())) < 1e-6


@pytest.mark.parametrize("which", ["largest", "both_ends"])
@pytest.mark.parametrize("tol", [1e-1, 1e-4, 1e-10])
def test_refine_finds_the_pairs_whatever_the_start(which, tol):
    model, (batch, *_) = _setting()
    H = double_backward(model, CE, *batch)
    drawn = torch.randn(len(H), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = warm.refine(H.__matmul__, torch.linalg.qr(drawn).Q, 6, which, tol, 10_000)
    values, V = torch.linalg.eigh(H)
    scale = values.abs().max()
    Y, theta = found.vectors[:, :6], found.values
    assert relative(found.vectors.T @ found.vectors, torch.eye(8, dtype=torch.float64)) < 1e-10
    residual = (H @ Y - Y * theta).norm(dim=0).max() / scale
    assert residual <= tol * 1.01
    assert residual == pytest.approx(found.residual, rel=0.05, abs=1e-12)
    if tol < 1e-5:
        expected = values[-6:] if which == "largest" else torch.cat([values[:3], values[-3:]])
        assert relative(theta, expected) < 1e-9


def test_refine_refuses_what_it_cannot_do():
    n = 40
    A = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    X = torch.linalg.qr(A[:, :5]).Q
    with pytest.raises(NotConvergedError, match="refresh: the operator is not symmetric"):
        warm.refine(A.__matmul__, X, 3, "largest", 1e-3, 1000)
    with pytest.raises(NotConvergedError, match="refresh_tol"):
        warm.refine((A + A.T).__matmul__, X, 3, "largest", 1e-12, 8)
    with pytest.raises(ce.NonFiniteError, match="refresh: products"):
        warm.refine((A * float("nan")).__matmul__, X, 3, "largest", 1e-3, 1000)


def _data_set(model, batches):
    return lambda: ce.DatasetHessian(model, CE, batches)


@pytest.mark.parametrize("how", ["grad", "operator"])
def test_data_set_directions_are_asked_for_only_at_refreshes(how):
    model, batches = _setting()
    calls = []

    def make():
        calls.append(opt.steps)
        return ce.DatasetHessian(model, CE, batches)

    opt = ce.CGD(model.parameters(), lr=LR, prune="dominant", k=K, refresh_every=3, refresh_tol=1e-9)
    for t in range(7):
        if t % 3 == 0:
            H = sum(len(y) * double_backward(model, CE, x, y) for x, y in batches) / sum(len(y) for _, y in batches)
            V = _space(H, "dominant")
        x, y = batches[t % 3]
        before, g = _theta(model), gradient(model, CE, x, y)
        model.zero_grad()
        CE(model(x), y).backward()
        opt.step(None if how == "grad" else _op(model, (x, y)), curvature=make)
        assert relative((before - _theta(model)) / LR, _along(g, V, "dominant")) < 1e-6
    assert calls == [0, 3, 6]


def test_steps_between_refreshes_need_no_operator():
    model, (batch, *_) = _setting()
    opt = ce.CGD(model.parameters(), lr=LR, prune="dominant", k=K, refresh_every=2)
    opt.step(_op(model, batch))
    model.zero_grad()
    CE(model(batch[0]), batch[1]).backward()
    opt.step()
    assert opt.last_step.age == 1
    before = _theta(model)
    with pytest.raises(ValueError, match="directions are to be refreshed at this step"):
        opt.step()
    assert torch.equal(_theta(model), before)
    assert opt.steps == 2


def _run(seed, momentum=0.9, **options):
    model, batches = _setting(seed=seed)
    options = {"prune": "bulk", "k": K, "refresh_every": 3, "switch_share": 0.2, "switch_decay": 0.7, **options}
    return model, ce.CGD(model.parameters(), lr=LR, momentum=momentum, **options), batches


def _train(run, steps):
    model, opt, batches = run
    infos = []
    for t in steps:
        opt.step(_op(model, batches[t % 3]))
        infos.append(opt.last_step)
    return infos


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
@pytest.mark.parametrize("how", ["file", "deepcopy", "pickle", "distributed", "flat"])
@pytest.mark.filterwarnings("ignore")
def test_a_run_goes_on_bit_for_bit(how, steps, tmp_path):
    whole, run = _run(0), _run(0)
    expected = _train(whole, range(8))
    _train(run, range(steps))
    model, opt, batches = run
    if how in ("deepcopy", "pickle"):
        model, opt = copy.deepcopy((model, opt)) if how == "deepcopy" else pickle.loads(pickle.dumps((model, opt)))
    else:
        again, resumed, _ = _run(1)
        if how == "file":
            torch.save([model.state_dict(), opt.state_dict()], tmp_path / "s")
            states = torch.load(tmp_path / "s", weights_only=True)
            again.load_state_dict(states[0])
            resumed.load_state_dict(states[1])
        else:
            options = StateDictOptions(flatten_optimizer_state_dict=how == "flat")
            state = {"model": model.state_dict(), "opt": get_optimizer_state_dict(model, opt, options=options)}
            dcp.save(state, checkpoint_id=tmp_path / "d", no_dist=True)
            state = {"model": again.state_dict(), "opt": get_optimizer_state_dict(again, resumed, options=options)}
            dcp.load(state, checkpoint_id=tmp_path / "d", no_dist=True)
            again.load_state_dict(state["model"])
            set_optimizer_state_dict(again, resumed, state["opt"], options=options)
        model, opt = again, resumed
    found = _train((model, opt, batches), range(steps, 8))
    if how == "flat":  # what torch flattens has no place for them: found anew
        assert (found[0].age, found[0].step) == (0, steps)
        return
    assert torch.equal(_theta(model), _theta(whole[0]))
    assert found == expected[steps:]


DAMAGE = {
    "no text": lambda own, state: own.update(kept="x"),
    "another type": lambda own, state: own.update(kept=3),
    "no list": lambda own, state: own.update(kept='{"directions": {"values": 1}, "running": null, "on": false}'),
    "a share that is none": lambda own, state: own.update(kept=own["kept"].replace('"running": ', '"running": -')),
    "a share above 1": lambda own, state: own.update(kept=json.dumps({**json.loads(own["kept"]), "running": 5.0})),
    "switched on by nothing": lambda own, state: own.update(
        kept=json.dumps({**json.loads(own["kept"]), "running": None, "on": True})
    ),
    "directions of a step to come": lambda own, state: own.update(
        steps=json.loads(json.loads(own["kept"])["directions"])["step"]
    ),
    "a share before the first step": lambda own, state: own.update(
        steps=0, kept=json.dumps({**json.loads(own["kept"]), "directions": None})
    ),
    "no part": lambda own, state: state[1].pop("chaos_ext_directions"),
    "another shape": lambda own, state: state[1].update(chaos_ext_directions=torch.zeros(2, 3)),
    "NaN": lambda own, state: state[0]["chaos_ext_directions"].fill_(float("nan")),
    "not orthonormal": lambda own, state: state[0]["chaos_ext_directions"].mul_(2),
    "more directions": lambda own, state: own.update(kept=own["kept"].replace('\\"width\\": 5', '\\"width\\": 50')),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_states_are_refused_and_nothing_is_loaded(name):
    run, other = _run(0), _run(1)
    _train(run, range(4))
    _train(other, range(2))
    state = copy.deepcopy(run[1].state_dict())
    DAMAGE[name](state["chaos_ext"], state["state"])
    before, kept = copy.deepcopy(other[1].state_dict()), other[1].last_step
    with pytest.raises(ce.CheckpointError, match="state_dict"):
        other[1].load_state_dict(state)
    now = other[1].state_dict()
    assert now["param_groups"] == before["param_groups"]
    assert all(torch.equal(a[n], before["state"][i][n]) for i, a in now["state"].items() for n in a)
    assert other[1].last_step == kept


def test_other_options_or_parameters_start_anew():
    run = _run(0, switch_share=None)
    _train(run, range(2))
    run[1].k = 2
    (info,) = _train(run, [2])
    assert (info.age, info.pruned) == (0, len(_theta(run[0])) - 2)


def test_the_switch_follows_the_documented_average():
    model, batches = _setting()
    twin = copy.deepcopy(model)
    opt = ce.CGD(model.parameters(), lr=LR, prune="dominant", k=K, start=1, switch_share=0.6, switch_decay=0.7)
    plain = torch.optim.SGD(twin.parameters(), lr=LR, foreach=False)
    running, on, flips = None, False, []
    for t in range(25):
        x, y = batches[t % 3]
        H, g = double_backward(twin, CE, x, y), gradient(twin, CE, x, y)
        V = _space(H, "dominant")
        share = float((V.T @ g).square().sum() / g.square().sum())
        if t >= 1:
            running = share if running is None else 0.7 * running + 0.3 * share
            on = on or running > 0.6
        start = 0
        d = _along(g, V, "dominant") if on else g
        for p in twin.parameters():
            p.grad = d[start : start + p.numel()].view(p.shape)
            start += p.numel()
        plain.step()
        opt.step(_op(model, (x, y)))
        assert relative(_theta(model), _theta(twin)) < 1e-8
        assert opt.last_step.pruned == (K if on else 0)
        if t:
            assert opt.last_step.running_share == pytest.approx(running, rel=1e-7)
        flips.append(on)
    assert flips[0] is False
    assert flips[-1] is True


def test_tangent_maps_know_the_switch_and_the_kept_directions():
    model, opt, batches = _run(0, momentum=0.0, switch_share=None, prune="dominant")
    _train((model, opt, batches), range(2))
    op = _op(model, batches[0])
    Y = torch.randn(op.shape[0], 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    H, before, g = double_backward(model, CE, *batches[0]), _theta(model), gradient(model, CE, *batches[0])
    found = ce.TangentMap(opt).apply_(op, Y.clone())
    P = torch.eye(len(g), dtype=torch.float64)
    opt.tangent_projection(op)(P)
    assert relative(found, Y - LR * P @ (H @ Y)) < 1e-10
    opt.step(op)
    assert opt.last_step.age == 2
    assert relative((before - _theta(model)) / LR, P @ g) < 1e-9
    off = ce.CGD(model.parameters(), lr=LR, prune="dominant", k=K, switch_share=0.999999)
    assert off.tangent_projection(_op(model, batches[0])) is None
    for options in ({"refresh_every": 2}, {"switch_share": 0.0}):
        other = ce.CGD(model.parameters(), lr=LR, prune="dominant", k=K, **options)
        with pytest.raises(ce.UnsupportedError, match="jacobian='frozen'"):
            ce.TangentMap(other, jacobian="true").apply_(_op(model, batches[0]), Y.clone())


REFUSED = {
    "zero": ({"refresh_every": 0}, "refresh_every: expected an int >= 1"),
    "no int": ({"refresh_every": True}, "refresh_every: expected an int >= 1"),
    "no k": ({"refresh_every": 2, "prune": "negative", "k": None}, "refresh_every: expected k >= 1"),
    "random": ({"refresh_every": 2, "prune": "negative", "order": "random"}, "refresh_every: expected k >= 1"),
    "another dtype": ({"refresh_every": 2, "spectrum_dtype": torch.float64}, "refresh_every: expected spectrum=None"),
    "tolerance": ({"refresh_tol": 0.0}, "refresh_tol: expected 0 < refresh_tol < 1"),
    "share": ({"switch_share": 1.0}, "switch_share: expected 0 <= switch_share < 1"),
    "NaN": ({"switch_share": float("nan")}, "switch_share: expected a number, got nan"),
    "decay": ({"switch_decay": 1.0}, "switch_decay: expected 0 <= switch_decay < 1"),
    "another set": ({"switch_share": 0.5, "prune": "negative"}, "switch_share: expected prune='dominant' or 'bulk'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_are_refused_by_name(name):
    options, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        ce.CGD(_setting()[0].parameters(), lr=LR, **{"prune": "dominant", "k": K, **options})


@pytest.mark.parametrize("kind", ["spectrum", "matrix", "curvature", "function"])
def test_directions_are_refreshed_from_operators_only(kind):
    model, (batch, *_) = _setting()
    opt = ce.CGD(model.parameters(), lr=LR, prune="dominant", k=K, refresh_every=2)
    op, before = _op(model, batch), _theta(model)
    spec = ce.spectrum(op)
    given = {
        "spectrum": (spec, None),
        "matrix": (op.dense(), None),
        "curvature": (op, spec),
        "function": (op, lambda: spec),
    }
    with pytest.raises(ValueError, match="refresh_every: directions are refreshed from an operator"):
        opt.step(given[kind][0], curvature=given[kind][1])
    assert torch.equal(_theta(model), before)
    assert opt.steps == 0


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e22])
def test_a_refresh_does_not_depend_on_the_unit_of_the_loss(scale):
    """In float32 the squares of such products vanish, or overflow."""
    g = torch.Generator().manual_seed(0)
    B = torch.randn(60, 60, generator=g, dtype=torch.float64)
    A = ((B + B.T) * scale).float()
    start = torch.linalg.qr(torch.randn(60, 6, generator=g))[0]
    found = warm.refine(lambda X: A @ X, start, 2, "largest", 1e-4, 10_000)
    expected = torch.linalg.eigvalsh(A.double())[-2:]
    assert float(((found.values - expected) / expected[-1]).abs().max()) < 1e-6
    assert float((found.vectors.T @ found.vectors - torch.eye(6)).abs().max()) < 1e-5
