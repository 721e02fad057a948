"""Whatever fails in the middle of a step or of loading a state: nothing has changed, or the state says so."""

import contextlib
import copy
import math
import signal
import sys

import cases
import pytest
import torch
from torch import fx, nn

import chaos_ext as ce
from chaos_ext.dynamics import csv_stream
from chaos_ext.optim import sgd

CE = nn.CrossEntropyLoss()
X, Y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3


def _trained(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    generator = torch.Generator().manual_seed(0)
    options = {"momentum": 0.9, "prune": "negative", "k": 2, "order": "random", "generator": generator, **options}
    opt = ce.CGD(model.parameters(), lr=0.1, **options)
    opt.step(_operator(model))
    return model, opt


def _operator(model):
    return ce.HessianOperator(model, CE, X, Y)


def _state(model, opt):
    return copy.deepcopy([model.state_dict(), opt.state_dict(), opt.steps, opt.last_step])


def _same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


BUFFERS = {
    "shape": lambda b: torch.zeros(7, dtype=b.dtype),
    "transposed": lambda b: b.T.contiguous(),
    "dtype": lambda b: b.float(),
    "device": lambda b: b.to("meta"),
    "no tensor": lambda b: [0.0],
}


@pytest.mark.parametrize("prune", [None, "negative"])
@pytest.mark.parametrize("name", BUFFERS)
def test_a_wrong_momentum_buffer_is_refused_before_anything_is_written(name, prune):
    model, opt = _trained(prune=prune)
    state = opt.state[model[3].weight]  # not the first that is written
    state["momentum_buffer"] = BUFFERS[name](state["momentum_buffer"])
    others = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"momentum_buffer of 3\.weight: expected"):
        opt.step(_operator(model))
    assert _same(others, dict(model.state_dict()))
    assert opt.steps == 1


def _fail_at(monkeypatch, owner, name, nth):
    """The nth call of owner.name does its work, then raises what nobody expects there."""
    real, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        result = real(*args, **kwargs)
        calls.append(1)
        if len(calls) == nth:
            raise SystemExit(3)
        return result

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("nth", [1, 2, 6])
@pytest.mark.parametrize("options", [{}, {"prune": None}, {"momentum": 0.0}], ids=["pruned", "plain", "no momentum"])
def test_a_step_that_fails_while_it_writes_is_undone(monkeypatch, options, nth):
    (model, opt), whole = _trained(**options), _trained(**options)
    before = _state(model, opt)
    with monkeypatch.context() as m:
        _fail_at(m, sgd.Update, "apply_", nth)
        with pytest.raises(SystemExit):
            opt.step(_operator(model))
    assert _same(_state(model, opt), before)
    for one, optimizer in ((model, opt), whole):
        optimizer.step(_operator(one))
    assert _same(_state(model, opt), _state(*whole))


def test_a_first_step_that_fails_leaves_no_state():
    model = cases.mlp(2, "tanh").double()
    opt = ce.CGD(model.parameters(), lr=0.1, momentum=0.9, prune=None)
    op = ce.HessianOperator(model, CE, *cases.batch(5, cases.LOSSES["ce"][1]))
    with pytest.MonkeyPatch.context() as m:
        _fail_at(m, sgd.Update, "apply_", 2)
        with pytest.raises(SystemExit):
            opt.step(op)
    assert opt.state_dict()["state"] == {}


def test_running_statistics_of_a_forward_that_fails_are_undone(monkeypatch):
    model, opt = _trained()
    op, before = _operator(model), _state(model, opt)
    _fail_at(monkeypatch, type(model), "forward", 1)
    with pytest.raises(SystemExit):
        opt.step(op)
    assert _same(_state(model, opt), before)


STATES = {
    "generator of another length": lambda s: s["chaos_ext"].update(generator=torch.zeros(3, dtype=torch.uint8)),
    "generator that is none": lambda s: s["chaos_ext"].update(generator="x"),
    "buffer of another shape": lambda s: s["state"][2].update(momentum_buffer=torch.zeros(2)),
    "buffer that is none": lambda s: s["state"][2].update(momentum_buffer=3.0),
    "state that is none": lambda s: s["state"].update({2: 5}),
    "another number of groups": lambda s: s.update(param_groups=s["param_groups"] * 2),
    "a learning rate that is none": lambda s: s["param_groups"][0].update(lr=-1.0),
    "a group without options": lambda s: s["param_groups"][0].pop("momentum"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_damaged_state_of_the_optimizer_changes_nothing(name):
    model, opt = _trained()
    other, source = _trained()
    source.step(_operator(other))
    state = copy.deepcopy(source.state_dict())
    STATES[name](state)
    before = _state(model, opt)
    with pytest.raises((ce.CheckpointError, ValueError)):
        opt.load_state_dict(state)
    assert _same(_state(model, opt), before)


def _analyzer(tmp_path, **options):
    model = cases.mlp(2, "tanh").double()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    an = ce.LyapunovAnalyzer(model, opt, k=2, qr_every=1, csv=tmp_path / "rows.csv", **options)
    op = ce.HessianOperator(model, CE, *cases.batch(5, cases.LOSSES["ce"][1]))
    an.update(op)
    return an, op, model


def _full(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_costs_a_row_and_no_number(tmp_path, monkeypatch):
    an, op, model = _analyzer(tmp_path)
    (tmp_path / "whole").mkdir()
    whole, same, _ = _analyzer(tmp_path / "whole")
    whole.update(same)
    with monkeypatch.context() as m:
        m.setattr(csv_stream.ExponentStream, "append", _full)
        for _ in range(2):  # trying again counts nothing
            with pytest.raises(OSError, match=r"csv: the row of step 2 is missing \(No space left on device\)") as e:
                an.update(op)
            assert e.value.errno == 28
            assert _same(an.state_dict()["run"], whole.state_dict()["run"])
    an.update(op)
    assert an.steps == 2
    assert (tmp_path / "rows.csv").read_text() == (tmp_path / "whole" / "rows.csv").read_text()
    an.update(op)
    whole.update(same)
    assert _same(an.state_dict()["run"], whole.state_dict()["run"])
    assert (tmp_path / "rows.csv").read_text() == (tmp_path / "whole" / "rows.csv").read_text()


def test_half_a_row_is_cut_off_before_the_next(tmp_path, monkeypatch):
    an, op, model = _analyzer(tmp_path)
    rows = tmp_path / "rows.csv"

    def half(*_):
        with rows.open("a") as f:
            f.write("2,0.1")
        _full()

    with monkeypatch.context() as m:
        m.setattr(csv_stream.ExponentStream, "append", half)
        with pytest.raises(OSError, match="step 2 is missing"):
            an.update(op)
    an.update(ce.HessianOperator(model, CE, *cases.batch(5, cases.LOSSES["ce"][1])))
    assert [r.split(",")[0] for r in rows.read_text().splitlines()] == ["step", "1", "3"]


def test_a_state_whose_rows_cannot_be_cut_back_is_not_loaded(tmp_path, monkeypatch):
    an, op, _ = _analyzer(tmp_path)
    state = an.state_dict()
    an.update(op)
    before = an.state_dict()
    monkeypatch.setattr(csv_stream.ExponentStream, "resume", _full)
    with pytest.raises(OSError, match="No space left"):
        an.load_state_dict(state)
    assert _same(an.state_dict(), before)


READINGS = {
    "exponents": lambda an, op: an.exponents(),
    "errors": lambda an, op: an.errors(),
    "steps": lambda an, op: an.steps,
    "history": lambda an, op: an.history,
    "directions": lambda an, op: an.directions(),
    "state_dict": lambda an, op: an.state_dict(),
    "update": lambda an, op: an.update(op),
}


def test_what_cannot_be_put_off_leaves_an_analyzer_that_says_so(tmp_path, monkeypatch):
    an, op, _ = _analyzer(tmp_path)
    state = an.state_dict()
    with monkeypatch.context() as m:
        _fail_at(m, sys.modules["chaos_ext.dynamics.frames"], "extremes", 1)  # Y is written, the step not counted
        with pytest.raises(SystemExit):
            an.update(op)
    for read in READINGS.values():
        with pytest.raises(ce.TornStateError, match="an update was broken off"):
            read(an, op)
    an.load_state_dict(state)
    assert _same(an.state_dict(), state)
    an.update(op)
    assert math.isfinite(float(an.exponents()[0]))


def test_a_failing_triangularisation_leaves_a_counted_step(tmp_path, monkeypatch):
    an, op, _ = _analyzer(tmp_path)
    with monkeypatch.context() as m:
        _fail_at(m, sys.modules["chaos_ext.dynamics.frames"], "orthonormalise", 1)
        with pytest.raises(SystemExit):
            an.update(op)
    (tmp_path / "whole").mkdir()
    whole, same, _ = _analyzer(tmp_path / "whole")
    whole.update(same)
    assert an.steps == 2
    assert torch.allclose(an.exponents(), whole.exponents(), rtol=1e-12)


def test_a_tangent_that_fails_leaves_the_deviations():
    class Halving(torch.optim.SGD):
        pass

    def apply_(opt, op, Y):
        Y.mul_(0.5)
        raise SystemExit(3)

    ce.register_tangent(Halving, apply_)
    model = cases.mlp(2, "tanh").double()
    op = ce.HessianOperator(model, CE, *cases.batch(5, cases.LOSSES["ce"][1]))
    tangent = ce.TangentMap(Halving(model.parameters(), lr=0.1))
    deviations = tangent.start(op, 2)
    before = deviations.clone()
    with pytest.raises(SystemExit):
        tangent.apply_(op, deviations)
    assert torch.equal(deviations, before)


def _len_of_input(model):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x) / len(x)

    return Counted()


def test_ctrl_c_while_torch_fx_traces_leaves_nothing_patched(monkeypatch):
    call, look = nn.Module.__call__, nn.Module.__getattr__
    scope = set(globals())
    # Before a node is made, before torch.fx puts back what it has patched, and before ``len`` is put back.
    for owner, at in (
        (fx.Tracer, "create_node"),
        (fx._symbolic_trace._Patcher, "revert_all_patches"),
        (fx.Graph, "lint"),
    ):
        # A new model each time: what was captured is kept.
        real, layers = getattr(owner, at), (nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        model = _len_of_input(nn.Sequential(*layers).double())

        def interrupt(*args, real=real, **kwargs):
            signal.raise_signal(signal.SIGINT)
            return real(*args, **kwargs)

        with monkeypatch.context() as m, contextlib.suppress(KeyboardInterrupt):
            m.setattr(owner, at, interrupt)
            _operator(model)
        assert (nn.Module.__call__, nn.Module.__getattr__) == (call, look)
        assert set(globals()) == scope
        assert torch.isfinite(_operator(model).loss)


class _Counted(nn.Module):
    """Its forward moves attributes, a buffer and a list."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.calls, self.log = nn.Linear(4, 5).double(), nn.Linear(5, 3).double(), 0, []
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))

    def forward(self, x):
        self.calls += 1
        self.log.append(self.calls)
        z = self.b(torch.tanh(self.a(x)))
        with torch.no_grad():
            self.mean.mul_(0.9).add_(z.mean(0), alpha=0.1)
        return z


@pytest.mark.parametrize("where", ["commit_forward", "Deferred"])
@pytest.mark.parametrize("prune", [None, "negative"])
def test_what_forward_wrote_is_undone_with_its_step(where, prune, monkeypatch):
    model = _Counted()
    opt = ce.CGD(model.parameters(), lr=0.1, momentum=0.9, prune=prune)
    opt.step(_operator(model))
    before = _state(model, opt), model.calls, list(model.log)
    op = _operator(model)
    monkeypatch.setattr(f"chaos_ext.optim.cgd.{where}", _raising(where))
    with pytest.raises(KeyboardInterrupt):
        opt.step(op)
    assert _same(before, (_state(model, opt), model.calls, list(model.log)))
    monkeypatch.undo()
    opt.step(op)
    assert (model.calls, model.log, opt.steps) == (2, [1, 2], 2)


def _raising(where):
    """Ctrl-C within forward, or when it is done and nothing of the step is."""
    real = getattr(sys.modules["chaos_ext.optim.cgd"], where)

    def raising(*args):
        if where == "commit_forward":
            real(*args)
        raise KeyboardInterrupt

    return raising
