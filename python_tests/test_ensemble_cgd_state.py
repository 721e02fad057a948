"""CGD on an Ensemble: what fails, what is kept, what is refused."""

import copy
from typing import Any

import pytest
import torch
from ensembles import CE, F64, batch, deltas, mlp, same_state
from torch import nn
from torch.optim import SGD

import chaos_ext as ce
from chaos_ext.spectra import cost, tridiagonal


def _ensemble(m: int = 3, model: nn.Module | None = None, generators: Any = None, **options: Any) -> ce.Ensemble:
    model = model or mlp()
    opt = ce.CGD(model.parameters(), **{"lr": 0.1, "prune": "negative", "momentum": 0.9, **options})
    more = {} if generators is None else {"generators": generators}
    return ce.Ensemble.around(model, CE, opt, deltas(model, m, 0.3), **more)


def _generators(n: int = 4) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


DRAWING = {"prune": "negative", "k": 3, "order": "random", "noise": 0.1}


def test_members_that_leave_the_finite_numbers_are_named_and_nobody_moves():
    model = mlp()
    opt = ce.CGD(model.parameters(), lr=0.1, prune="negative", momentum=0.9)
    D = deltas(model, 3, 0.3)
    D[:, 1] *= 1e300
    ens = ce.Ensemble.around(model, nn.MSELoss(), opt, D)
    x, _ = batch()
    y = torch.randn(5, 3, dtype=F64)
    before = ens.state_dict()
    with pytest.raises(ce.NonFiniteError, match=r"member 2: no step was done; leave_out\(\[2\]\)"):
        ens.step(x, y)
    assert same_state(before, ens.state_dict())
    assert ens.steps == 0
    ens.leave_out([2])
    losses = ens.step(x, y)
    assert losses.isnan().tolist() == [False, False, True, False]
    assert ens.diverged.tolist() == [-1, -1, 0, -1]
    assert torch.equal(ens.thetas[2], before["theta"][2])
    assert ens.last_step[2] is None
    assert ens.directions(x, y)[2] is None
    others = ce.Ensemble.around(model, nn.MSELoss(), opt, D[:, [0, 2]])
    torch.testing.assert_close(others.step(x, y), losses[[0, 1, 3]])
    torch.testing.assert_close(others.thetas, ens.thetas[[0, 1, 3]])


def test_members_left_out_stay_in_steps_that_do_not_prune():
    ens = _ensemble(stop=1, weight_decay=0.1)
    ens.step(*batch())
    ens.leave_out([1])
    before = ens.thetas
    losses = ens.step(*batch(seed=1))
    moved = (ens.thetas != before).any(1)
    assert moved.tolist() == [True, False, True, True]
    assert losses.isnan().tolist() == [False, True, False, False]
    assert ens.last_step[1] is None
    assert ens.last_step[0].pruned == 0


def test_eigenproblems_that_fail_name_their_members(monkeypatch):
    ens = _ensemble(**DRAWING, generators=_generators())
    ens.step(*batch())
    before, infos, calls, real = ens.state_dict(), ens.last_step, [], cost.eigh

    def failing(S: torch.Tensor) -> Any:
        calls.append(S)
        if len(calls) in (2, 4):
            raise ce.NotConvergedError("eigh: no", torch.ones(1))
        return real(S)

    monkeypatch.setattr(cost, "eigh", failing)
    monkeypatch.setattr(cost, "FORMED_SIZE", 10**9)
    with pytest.raises(ce.NotConvergedError, match=r"members 1, 3: .*Of member 1: eigh: no") as caught:
        ens.step(*batch(seed=1))
    assert torch.equal(caught.value.residuals, torch.ones(1))
    assert {i: str(e) for i, e in caught.value.members.items()} == {1: "eigh: no", 3: "eigh: no"}
    assert same_state(before, ens.state_dict())
    assert infos == ens.last_step
    calls.clear()
    with pytest.raises(ce.NotConvergedError, match="members 1, 3: "):
        ens.spectrum(*batch())


def test_an_interrupted_step_draws_nothing(monkeypatch):
    ens, twin = (_ensemble(**DRAWING, generators=_generators()) for _ in range(2))
    calls, real = [], cost.eigh

    def failing(S: torch.Tensor) -> Any:
        calls.append(S)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(S)

    monkeypatch.setattr(cost, "eigh", failing)
    monkeypatch.setattr(cost, "FORMED_SIZE", 10**9)
    before = ens.state_dict()
    with pytest.raises(KeyboardInterrupt):
        ens.step(*batch())
    assert same_state(before, ens.state_dict())
    ens.step(*batch())
    twin.step(*batch())
    assert torch.equal(ens.thetas, twin.thetas)


@pytest.mark.parametrize("options", [{}, DRAWING], ids=["all", "drawn"])
def test_a_restored_run_continues_bit_for_bit(options, tmp_path):
    more = {"generators": _generators()} if options else {}
    ens = _ensemble(**options, **more)
    ens.step(*batch())
    ens.leave_out([1])
    ens.save(tmp_path / "state")
    for t in range(1, 4):
        ens.step(*batch(seed=t))
    other = _ensemble(**options, **({"generators": _generators(5)[1:]} if options else {}))
    other.step(*batch(seed=9))
    other.load(tmp_path / "state")
    assert other.last_step == [None] * 4
    for t in range(1, 4):
        other.step(*batch(seed=t))
    assert same_state(ens.state_dict(), other.state_dict())
    assert other.last_step == ens.last_step


def test_what_cgd_has_done_is_taken_over():
    model = mlp()
    opt = ce.CGD(model.parameters(), lr=0.1, momentum=0.9, start=1, stop=2)
    opt.step(ce.HessianOperator(model, CE, *batch()))
    ens = ce.Ensemble.around(model, CE, opt, deltas(model, 1))
    for t in (1, 2):
        opt.step(ce.HessianOperator(model, CE, *batch(seed=t)))
        ens.step(*batch(seed=t))
        assert ens.last_step[0].step == t
        assert ens.last_step[0].pruned == opt.last_step.pruned
        one = copy.deepcopy(model)
        ens.load_into(one, 0)
        for a, b in zip(one.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_generators_are_copied_and_by_default_alike():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    model = mlp()
    opt = ce.CGD(model.parameters(), lr=0.1, generator=generator, **DRAWING)
    ens = ce.Ensemble(model, CE, opt, deltas(model, 1, 0.3).T.expand(3, -1).clone())
    ens.step(*batch())
    assert torch.equal(before, generator.get_state())
    assert bool((ens.thetas == ens.thetas[:1]).all())
    own = _generators()
    states = [g.get_state() for g in own]
    _ensemble(**DRAWING, generators=own).step(*batch())
    assert all(torch.equal(g.get_state(), s) for g, s in zip(own, states, strict=True))


def test_users_objects_are_left_alone():
    model = mlp()
    opt = ce.CGD(model.parameters(), lr=0.1)
    before, mode = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    ens = ce.Ensemble.around(model, CE, opt, deltas(model, 2, 0.3))
    x, y = batch()
    given = x.clone(), y.clone()
    ens.step(x, y)
    ens.spectrum(x, y)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), mode)
    assert torch.equal(x, given[0])
    assert torch.equal(y, given[1])
    assert opt.steps == 0
    assert opt.last_step is None
    assert all(p.grad is None for p in model.parameters())


def test_refusals():
    with pytest.raises(ce.UnsupportedError, match=r"refresh_every=2 keeps more .*expected refresh_every=None"):
        _ensemble(prune="dominant", k=2, refresh_every=2)
    with pytest.raises(ce.UnsupportedError, match=r"switch_share=0\.5"):
        _ensemble(prune="dominant", k=2, switch_share=0.5)
    with pytest.raises(ValueError, match="generators: expected one for each member, since CGD draws"):
        _ensemble(**DRAWING)
    for wrong in (_generators(3), [torch.Generator()] * 4, [1, 2, 3, 4], 7):
        with pytest.raises(ValueError, match=r"generators: expected 4 torch\.Generators"):
            _ensemble(**DRAWING, generators=wrong)
    model = mlp()
    with pytest.raises(ValueError, match="generators: expected None: only a CGD that prunes"):
        ce.Ensemble.around(model, CE, SGD(model.parameters(), lr=0.1), deltas(model, 3), generators=_generators())
    with pytest.raises(ce.UnsupportedError, match=r"opt: CGD lacks 0\.weight, 0\.bias"):
        ce.Ensemble.around(model, CE, ce.CGD(model[2].parameters(), lr=0.1), deltas(model, 3))
    sgd = ce.Ensemble.around(model, CE, SGD(model.parameters(), lr=0.1), deltas(model, 3))
    with pytest.raises(ce.UnsupportedError, match="leave_out: only for a CGD that prunes"):
        sgd.leave_out([0])
    with pytest.raises(ValueError, match=r"members: expected a member in 0\.\.3, got 4"):
        _ensemble().leave_out([4])
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.2}]
    two = ce.Ensemble.around(model, CE, ce.CGD(groups, lr=0.1), deltas(model, 3))
    with pytest.raises(ce.UnsupportedError, match="prune='chaotic': parameter groups have different lr"):
        two.step(*batch())
    few = _ensemble(prune="dominant", k=70)
    with pytest.raises(ValueError, match="member 0: k: expected at most"):
        few.step(*batch())
    dropping = nn.Sequential(nn.Linear(6, 4), nn.Dropout(), nn.Linear(4, 3)).double()
    with pytest.raises(ce.UnsupportedError, match="random numbers"):
        _ensemble(model=dropping).step(*batch())
    with pytest.raises(ce.UnsupportedError, match="random numbers"):
        _ensemble(model=dropping).spectrum(*batch())
    with pytest.raises(ce.NonFiniteError, match="x: expected finite"):
        _ensemble().directions(torch.full((5, 6), torch.nan, dtype=F64), batch()[1])


def test_states_of_another_kind_are_refused():
    ens = _ensemble(**DRAWING, generators=_generators())
    model = mlp()
    plain = ce.Ensemble.around(model, CE, SGD(model.parameters(), lr=0.1, momentum=0.9), deltas(model, 3, 0.3))
    other = _ensemble(prune="positive")
    for a, b in ((ens, plain), (plain, ens), (other, ens), (ens, other)):
        with pytest.raises(ce.CheckpointError, match="another run"):
            a.load_state_dict(b.state_dict())
    for name, value in (("first", -1), ("first", None), ("generators", [])):
        state = ens.state_dict()
        state["pruning"][name] = value
        with pytest.raises(ce.CheckpointError, match=f"pruning.{name}"):
            ens.load_state_dict(state)
    state = ens.state_dict()
    state["pruning"]["generators"][1] = torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(ce.CheckpointError, match=r"pruning\.generators"):
        ens.load_state_dict(state)
    del state["pruning"]
    with pytest.raises(ce.CheckpointError, match="pruning"):
        ens.load_state_dict(state)


@pytest.mark.parametrize("norm", [False, True], ids=["batched", "one by one"])
def test_directions_are_taken_over_by_the_step_that_follows(monkeypatch, norm):
    """The same step to the last bit, with one eigenproblem a member; after anything else has changed, another one."""
    torch.manual_seed(2)
    layers = (nn.Linear(6, 24), *((nn.BatchNorm1d(24),) if norm else ()), nn.Tanh(), nn.Linear(24, 3))
    model = nn.Sequential(*layers).double()
    looking, plain = (_ensemble(model=model) for _ in range(2))
    x, y = batch()
    for ens in (looking, plain):
        ens.step(x, y)
    made, real = [], tridiagonal.Tridiagonal.__init__
    monkeypatch.setattr(tridiagonal.Tridiagonal, "__init__", lambda self, S: made.append(1) or real(self, S))
    specs = looking.directions(x, y)
    assert len(made) == 4
    losses = looking.step(x.clone(), y)
    assert len(made) == 4
    assert torch.equal(losses, plain.step(x, y))
    torch.testing.assert_close(looking.thetas, plain.thetas, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(looking.buffers, plain.buffers, rtol=1e-13, atol=1e-14)
    for a, b, spec in zip(looking.last_step, plain.last_step, specs, strict=True):
        assert (a.pruned, a.n_negative, a.lambda_min) == (b.pruned, b.n_negative, b.lambda_min)
        assert float(spec.eigenvalues[0]) == a.lambda_min
    made.clear()
    looking.directions(x, y)
    looking.step(x + 1e-9, y)
    assert len(made) == 8
    looking.directions(x, y, zero_tol=1e-3)
    looking.step(x, y)
    assert len(made) == 16
    specs = looking.directions(x, y)
    specs[1].eigenvalues[0] = 7.0
    before = looking.thetas
    with pytest.raises(ce.StaleOperatorError, match="edited"):
        looking.step(x, y)
    assert torch.equal(before, looking.thetas)
    state = looking.state_dict()
    looking.directions(x, y)
    looking.load_state_dict({**state, "theta": state["theta"] + 0.1})
    made.clear()
    looking.step(x, y)
    assert len(made) == 4
