"""Rounding that a forward magnifies is not taken for a forward that has changed; a change of the same size is."""

import pytest
import torch
from oracles import double_backward, relative
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()


class Factor:
    value = 1.0


class Own(nn.Module):
    """BatchNorm of numbers that differ by 1e-4 of their size: in float32 its output is rounding for the most part."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6, eps=1e-9, track_running_stats=False)
        self.last, self.factor = nn.Linear(6, 3), Factor()

    def forward(self, x):
        return self.last(self.norm(torch.tanh(self.first(x)) + 1.0)) * self.factor.value


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(4, generator=g) + 1e-4 * torch.randn(8, 4, generator=g)
    return x, torch.randint(3, (8,), generator=g)


def test_rounding_keeps_the_layer_rules(batch, caplog):
    model, (x, y) = Own(), batch
    wide = Own().double()
    assert relative(model(x).double(), wide(x.double())) > 2e-4  # it is magnified
    op = ce.HessianOperator(model, CE, x, y)
    assert not caplog.records
    assert {r.path for r in op.explain()} <= {"enter at units", "enter at parameters"}
    exact = ce.HessianOperator(wide, CE, x.double(), y)
    assert relative(exact.dense(), double_backward(wide, CE, x.double(), y)) < 1e-5


def test_a_change_is_seen_all_the_same(batch, caplog):
    model, (x, y) = Own(), batch
    ce.HessianOperator(model, CE, x, y)
    model.factor.value = 1.001  # of an object that no signature looks into
    op = ce.HessianOperator(model, CE, x, y)
    assert "no longer computes what was captured" in caplog.text
    assert relative(op.output, model(x)) < 1e-6
