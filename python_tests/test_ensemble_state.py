"""Divergence of members, checkpoints, the CSV file: named errors, and nothing lost."""

import _thread
import csv
import math
import re

import pytest
import torch
from ensembles import F64, OPTIMIZERS, around, batch, deltas, mlp, same_state
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, Adam

import chaos_ext as ce
from chaos_ext.ensemble.layered import Layered


def test_a_member_that_diverges_is_marked_with_its_step_and_the_others_go_on(caplog):
    model = mlp()
    opt = SGD(model.parameters(), lr=0.1)
    lr = torch.tensor([0.1, 1e200, 0.2, 0.05], dtype=F64)
    ens = ce.Ensemble.around(model, nn.MSELoss(), opt, deltas(model, 3), lr=lr)
    calm = ce.Ensemble(model, nn.MSELoss(), opt, ens.thetas[[0, 2, 3]], lr=lr[[0, 2, 3]])
    targets = torch.randn(5, 3, dtype=F64)
    seen = []
    for t in range(6):
        x, _ = batch(seed=t)
        losses, expected = ens.step(x, targets), calm.step(x, targets)
        torch.testing.assert_close(losses[[0, 2, 3]], expected)
        finite = math.isfinite(losses[1]) and bool(torch.isfinite(ens.thetas[1]).all())
        seen += [] if finite else [t + 1]
        assert ens.diverged.tolist() == [-1, seen[0] if seen else -1, -1, -1]
    assert len(seen) > 0
    torch.testing.assert_close(ens.thetas[[0, 2, 3]], calm.thetas)
    assert f"member 1 diverged at step {seen[0]}" in caplog.text
    x, y = batch(3, seed=9)  # another kind of batch, with a member that has diverged among them
    ens.step(x, torch.randn(3, 3, dtype=F64))
    assert ens.diverged.tolist()[1] == seen[0]


def test_parameters_that_overflow_behind_a_finite_loss_are_noticed():
    """A weight of -inf in front of a ReLU hides from the loss."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    ens = ce.Ensemble(
        model,
        nn.MSELoss(),
        SGD(model.parameters(), lr=0.1),
        parameters_to_vector(model.parameters()).detach().expand(2, -1).clone(),
        lr=torch.tensor([0.1, 1.7e308], dtype=F64),
    )
    losses = ens.step(torch.tensor([[2.0]], dtype=F64), torch.tensor([[-1.0]], dtype=F64))
    assert torch.isfinite(losses).all()
    assert ens.diverged.tolist() == [-1, 1]


@pytest.mark.parametrize("name", [*OPTIMIZERS, "batch norm"])
def test_resuming_is_bit_for_bit(name, tmp_path):
    cls, options = OPTIMIZERS.get(name, OPTIMIZERS["momentum_all"])
    model = mlp()
    if name == "batch norm":
        model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()

    def make():
        given = {"lr": torch.tensor([0.01, 0.02, 0.03, 0.04], dtype=F64)}
        return around(model, cls(model.parameters(), **options), **given)

    whole, first, second = make(), make(), make()
    second.step(*batch(seed=40))  # what it has is replaced
    for t in range(10):
        whole.step(*batch(seed=t))
        if t < 5:
            first.step(*batch(seed=t))
    first.save(tmp_path / "ens.pt")
    second.load(tmp_path / "ens.pt")
    assert second.steps == 5
    for t in range(5, 10):
        losses = second.step(*batch(seed=t))
    assert same_state(second.state_dict(), whole.state_dict())
    assert losses.shape == (4,)


def test_a_schedule_and_divergence_are_part_of_the_state(tmp_path):
    decay = torch.tensor([0.0, 1.0, 0.0, 0.0])
    ens = around(lr=torch.tensor([0.1, 1e200, 0.1, 0.1], dtype=F64), weight_decay=decay)
    for t in range(3):
        ens.step(*batch(seed=t))
    ens.set_options(momentum=0.5)
    ens.save(tmp_path / "ens.pt")
    other = around()
    other.load(tmp_path / "ens.pt")
    assert other.diverged.tolist() == ens.diverged.tolist() != [-1] * 4
    for e in (ens, other):
        e.step(*batch(seed=7))
    assert same_state(other.state_dict(), ens.state_dict())


OTHERS = {
    "members": (lambda: around(m=4), "members = 4, got 5"),
    "architecture": (
        lambda: around(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()),
        "expected parameters",
    ),
    "optimizer": (
        lambda: around(model := mlp(), Adam(model.parameters())),
        "expected optimizer = 'SGD', got 'Adam'",
    ),
    "flags": (
        lambda: around(model := mlp(), SGD(model.parameters(), lr=0.1, momentum=0.9, maximize=True)),
        "expected flags",
    ),
    "dtype": (lambda: around(mlp(torch.float32)), "expected dtype = 'torch.float64', got 'torch.float32'"),
    "buffers": (
        lambda: around(nn.Sequential(*mlp(), nn.BatchNorm1d(3, affine=False)).double()),
        "expected buffers",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_run(name):
    make, message = OTHERS[name]
    ens = around()
    ens.step(*batch())
    before = ens.state_dict()
    other = make()
    x, y = batch()
    other.step(x.to(other.thetas.dtype), y)
    with pytest.raises(ce.CheckpointError, match=re.escape(message)):
        ens.load_state_dict(other.state_dict())
    assert same_state(ens.state_dict(), before)


DAMAGE = {
    "steps": -1,
    "theta": torch.zeros(4, 3),
    "diverged": torch.full((4,), 99),
    "buffers": {"more": torch.zeros(1)},
    "state": {},
    "options": [],
    "parameter_steps": [0],
    "started": [1, 1, 1, 1],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_state_is_refused(name):
    ens = around()
    ens.step(*batch())
    before = ens.state_dict()
    with pytest.raises(ce.CheckpointError, match=name):
        ens.load_state_dict({**before, name: DAMAGE[name]})
    with pytest.raises(ce.CheckpointError, match=name):
        ens.load_state_dict({k: v for k, v in before.items() if k != name})
    assert same_state(ens.state_dict(), before)
    with pytest.raises(ce.CheckpointError, match="state_dict of an Ensemble"):
        ens.load_state_dict({"steps": 3})


def _rows(path):
    with path.open() as f:
        return list(csv.DictReader(f))


def test_losses_and_distances_are_streamed(tmp_path):
    path = tmp_path / "run.csv"
    ens = around(csv=path, every=2)
    for t in range(5):
        losses = ens.step(*batch(seed=t))
        rows = _rows(path) if path.exists() else []
        assert [int(r["step"]) for r in rows] == list(range(2, t + 2, 2))
        if t % 2:
            assert [float(rows[-1][f"loss_{i}"]) for i in range(4)] == losses.tolist()
            assert [float(rows[-1][f"distance_{i}"]) for i in range(4)] == ens.distances().tolist()


def test_a_resumed_stream_goes_on_after_its_step(tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    whole, first = around(csv=one), around(csv=two)
    for t in range(8):
        whole.step(*batch(seed=t))
        if t == 4:
            state = first.state_dict()
        if t < 6:
            first.step(*batch(seed=t))
    with two.open("a") as f:
        f.write("7,0.1")  # a kill cuts a row short
    second = around(csv=two)
    second.load_state_dict(state)
    for t in range(4, 8):
        second.step(*batch(seed=t))
    assert one.read_text() == two.read_text()
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n")
    foreign = around(csv=tmp_path / "foreign.csv")
    with pytest.raises(ce.CheckpointError, match="file of 4 members"):
        foreign.load_state_dict(state)
    assert foreign.steps == 0


def test_load_into_writes_one_member_and_refuses_other_models():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    ens = around(model, SGD(model.parameters(), lr=0.1))
    for t in range(3):
        ens.step(*batch(seed=t))
    ens.load_into(model, 2)
    assert torch.equal(parameters_to_vector(model.parameters()), ens.thetas[2])
    assert torch.equal(model[1].running_mean, ens.buffers["1.running_mean"][2])
    assert int(model[1].num_batches_tracked) == 3
    other = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)).double()
    before = parameters_to_vector(other.parameters())
    with pytest.raises(ValueError, match="model: expected one with the buffers of the members"):
        ens.load_into(other, 0)
    with pytest.raises(ValueError, match="parameters of the members"):
        ens.load_into(mlp(), 0)
    with pytest.raises(ValueError, match="dtype of the members"):
        ens.load_into(other.float(), 0)
    with pytest.raises(ValueError, match=r"i: expected a member in 0\.\.3, got 4"):
        ens.load_into(model, 4)
    assert torch.equal(parameters_to_vector(other.parameters()), before.float())


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_comes_before_a_step_or_after_it(monkeypatch):
    ens, other = around(), around()
    for e in (ens, other):
        e.step(*batch())
    real, calls = Layered.gradients, []

    def interrupted(self, *args):
        calls.append(1)
        _thread.interrupt_main()
        return real(self, *args)

    monkeypatch.setattr(Layered, "gradients", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ens.step(*batch(seed=1))
    monkeypatch.undo()
    other.step(*batch(seed=1))
    assert calls
    assert same_state(ens.state_dict(), other.state_dict())


def test_a_step_that_was_broken_off_while_it_wrote_is_not_read_as_one(monkeypatch):
    ens = around()
    ens.step(*batch())
    state = ens.state_dict()

    def broken(*args):
        raise MemoryError

    monkeypatch.setattr("chaos_ext.ensemble.members.Members._commit", broken)
    with pytest.raises(MemoryError):
        ens.step(*batch())
    monkeypatch.undo()
    with pytest.raises(ce.TornStateError, match="load a saved state"):
        ens.step(*batch())
    ens.load_state_dict(state)
    assert same_state(ens.state_dict(), state)


def test_what_is_handed_out_is_a_copy():
    ens = around()
    before = ens.state_dict()
    for t in (ens.thetas, ens.diverged, *ens.state_dict()["state"].values(), ens.state_dict()["theta"]):
        t.zero_()
    assert same_state(ens.state_dict(), before)


def test_a_row_that_cannot_be_written_is_said_and_the_step_is_done(tmp_path):
    ens = around(csv=tmp_path / "run.csv")
    ens.step(*batch())
    (tmp_path / "run.csv").unlink()
    (tmp_path / "run.csv").mkdir()
    with pytest.raises(OSError, match=r"run\.csv"):
        ens.step(*batch(seed=1))
    assert ens.steps == 2
