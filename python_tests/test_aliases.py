"""What is handed out cannot corrupt us: edits of a gradient, a batch or a spectrum are without effect, or refused."""

import copy
from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import cases
import pytest
import torch
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()


def _operator():
    model = cases.mlp(2, "tanh").double()
    return model, ce.HessianOperator(model, CE, *cases.batch(5, cases.LOSSES["ce"][1]))


def _stepped(edit):
    model, op = _operator()
    edit(op)
    ce.CGD(model.parameters(), lr=0.1, prune="negative").step(op)
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


EDITS = {
    "gradient": lambda op: op.gradient.div_(1e6),
    "gradient through data": lambda op: op.gradient.data.zero_(),
    "loss": lambda op: op.loss.zero_(),
    "output": lambda op: op.output.zero_(),
    "gradient in float64": lambda op: op.gradient_in(torch.float64).zero_(),
    "gradient of a spectrum that nobody uses": lambda op: ce.spectrum(op, k=2).gradient.zero_(),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_an_operator_hands_out_is_a_copy(name):
    assert torch.equal(_stepped(EDITS[name]), _stepped(lambda op: None))


@pytest.mark.parametrize("name", ["output", "gradient", "loss"])
def test_edits_do_not_reach_the_sweeps(name):
    (_, op), (_, whole) = _operator(), _operator()
    getattr(op, name).zero_()
    assert torch.equal(op.dense(), whole.dense())
    assert torch.equal(getattr(op, name), getattr(whole, name))


def _replaced(spec):
    spec.gradient = spec.gradient * 2


SPECTRUM_EDITS = {
    "eigenvalues": lambda spec: spec.eigenvalues.neg_(),
    "Z": lambda spec: spec.Z.zero_(),
    "gradient": lambda spec: spec.gradient.mul_(1e-6),
    "another gradient": _replaced,
}


@pytest.mark.parametrize("through", ["spectrum", "operator", "fixed"])
@pytest.mark.parametrize("name", SPECTRUM_EDITS)
def test_an_edited_spectrum_is_refused(name, through):
    model, op = _operator()
    spec = ce.spectrum(op)
    fixed = spec if through == "fixed" else None
    opt = ce.CGD(model.parameters(), lr=0.1, prune="negative", spectrum=fixed)
    before = copy.deepcopy(model.state_dict())
    SPECTRUM_EDITS[name](spec)
    with pytest.raises(ce.StaleOperatorError, match="spectrum: its eigenvalues, eigenvectors or gradient were edited"):
        opt.step(spec if through == "spectrum" else op)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_copies_of_a_spectrum_are_as_good():
    model, op = _operator()
    spec = ce.spectrum(op)
    results = []
    start = copy.deepcopy(model.state_dict())
    for fixed in (spec, copy.deepcopy(spec)):
        model.load_state_dict(start)
        opt = ce.CGD(model.parameters(), lr=0.1, prune="negative", spectrum=fixed)
        opt.step(ce.HessianOperator(model, CE, *cases.batch(5, cases.LOSSES["ce"][1])))
        results.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone())
    assert torch.equal(*results)
    assert opt.last_step.pruned > 0


class _Unpacked(nn.Module):
    """Finds the tensor of any container."""

    def __init__(self, get):
        super().__init__()
        self.get, self.layers = get, nn.Linear(4, 3).double()

    def forward(self, batch):
        return self.layers(torch.as_tensor(self.get(batch)))


@dataclass
class _Data:
    x: Any


class _Named(NamedTuple):
    x: Any


class _Plain:
    def __init__(self, x):
        self.deep = {"list": [x]}


class _Slotted:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


CONTAINERS = {
    "tensor": (lambda x: x, lambda b: b),
    "dict": (lambda x: {"x": x}, lambda b: b["x"]),
    "UserDict": (lambda x: UserDict(x=x), lambda b: b["x"]),
    "dataclass": (_Data, lambda b: b.x),
    "namedtuple": (_Named, lambda b: b.x),
    "object": (_Plain, lambda b: b.deep["list"][0]),
    "slots": (_Slotted, lambda b: b.x),
    "array": (lambda x: x.numpy(), lambda b: b),
}
BATCH_EDITS = {
    "in place": lambda x: x.mul_(2),
    "data": lambda x: x.data.mul_(2),
    "numpy": lambda x: x.numpy().__imul__(2),
}


@pytest.mark.parametrize("edit", BATCH_EDITS)
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_batch_edited_in_place_is_noticed(name, edit):
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    put, get = CONTAINERS[name]
    op = ce.HessianOperator(_Unpacked(get), CE, put(x), y)
    op.dense()
    BATCH_EDITS[edit](x)
    with pytest.raises(ce.StaleOperatorError):
        op.dense()


def test_targets_edited_through_numpy_are_noticed():
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    op = ce.HessianOperator(_Unpacked(lambda b: b), CE, x, y)
    y.numpy()[0] = 2
    with pytest.raises(ce.StaleOperatorError):
        op.dense()


def test_another_tensor_in_the_same_container_is_noticed():
    batch, y = UserDict(x=torch.randn(6, 4, dtype=torch.float64)), torch.arange(6) % 3
    op = ce.HessianOperator(_Unpacked(lambda b: b["x"]), CE, batch, y)
    batch["x"] = torch.randn(6, 4, dtype=torch.float64)
    with pytest.raises(ce.StaleOperatorError):
        op.dense()


def test_what_hides_its_tensors_is_refused():
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    with pytest.raises(ce.UnsupportedError, match="x: a list_iterator hides its tensors"):
        ce.HessianOperator(_Unpacked(lambda b: next(copy.copy(b))), CE, iter([x]), y)


def test_a_batch_left_alone_is_fresh():
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    for put, get in CONTAINERS.values():
        op = ce.HessianOperator(_Unpacked(get), CE, put(x), y)
        assert torch.equal(op.dense(), op.dense())
