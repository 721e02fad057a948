"""An Ensemble whose members are on several ranks: what one process says, the same bits on every rank."""

import pytest
import ranks
import torch
import torch.distributed as dist
from ensembles import CE, F64, batch, deltas, mlp, same_state, size
from torch import nn
from torch.optim import SGD, Adam

import chaos_ext as ce
from chaos_ext.ensemble.ensemble import Ensemble
from chaos_ext.ensemble.shared import SharedEnsemble

B, STEPS = 5, 3  # members: on 2 ranks 2 and 3, on 4 ranks 1, 1, 1 and 2
LR = torch.tensor([0.05, 0.02, 0.1, 0.07, 0.03], dtype=F64)
OPTIMIZERS = {
    "sgd": (SGD, {"momentum": 0.9, "weight_decay": 0.1}, {"lr": LR}),
    "adam": (Adam, {"lr": 0.01}, {"betas": (LR * 9, 0.99)}),
    "cgd": (ce.CGD, {"lr": 0.05, "prune": "negative", "momentum": 0.5}, {}),
    "noise": (ce.CGD, {"lr": 0.05, "prune": "negative", "noise": 0.1, "order": "random", "k": 2}, {"lr": LR}),
}


def _norm():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).to(F64)


def _made(name, group=None, net=mlp, m=B - 1, **options):
    cls, own, given = OPTIMIZERS[name]
    model = net()
    opt = cls(model.parameters(), **{"lr": 0.05, **own})
    if name == "noise":
        given = {**given, "generators": [torch.Generator().manual_seed(i) for i in range(m + 1)]}
    given = {**given, **options, **({} if group is None else {"group": group})}
    return ce.Ensemble.around(model, CE, opt, deltas(model, m), **given)


def _own_batches():
    parts = [batch(seed=20 + i) for i in range(B)]
    return torch.stack([x for x, _ in parts]), torch.stack([y for _, y in parts])


def _trained(ens, steps=STEPS):
    losses = [ens.step(*batch(seed=t)) for t in range(steps)]
    losses.append(ens.step(*_own_batches(), batched=True))
    ens.set_options(lr=torch.linspace(0.01, 0.05, B, dtype=F64))
    return [*losses, ens.step(*batch(seed=9))]


def _read(ens):
    """Everything that may be read off an ensemble."""
    V = torch.linspace(-1, 1, 2 * ens.thetas.shape[1], dtype=F64).view(-1, 2)
    model = ens_model = mlp() if not ens.buffers else _norm()
    ens.load_into(model, 3)
    evaluated = ens.evaluate(*batch(seed=4))
    predicted = (ens.thetas[torch.arange(B) != 2] - ens.thetas[2]).T * 1.01
    found = {
        "thetas": ens.thetas,
        "diverged": ens.diverged,
        "distances": ens.distances(),
        "to 3": ens.distances(3),
        "to a vector": ens.distances(ens.thetas[1] * 0.5),
        "along": ens.along(V, to=-1),
        "nonlinearity": ens.nonlinearity(predicted, to=2),
        "loss": evaluated.loss,
        "accuracy": evaluated.accuracy,
        "squares": ens.evaluate(batch(seed=4)[0], batch(seed=4)[1]).loss,
        **{f"buffer {n}": b for n, b in ens.buffers.items()},
        **{f"member 3: {n}": t for n, t in ens_model.state_dict().items()},
    }
    return found, ens.last_step, ens.steps, len(ens)


def _runs(rank, folder, names):
    found = {}
    for name in names:
        ens = _made(name, dist.group.WORLD, csv=folder / f"{name}.csv", every=2)
        losses = _trained(ens)
        found[name] = losses, _read(ens), ens.state_dict()
        ens.save(folder / f"{name}.pt")
    ens = _made("sgd", ce.Ranks(), net=_norm)
    found["batch norm"] = _trained(ens), _read(ens), ens.state_dict()
    return found


def _close(a, b, key):
    assert torch.allclose(a, b, rtol=1e-12, atol=1e-12, equal_nan=True), (key, a, b)


@pytest.mark.parametrize(("procs", "names"), [(2, list(OPTIMIZERS)), (4, ["adam", "noise"])])
def test_what_one_process_says_the_same_bits_on_every_rank(procs, names, tmp_path):
    first, *others = ranks.run(procs, _runs, tmp_path, names)
    for key, (losses, read, state) in first.items():
        for other in others:
            assert all(map(torch.equal, losses, other[key][0])), key
            torch.testing.assert_close(read[0], other[key][1][0], rtol=0, atol=0)
            assert read[1:] == other[key][1][1:]
            assert same_state(state, other[key][2])
        alone = _made(*(("sgd", None, _norm) if key == "batch norm" else (key,)))
        for a, b in zip(losses, _trained(alone), strict=True):
            _close(a, b, key)
        expected = _read(alone)
        for name, t in expected[0].items():
            _close(read[0][name], t, (key, name))
        assert read[2:] == expected[2:] == (STEPS + 2, B)
        assert [None if i is None else (i.step, i.pruned) for i in read[1]] == [
            None if i is None else (i.step, i.pruned) for i in expected[1]
        ]
        state = {**state, "fingerprint": None}
        torch.testing.assert_close(state, {**alone.state_dict(), "fingerprint": None}, rtol=1e-12, atol=1e-12)


def _resumed(rank, folder, name):
    ens = _made(name, dist.group.WORLD, csv=folder / f"{name}.csv", every=2)
    ens.load(folder / f"{name}.pt")
    return [ens.step(*batch(seed=30)), ens.thetas]


@pytest.mark.parametrize("name", ["sgd", "noise"])
def test_a_run_goes_on_on_one_process_or_on_another_number_of_them(name, tmp_path):
    alone = _made(name, csv=tmp_path / "alone.csv", every=2)
    _trained(alone)
    _read(alone)
    ranks.run(2, _runs, tmp_path, [name])
    single = _made(name)
    single.load(tmp_path / f"{name}.pt")
    expected = [alone.step(*batch(seed=30)), alone.thetas]
    for found in [[single.step(*batch(seed=30)), single.thetas], *ranks.run(4, _resumed, tmp_path, name)]:
        for a, b in zip(found, expected, strict=True):
            _close(a, b, name)
    rows, theirs = ((tmp_path / f"{n}.csv").read_text().splitlines() for n in (name, "alone"))
    assert len(rows) == len(theirs) == 1 + 3
    assert rows[0] == theirs[0]
    for row, other in zip(rows[1:], theirs[1:], strict=True):
        assert [float(v) for v in row.split(",")] == pytest.approx([float(v) for v in other.split(",")], abs=1e-12)


def _repeated(rank):
    """Two runs, and members that stand alone, in every way the same bits."""
    one, two = (_trained(_made("sgd", dist.group.WORLD)) for _ in range(2))
    assert all(map(torch.equal, one, two))


def test_a_repetition_has_the_same_bits():
    ranks.run(2, _repeated)


def _bits(ens):
    ens = {**ens.state_dict(), "fingerprint": None}
    return {k: v for k, v in ens.items() if k != "options"}


def _nobody_has_moved(ens, before, steps=0):
    assert same_state({**before, "fingerprint": 0}, {**ens.state_dict(), "fingerprint": 0})
    assert ens.steps == steps


class _Failing(nn.Module):
    """A loss that raises when it is told to."""

    broken = False

    def forward(self, z, y):
        if _Failing.broken:
            raise ValueError("no loss today")
        return CE(z, y)


def _a_rank_that_raises(rank):
    for net, cls in [(mlp, SGD), (_norm, SGD), (mlp, ce.CGD)]:
        model = net()
        loss = _Failing()
        opt = cls(model.parameters(), lr=0.1, momentum=0.9)
        ens = ce.Ensemble.around(model, loss, opt, deltas(model, B - 1), group=dist.group.WORLD)
        before = ens.state_dict()
        _Failing.broken = rank == 1
        with pytest.raises(ValueError if rank == 1 else ce.errors.RankFailedError, match="no loss today"):
            ens.step(*batch(seed=0))
        _Failing.broken = False
        _nobody_has_moved(ens, before)
        losses = ens.step(*batch(seed=0))  # and all go on
        assert torch.isfinite(losses).all()


def test_when_one_rank_raises_all_do_and_nobody_has_moved():
    ranks.run(2, _a_rank_that_raises)


def _members_that_fail(rank):
    model = mlp()
    opt = ce.CGD(model.parameters(), lr=torch.tensor(0.1), prune="negative", noise=0.1, generator=torch.Generator())
    thetas = torch.cat([deltas(model, B).T])
    thetas[3] = 1e200  # whose Hessian overflows
    thetas[1] = -1e200
    ens = ce.Ensemble(model, nn.MSELoss(), opt, thetas, group=dist.group.WORLD)
    before, targets = ens.state_dict(), torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ce.errors.NonFiniteError, match=r"members 1, 3: .*leave_out\(\[1, 3\]\)") as raised:
        ens.step(batch()[0], targets)
    assert sorted(raised.value.members) == [1, 3]
    _nobody_has_moved(ens, before)
    ens.leave_out(list(raised.value.members))
    losses = ens.step(batch()[0], targets)
    assert losses.isnan().nonzero().flatten().tolist() == [1, 3]
    assert ens.diverged.tolist() == [-1, 0, -1, 0, -1]
    assert [info is None for info in ens.last_step] == [False, True, False, True, False]
    return losses


def test_members_that_fail_are_named_on_all_ranks_by_their_own_numbers():
    first, second = ranks.run(2, _members_that_fail)
    assert torch.equal(first.nan_to_num(), second.nan_to_num())


def _a_rank_that_breaks_off(rank):
    ens = _made("sgd", dist.group.WORLD)
    if rank == 1:
        members = ens._members
        update = members.recurrence.update_

        def broken(*args):
            members.recurrence.update_ = update
            raise MemoryError("no memory today")

        members.recurrence.update_ = broken
    with pytest.raises(MemoryError if rank == 1 else ce.errors.RankFailedError, match="no memory today"):
        ens.step(*batch(seed=0))
    with pytest.raises(ce.errors.TornStateError if rank else ce.ChaosExtError):
        ens.step(*batch(seed=0))
    with pytest.raises((ce.errors.TornStateError, ce.errors.RankFailedError)):
        _ = ens.thetas
    ens.load_state_dict(_made("sgd", dist.group.WORLD).state_dict())
    return ens.step(*batch(seed=0))


def test_a_step_that_breaks_off_while_it_writes_leaves_no_half_moved_ensemble():
    first, second = ranks.run(2, _a_rank_that_breaks_off)
    assert torch.equal(first, second)


def _refusals(rank):
    error, group = ce.errors.RanksDisagreeError, dist.group.WORLD
    with pytest.raises(ValueError, match="at least one member for each of the 2 ranks of the group, got 1"):
        _made("sgd", group, m=0, lr=0.1)
    model = mlp()
    opt = SGD(model.parameters(), lr=0.5 if rank else 0.1)
    with pytest.raises(error, match=r"optimizer and members: .*lr of group 0: 0.1 on rank 0; 0.5 on rank 1"):
        ce.Ensemble.around(model, CE, opt, deltas(model, 4), group=group)
    with pytest.raises(error, match=r"options: .* on rank 1"):
        _made("sgd", group, lr=LR if rank else LR * 2)
    with pytest.raises(error, match="thetas: "):
        _made("sgd", group, m=4 if rank else 6, lr=0.1)
    with pytest.raises(error, match="generators: "):
        _made("noise", group, generators=[torch.Generator().manual_seed(i + rank) for i in range(B)])
    with pytest.raises(error, match="csv: "):
        _made("sgd", group, csv="x.csv" if rank else None)
    for wrong in (torch.ones(4), torch.full((B,), -1.0)):
        with pytest.raises(ValueError, match="lr: "):
            _made("sgd", group, lr=wrong)
    wrong = deltas(model, 4)[: -1 if rank else None]
    with pytest.raises(ValueError if rank else ce.errors.RankFailedError, match="deltas: expected a tensor"):
        ce.Ensemble.around(model, CE, opt, wrong, group=group)
    ens = _made("sgd", group)
    before = ens.state_dict()
    with pytest.raises(error, match=r"the step: expected the same on all ranks.*batch: "):
        ens.step(*batch(seed=rank))
    with pytest.raises(ValueError, match=r"x: expected shape \[5, N, ...\]"):
        ens.step(*(t[:4] for t in _own_batches()), batched=True)
    with pytest.raises(error, match="different calls"):
        ens.distances(to=rank)
    with pytest.raises(error, match="different calls"):
        ens.along(torch.full((size(mlp()),), 1.0 + rank, dtype=F64))
    with pytest.raises(error, match="options: "):
        ens.set_options(lr=0.1 + rank)
    with pytest.raises(ValueError, match="momentum"):
        ens.set_options(momentum=-1.0)
    with pytest.raises(error, match="members: "):
        _made("cgd", group).leave_out([rank])
    with pytest.raises(ce.UnsupportedError, match="leave_out: only for a CGD"):
        ens.leave_out([0])
    for method in (ens.spectrum, ens.directions):
        with pytest.raises(ce.UnsupportedError, match="not of an Ensemble with group"):
            method(*batch())
    other = nn.Sequential(nn.Linear(6, 8 - rank), nn.Tanh(), nn.Linear(8 - rank, 3)).to(F64)
    kept = [p.detach().clone() for p in other.parameters()]
    with pytest.raises(ce.errors.RankFailedError if rank else ValueError, match="model: expected one with the param"):
        ens.load_into(other, 0)
    assert all(map(torch.equal, kept, other.parameters()))
    for damage in ({"theta": before["theta"][:4]}, {"steps": -1}, {"options": None}, {"fingerprint": {}}):
        with pytest.raises(ce.CheckpointError, match="state: "):
            ens.load_state_dict({**before, **damage})
    with pytest.raises(error, match="state: "):
        ens.load_state_dict({**before, "theta": before["theta"] + rank})
    _nobody_has_moved(ens, before)


def test_what_ranks_do_not_have_alike_is_refused_on_all_and_nothing_has_moved():
    ranks.run(2, _refusals)


def test_every_method_knows_of_all_members():
    """What a new method of Ensemble reads would be of this rank's members only."""
    public = {n for cls in Ensemble.__mro__[:-1] for n in vars(cls) if not n.startswith("_")}
    assert public - set(vars(SharedEnsemble)) == {"around", "steps"}
