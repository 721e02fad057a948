"""What a captured program is of: the forward with its defaults, and the very modules that it was traced with."""

import gc

import cases
import pytest
import torch
from oracles import double_backward, gradient, relative
from torch import nn

import chaos_ext as ce

CE = nn.CrossEntropyLoss()


def _batch():
    return cases.batch(5, cases.LOSSES["ce"][1])


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x, mask=None, scale=2.0, *, flip=False):
        h = torch.tanh(self.a(x.flatten(1))) * scale
        if mask is not None:
            h = h * mask
        return -self.b(h) if flip else self.b(h)


class Open(Optional):
    def forward(self, x, *args, **kwargs):
        assert not args
        return super().forward(x, **kwargs)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Optional()

    def forward(self, x):
        return self.inner(x, None, 3.0, flip=True)


@pytest.mark.parametrize("make", [Optional, Open, Nested])
def test_arguments_with_defaults_keep_the_layer_rules(make):
    torch.manual_seed(0)
    model, (x, y) = make().double(), _batch()
    op = ce.HessianOperator(model, CE, x, y)
    names = [report.name for report in op.explain()]
    assert names == [n.rpartition(".")[0] for n, _ in model.named_parameters() if n.endswith("weight")]
    assert relative(op.gradient, gradient(model, CE, x, y)) < 1e-12
    assert relative(op.dense(), double_backward(model, CE, x, y)) < 1e-10


class Two(Optional):
    def forward(self, x, z):
        return super().forward(x) + z


@pytest.mark.parametrize("wrap", [lambda x: (x, 1.0), lambda x: {"x": x}, lambda x: x], ids=["tuple", "dict", "tensor"])
def test_x_is_passed_whole_and_the_error_says_so(wrap):
    model, (x, y) = Two().double(), _batch()
    with pytest.raises(ValueError, match="passed whole"):
        ce.HessianOperator(model, CE, wrap(x), y)


class Pair(Optional):
    def forward(self, x):
        a, b = x.values() if isinstance(x, dict) else x
        return super().forward(a) + super().forward(b)


@pytest.mark.parametrize("wrap", [lambda x: (x, x.sin()), lambda x: {"a": x, "b": x.sin()}], ids=["tuple", "dict"])
def test_tuples_and_dicts_are_one_argument(wrap):
    torch.manual_seed(0)
    model, (x, y) = Pair().double(), _batch()
    op = ce.HessianOperator(model, CE, wrap(x), y)
    assert relative(op.dense(), double_backward(model, CE, wrap(x), y)) < 1e-10


def test_a_layer_that_gets_the_id_of_a_freed_one_is_another():
    model, (x, y) = cases.mlp(2, "tanh").double(), _batch()
    place = next(i for i, m in enumerate(model) if isinstance(m, nn.Linear))
    for trial in range(50):
        old = model[place]
        shape = old.out_features, old.in_features
        del old
        model[place] = nn.Identity()
        gc.collect()
        torch.manual_seed(trial)
        model[place] = nn.Linear(shape[1], shape[0]).double()
        op = ce.HessianOperator(model, CE, x, y)
        assert relative(op.gradient, gradient(model, CE, x, y)) < 1e-12


@pytest.mark.parametrize("replace", ["weight", "bias"])
def test_a_parameter_that_gets_the_id_of_a_freed_one_is_another(replace):
    model, (x, y) = cases.mlp(2, "tanh").double(), _batch()
    layer = next(m for m in model if isinstance(m, nn.Linear))
    for trial in range(50):
        shape = getattr(layer, replace).shape
        setattr(layer, replace, None)
        gc.collect()
        setattr(layer, replace, nn.Parameter(torch.full(shape, 0.1 * (1 + trial % 3), dtype=torch.float64)))
        op = ce.HessianOperator(model, CE, x, y)
        assert relative(op.gradient, gradient(model, CE, x, y)) < 1e-12


class Autocast(Optional):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = self.a(x.flatten(1))
        return self.b(torch.tanh(h).to(x.dtype))


def _functional(z, y):
    return CE(z, y) + 0.0


def _autocast_loss(z, y):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return CE(z @ torch.eye(3), y)


@pytest.mark.parametrize(
    ("make", "loss"),
    [(Autocast, CE), (Autocast, _functional), (Optional, _autocast_loss)],
    ids=["forward, rules", "forward, torch", "loss"],
)
def test_autocast_inside_is_refused_by_name(make, loss):
    model, (x, y) = make(), _batch()
    with pytest.raises(ce.UnsupportedError, match="autocast"):
        ce.HessianOperator(model, loss, x.float(), y)
