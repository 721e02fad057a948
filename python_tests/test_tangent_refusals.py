"""What the tangent map refuses: optimizers that it was not taught, and input that does not belong to its own."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from training import CE, batches, small_model

import chaos_ext as ce


class _SignSGD(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for p in (p for g in self.param_groups for p in g["params"]):
            p -= self.param_groups[0]["lr"] * p.grad.sign()


class _OddSGD(SGD):
    pass


def test_unknown_optimizers_are_refused_by_name_and_can_be_taught():
    model, (x, y) = small_model(), batches(1)[0]
    for opt in (_SignSGD(model.parameters()), torch.optim.RMSprop(model.parameters()), _OddSGD(model.parameters())):
        with pytest.raises(ce.UnsupportedError, match=type(opt).__name__):
            ce.TangentMap(opt)
    with pytest.raises(ce.UnsupportedError, match="amsgrad"):
        ce.TangentMap(Adam(model.parameters(), amsgrad=True))
    ce.register_tangent(_SignSGD, lambda opt, op, Y: Y.mul_(2.0), buffers=1)
    tangent = ce.TangentMap(_SignSGD(model.parameters()))
    op = ce.HessianOperator(model, CE, x, y)
    assert tangent.size == 2 * tangent.parameters
    assert float(tangent.apply_(op, tangent.start(op)).sum()) == 2 * tangent.parameters
    for bad in (int, "SGD"):
        with pytest.raises(TypeError, match="cls"):
            ce.register_tangent(bad, lambda opt, op, Y: None)
    with pytest.raises(ValueError, match="buffers"):
        ce.register_tangent(_SignSGD, lambda opt, op, Y: None, buffers=-1)


def test_bad_input_leaves_the_block_untouched():
    model, (x, y) = small_model(), batches(1)[0]
    other = small_model()
    opt = SGD(model.parameters(), lr=0.1, momentum=0.9)
    tangent, op = ce.TangentMap(opt), ce.HessianOperator(model, CE, x, y)
    Y = torch.eye(tangent.size, dtype=torch.float64)
    foreign = ce.HessianOperator(other, CE, x, y)
    narrow = ce.TangentMap(SGD(list(model.parameters())[:2], lr=0.1))
    wide = ce.TangentMap(SGD([*model.parameters(), nn.Parameter(torch.zeros(7).double())], lr=0.1))
    for error, match, call in (
        (ValueError, "1.weight", lambda: tangent.apply_(foreign, Y)),
        (ValueError, "3.bias", lambda: narrow.apply_(op, Y)),
        (ValueError, r"\(7,\)", lambda: wide.apply_(op, Y)),
        (ValueError, "Y: expected shape", lambda: tangent.apply_(op, Y[:-1].clone())),
        (TypeError, "Y: expected", lambda: tangent.apply_(op, Y.float())),
        (TypeError, "op: expected", lambda: tangent.apply_(model, Y)),
        (ValueError, "state", lambda: ce.TangentMap(opt, state="x")),
        (ValueError, "jacobian", lambda: ce.TangentMap(opt, jacobian="x")),
        (TypeError, "opt", lambda: ce.TangentMap(model)),
        (ValueError, "joined", lambda: _join(model).apply_(op, Y)),
    ):
        with pytest.raises(error, match=match):
            call()
    CE(model(x), y).backward()
    opt.step()
    with pytest.raises(ce.StaleOperatorError):
        tangent.apply_(op, Y)
    assert torch.equal(Y, torch.eye(tangent.size, dtype=torch.float64))


def _join(model):
    first, *rest = model.parameters()
    opt = SGD([first], lr=0.1, momentum=0.9)
    tangent = ce.TangentMap(opt)
    opt.add_param_group({"params": rest})
    return tangent
