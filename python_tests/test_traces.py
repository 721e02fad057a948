"""Whatever is run on a user's model leaves no trace on it, on success and on failure."""

import random
from collections import deque
from types import SimpleNamespace

import cases
import fingerprints
import functions_table
import numpy as np
import pytest
import torch
from architectures import AUTOMATIC, GRAPHS
from oracles import double_backward, relative
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()
_CELLS = ("RNN", "GRU", "LSTM", "MultiheadAttention", "TransformerEncoder")
MODELS = {**GRAPHS, **AUTOMATIC, **{name: functions_table.GRAPHS[name] for name in _CELLS}}


def _by_torch(z, y):
    """A loss without a rule: the model is differentiated by torch as a whole."""
    return nn.functional.cross_entropy(z, y) + 0.0


def _products(model, x, y, loss):
    op = ce.HessianOperator(model, loss, x, y)
    op @ torch.ones(op.shape[0], 2, dtype=op.dtype)
    op.dense()


def _spectrum(model, x, y, loss):
    op = ce.HessianOperator(model, loss, x, y)
    ce.spectrum(op)
    ce.spectrum(op, k=2)


def _tangent(model, x, y, loss):
    opt = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    tangent, op = ce.TangentMap(opt), ce.HessianOperator(model, loss, x, y)
    tangent.apply_(op, tangent.start(op, 2))


def _analyzer(model, x, y, loss):
    opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, k=2, qr_every=1)
    an.update(ce.HessianOperator(model, loss, x, y))
    an.exponents()


ACTIONS = {"products": _products, "spectrum": _spectrum, "tangent map": _tangent, "analyzer": _analyzer}


def _batch(shape):
    torch.manual_seed(1)
    return torch.randn(4, *shape, dtype=torch.float64), torch.tensor([0, 1, 2, 1])


class FuseError(Exception):
    """What a forward raises at a chosen call."""


def _assert_untouched(model, run):
    """Nothing changes while ``run`` runs; returns the exception that it raised, or None."""
    before = fingerprints.of_model(model), fingerprints.of_process()
    error = None
    try:
        run()
    except (ce.ChaosExtError, ValueError, TypeError, FuseError) as e:
        error = e
    after = fingerprints.of_model(model), fingerprints.of_process()
    assert not fingerprints.changes(before[0], after[0])
    assert not fingerprints.changes(before[1], after[1])
    return error


class Fused(nn.Module):
    """A model that raises at its n-th call in this process."""

    left = 10**9

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        Fused.left -= 1
        if Fused.left < 0:
            raise FuseError
        return self.model(x)


@pytest.mark.parametrize("loss", [CE, _by_torch], ids=["rules", "torch"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_no_trace_on_success(name, training, loss):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, (x, y) = make().double().train(training), _batch(shape)
    for action in ACTIONS.values():
        assert _assert_untouched(model, lambda action=action: action(model, x, y, loss)) is None


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("loss", [CE, _by_torch], ids=["rules", "torch"])
@pytest.mark.parametrize("name", ["residual BatchNorm", "untraceable submodule", "LSTM"])
def test_no_trace_on_failure_at_any_call_of_forward(name, loss, action, monkeypatch):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    inner, (x, y) = make().double(), _batch(shape)
    failed = 0
    for calls in range(200):
        model = Fused(inner)
        monkeypatch.setattr(Fused, "left", calls)
        error = _assert_untouched(model, lambda model=model: ACTIONS[action](model, x, y, loss))
        if error is None and Fused.left > 0:
            break
        failed += error is not None
    assert failed >= 1
    assert error is None  # with calls enough


class Writing(nn.Module):
    """Two layers whose forward also does what ``write`` says; only some of it has an effect on the output."""

    def __init__(self, write, **attributes):
        super().__init__()
        self.a, self.b, self.write = nn.Linear(6, 4), nn.Linear(4, 3), write
        for k, v in attributes.items():
            setattr(self, k, v)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        factor = self.write(self, x)
        return self.b(torch.tanh(self.a(x.flatten(1)))) * (1.0 if factor is None else factor)


def _count(m, x):
    m.calls += 1
    return 1.0 + 0.1 * m.calls


def _fill(m, x):
    if m.table is None:
        m.table = x.flatten(1).sum(0)
        m.names["filled"] = True


def _record(m, x):
    m.log.append(len(m.log))
    m.seen.add(len(m.seen))
    m.recent.append(x)
    m.options.deep.calls += 1
    m.nested["a"][0].append(1)


def _write_arrays(m, x):
    m.array += 1
    m.plain += 1


def _draw(m, x):
    m.own_python.random()
    m.own_numpy.standard_normal()
    return 1.0 + torch.rand((), generator=m.own_torch, dtype=torch.float64)


def _delete(m, x):
    if hasattr(m, "once"):
        del m.once
    m.new = 3


def _touch_child(m, x):
    m.a.note = "seen"
    m.b.in_features = 4


FORWARDS = {
    "counts": (_count, lambda: {"calls": 0}),
    "fills a cache": (_fill, lambda: {"table": None, "names": {}}),
    "containers": (
        _record,
        lambda: {
            "log": [],
            "seen": set(),
            "recent": deque(maxlen=3),
            "options": SimpleNamespace(deep=SimpleNamespace(calls=0)),
            "nested": {"a": ([],)},
        },
    ),
    "arrays": (_write_arrays, lambda: {"array": np.zeros(3), "plain": torch.zeros(3)}),
    "own generators": (
        _draw,
        lambda: {
            "own_torch": torch.Generator().manual_seed(1),
            "own_python": random.Random(1),
            "own_numpy": np.random.default_rng(1),
        },
    ),
    "deletes": (_delete, lambda: {"once": 1}),
    "another module": (_touch_child, dict),
}


@pytest.mark.parametrize("loss", [CE, _by_torch], ids=["rules", "torch"])
@pytest.mark.parametrize("name", FORWARDS)
def test_what_forward_writes_is_put_back(name, loss):
    """And gradient and H are those of one and the same function: of the state that the model is in."""
    write, attributes = FORWARDS[name]
    torch.manual_seed(0)
    model, (x, y) = Writing(write, **attributes()).double(), cases.batch(5, cases.LOSSES["ce"][1])
    for action in ACTIONS.values():
        assert _assert_untouched(model, lambda action=action: action(model, x, y, loss)) is None
    op = ce.HessianOperator(model, loss, x, y)
    H, g = op.dense(), op.gradient
    twins = [Writing(write, **attributes()).double() for _ in range(2)]
    for twin in twins:
        twin.load_state_dict(model.state_dict())
    expected = torch.autograd.grad(loss(twins[0](x), y), tuple(twins[0].parameters()))
    assert relative(g, torch.cat([t.flatten() for t in expected])) < 1e-12
    assert relative(H, double_backward(twins[1], loss, x, y)) < 1e-10
    for _ in range(2):
        assert type(model(x)) is torch.Tensor


class Drawing(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.a, self.draw = nn.Linear(6, 3), draw

    def forward(self, x):
        return self.a(x.flatten(1)) * self.draw()


def _draw_all_and_raise():
    torch.rand(3)
    random.random()
    np.random.rand()
    raise FuseError


@pytest.mark.parametrize("loss", [CE, _by_torch], ids=["rules", "torch"])
def test_a_forward_that_draws_and_then_raises(loss):
    model, (x, y) = Drawing(_draw_all_and_raise).double(), cases.batch(5, cases.LOSSES["ce"][1])
    error = _assert_untouched(model, lambda: ce.HessianOperator(model, loss, x, y))
    assert isinstance(error, FuseError)


@pytest.mark.parametrize("source", ["python", "numpy", "torch"])
def test_randomness_of_every_global_generator_is_refused(source):
    draws = {"python": random.random, "numpy": np.random.rand, "torch": lambda: torch.rand(()).item()}
    model, (x, y) = Drawing(draws[source]).double(), cases.batch(5, cases.LOSSES["ce"][1])
    error = _assert_untouched(model, lambda: ce.HessianOperator(model, _by_torch, x, y))
    assert isinstance(error, ce.UnsupportedError)
    assert "random" in str(error)


def test_inference_mode_with_buffers():
    make, shape = GRAPHS["residual BatchNorm"]
    torch.manual_seed(0)
    model, (x, y) = make().double(), _batch(shape)
    expected = ce.HessianOperator(model, CE, x, y).dense()
    with torch.inference_mode():
        for action in (_products, _spectrum):
            assert _assert_untouched(model, lambda action=action: action(model, x, y, CE)) is None
        assert torch.equal(ce.HessianOperator(model, CE, x, y).dense(), expected)


class MarksParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.a.bias.note = ["mine"]

    def forward(self, x):
        self.a.weight.note = 1
        self.a.bias.note = None
        return self.a(x)


def test_attributes_of_parameters_are_put_back():
    model = MarksParameters()
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    op @ torch.ones(15)
    assert not hasattr(model.a.weight, "note")
    assert model.a.bias.note == ["mine"]
