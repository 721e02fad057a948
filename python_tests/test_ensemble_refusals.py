"""What an Ensemble does not take: arguments, parameters, batches and readings that cannot be, by name."""

import pytest
import torch
from ensembles import CE, F64, around, batch, deltas, mlp, same_state, size
from torch.optim import SGD

import chaos_ext as ce


def _refused(error, message, **changed):
    model = mlp()
    given = {
        "opt": SGD(model.parameters(), lr=0.1),
        "deltas": deltas(model, 2),
        "model": model,
        "loss_fn": CE,
        **changed,
    }
    with pytest.raises(error, match=message):
        ce.Ensemble.around(**given)


def test_bad_arguments_are_refused_by_name():
    P = size(mlp())
    for d in (torch.zeros(P), torch.zeros(P - 1, 2), torch.zeros(2, P), None):
        _refused(ValueError, rf"deltas: expected a tensor \[P = {P}, m\]", deltas=d)
    _refused(TypeError, "deltas: expected real floating-point", deltas=torch.zeros(P, 2, dtype=torch.complex64))
    _refused(ce.NonFiniteError, "deltas: expected finite", deltas=torch.full((P, 1), torch.nan))
    single = mlp(torch.float32)
    far = {"model": single, "opt": SGD(single.parameters(), lr=0.1), "deltas": torch.full((P, 2), 1e39, dtype=F64)}
    _refused(ce.NonFiniteError, "thetas: expected finite", **far)
    _refused(TypeError, "speed: not an option that may be given per member", speed=3)
    _refused(TypeError, "betas|beta1: not an option", betas=(0.1, 0.2))
    _refused(ValueError, r"lr: expected a number, or a tensor \[3\]", lr=torch.zeros(2))
    _refused(ValueError, "member 1: lr: expected a finite value >= 0", lr=torch.tensor([0.1, -0.1, 0.1]))
    _refused(ValueError, "every: expected an int >= 1", csv="x.csv", every=0)
    _refused(ValueError, "csv: expected a path in an existing folder", csv="no/such/folder/x.csv")
    _refused(TypeError, "loss_fn: expected a callable", loss_fn=3)
    other = mlp()
    _refused(ValueError, "opt: expected an optimizer of this model", opt=SGD(other.parameters(), lr=0.1))
    _refused(ce.UnsupportedError, "RMSprop", opt=torch.optim.RMSprop(other.parameters()))
    _refused(ValueError, "opt: expected an optimizer of this model", opt=ce.CGD(other.parameters(), lr=0.1))
    model = mlp()
    opt = SGD(model.parameters(), lr=0.1)
    opt.register_step_pre_hook(lambda *args: None)
    _refused(ce.UnsupportedError, "step hooks", model=model, opt=opt)
    nesterov = SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    _refused(ValueError, "nesterov", model=model, opt=nesterov, momentum=torch.tensor([0.9, 0.0, 0.9]))


def test_thetas_are_refused_by_name():
    model = mlp()
    opt, P = SGD(model.parameters(), lr=0.1), size(model)
    for thetas in (torch.zeros(P), torch.zeros(2, P + 1), torch.zeros(0, P), [[0.0] * P]):
        with pytest.raises(ValueError, match=rf"thetas: expected a tensor \[B, P = {P}\]"):
            ce.Ensemble(model, CE, opt, thetas)
    with pytest.raises(TypeError, match=r"thetas: expected torch.float64 .* got torch.float32"):
        ce.Ensemble(model, CE, opt, torch.zeros(2, P))


def test_bad_batches_are_refused_and_nothing_is_lost():
    ens = around()
    ens.step(*batch())
    before = ens.state_dict()
    x, y = batch()
    cases = {
        r"x: expected shape \[4, N, ...\]": lambda: ens.step(x, y, batched=True),
        r"y: expected shape \[4, N, ...\]": lambda: ens.step(x.expand(4, 5, 6), y, batched=True),
        "at least one sample": lambda: ens.step(x[:0], y[:0]),
        "x: expected finite": lambda: ens.step(x / 0, y),
        "forward failed": lambda: ens.step(x[:, :4], y),
        "x: the model's forward failed": lambda: ens.step(x.float(), y),
        "loss_fn failed": lambda: ens.step(x, y[:3]),
        "batched=True": lambda: ens.step([x], y, batched=True),
    }
    for message, run in cases.items():
        with pytest.raises((ValueError, TypeError, ce.NonFiniteError), match=message):
            run()
    bad = y.clone()
    bad[2] = 17  # of a kind of batch that has been tried already
    with pytest.raises(ValueError, match="y: loss_fn failed"):
        ens.step(x, bad)
    own = y.expand(4, 5).clone()
    ens.step(x.expand(4, 5, 6), own, batched=True)
    before = ens.state_dict()
    own[3, 2] = 17  # the last member's, when the others have been done
    with pytest.raises(ValueError, match="y: loss_fn failed"):
        ens.step(x.expand(4, 5, 6), own, batched=True)
    assert same_state(ens.state_dict(), before)


def test_bad_readings_are_refused_by_name():
    ens = around()
    P = ens.thetas.shape[1]
    cases = {
        r"to: expected a member in 0\.\.3, got 4": lambda: ens.distances(4),
        r"to: expected a member or a vector": lambda: ens.distances(torch.zeros(3)),
        rf"V: expected directions \[{P}, k\]": lambda: ens.along(torch.zeros(3, 2)),
        rf"predicted: expected \[{P}, 3\]": lambda: ens.nonlinearity(torch.zeros(P, 2)),
        "lr: expected a finite value": lambda: ens.set_options(lr=-1.0),
    }
    for message, run in cases.items():
        with pytest.raises(ValueError, match=message):
            run()


def test_members_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr("chaos_ext.base.memory.available_bytes", lambda device: 1000)
    _refused(ce.MemoryBudgetError, "Ensemble of 3 members")


def test_momentum_cannot_begin_for_one_member_later():
    ens = around(momentum=torch.tensor([0.0, 0.9, 0.9, 0.9]))
    ens.step(*batch())
    with pytest.raises(ce.UnsupportedError, match="momentum: a member that had none"):
        ens.set_options(momentum=0.9)
    ens.set_options(momentum=torch.tensor([0.0, 0.5, 0.9, 0.9]))


def test_autocast_is_refused():
    ens = around()
    before = ens.thetas
    with torch.autocast("cpu"), pytest.raises(ce.UnsupportedError, match="autocast"):
        ens.step(*batch())
    assert torch.equal(ens.thetas, before)
