"""Whatever changes in a model of torch's own modules, or in torch, between two operators: the second one knows."""

import collections

import numpy as np
import pytest
import torch
from oracles import double_backward, gradient, relative
from small import LOSSES, X, Y, mlp
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import chaos_ext as ce
from chaos_ext.base.code import Code
from chaos_ext.rules.losses import rule_for

CE = LOSSES["rules"]


def _is_exact(model, x=X):
    op = ce.HessianOperator(model, CE, x, Y)
    v = torch.linspace(-1, 1, 2 * op.shape[0], dtype=torch.float64).view(-1, 2)
    H = double_backward(model, CE, x, Y)
    assert relative(op.output, model(x)) < 1e-14
    assert relative(op.gradient, gradient(model, CE, x, Y)) < 1e-12
    assert relative(op @ v, H @ v) < 1e-12
    assert relative(op.dense(), H) < 1e-12


def _around(*layers):
    """The layers between two linear ones; their parameters are no ones and zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), *layers, nn.Tanh(), nn.Linear(6, 3)).double()
    for p in model.parameters():
        nn.init.uniform_(p, 0.3, 1.5)
    return model


NORMS = {"layer": lambda: nn.LayerNorm(6), "batch": lambda: nn.BatchNorm1d(6), "group": lambda: nn.GroupNorm(2, 6)}


@pytest.mark.parametrize("name", NORMS)
def test_parameters_of_one_shape_that_change_places_in_theta(name):
    model = _around(NORMS[name]())
    _is_exact(model)
    weight = model[1].weight
    del model[1].weight
    model[1].weight = weight
    assert [n for n, _ in model[1].named_parameters()] == ["bias", "weight"]
    _is_exact(model)


def test_a_layer_that_was_pruned():
    model = _around()
    _is_exact(model)
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.remove(model[0], "weight")
    _is_exact(model)


def test_a_layer_that_comes_later_where_another_is_used_twice():
    layer, act = nn.Linear(4, 4), nn.Tanh()
    model = nn.Sequential(collections.OrderedDict(first=layer, act=act, again=layer, out=nn.Linear(4, 3))).double()
    _is_exact(model)
    out = model.out
    del model.act, model.out
    model.add_module("act", act)
    model.add_module("out", out)
    _is_exact(model)


def test_statistics_that_come_and_go():
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    model = _around(norm).eval()
    _is_exact(model)
    norm.running_mean, norm.running_var = torch.rand(6).double(), torch.rand(6).double()
    _is_exact(model)
    norm.running_mean = norm.running_var = None
    _is_exact(model)


SETTINGS = {
    "float32 of numpy": (lambda: nn.LeakyReLU(np.float32(0.1)), "negative_slope", [np.float32(0.4), np.float32(0.7)]),
    "int64 of numpy": (lambda: nn.GroupNorm(np.int64(2), 6), "num_groups", [np.int64(3), np.int64(1)]),
    "limits of numpy": (lambda: nn.Hardtanh(np.int64(0), np.int64(1)), "max_val", [np.int64(2), np.float32(0.5)]),
    "eps": (lambda: nn.LayerNorm(6), "eps", [0.5, np.float32(2.5), np.float32(0.25)]),
    "tensor": (lambda: nn.LeakyReLU(torch.tensor(0.1)), "negative_slope", [torch.tensor(0.4), torch.tensor(0.7)]),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name):
    make, attribute, values = SETTINGS[name]
    model = _around(make())
    _is_exact(model)
    for value in values:
        setattr(model[1], attribute, value)
        _is_exact(model)


def test_a_setting_that_is_a_tensor_edited_in_place():
    slope = torch.tensor(0.1)
    model = _around(nn.LeakyReLU(slope))
    _is_exact(model)
    slope.fill_(0.7)
    _is_exact(model)


def _conv(**settings):
    conv = nn.Conv1d(1, 2, 3, padding=1, **settings)
    return nn.Sequential(nn.Unflatten(1, (1, 4)), conv, nn.Flatten(), nn.Tanh(), nn.Linear(8, 3)).double()


def test_the_padding_that_a_convolution_has_computed():
    model = _conv(padding_mode="circular")
    _is_exact(model)
    model[1]._reversed_padding_repeated_twice = (2, 0)
    _is_exact(model)


def test_a_method_of_one_layer_that_is_replaced_twice():
    model = _conv()
    _is_exact(model)
    own = model[1]._conv_forward
    for factor in (2, 3):
        model[1]._conv_forward = lambda *args, factor=factor: factor * own(*args)
        _is_exact(model)


def _doubling_tanh(old):
    return lambda self, *args: 2 * old(self, *args) if isinstance(self, nn.Tanh) else old(self, *args)


PATCHES = {
    "linear": (mlp, F, "linear", lambda old: lambda *args: 2 * old(*args)),
    "tanh": (mlp, torch, "tanh", lambda old: torch.sin),
    "relu": (lambda: _around(nn.ReLU()), F, "relu", lambda old: lambda x, inplace=False: torch.sin(x)),
    "layer_norm": (lambda: _around(nn.LayerNorm(6)), torch, "layer_norm", lambda old: lambda *a: 2 * old(*a)),
    "max_pool1d": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(2, 3)).double(),
        *(torch, "max_pool1d", lambda old: lambda *a: 2 * old(*a)),
    ),
    "a class's call": (mlp, nn.Tanh, "__call__", lambda old: lambda self, x: torch.sin(x)),
    "a class's method": (_conv, nn.Conv1d, "_conv_forward", lambda old: lambda *a: 2 * old(*a)),
    "a loss's method": (mlp, nn.CrossEntropyLoss, "forward", lambda old: lambda *a: 2 * old(*a)),
    "every call": (mlp, nn.Module, "_call_impl", _doubling_tanh),
}


@pytest.mark.parametrize("name", PATCHES)
def test_a_function_that_is_replaced(name, monkeypatch):
    make, owner, function, patch = PATCHES[name]
    model = make()
    _is_exact(model)
    monkeypatch.setattr(owner, function, patch(getattr(owner, function)), raising=False)
    _is_exact(model)
    monkeypatch.undo()
    _is_exact(model)


GLOBAL_HOOKS = {
    "before": nn.modules.module.register_module_full_backward_pre_hook,
    "after": nn.modules.module.register_module_full_backward_hook,
}


@pytest.mark.parametrize("name", GLOBAL_HOOKS)
def test_a_global_hook_that_changes_gradients_is_refused_as_one_of_a_module_is(name):
    model = mlp()
    _is_exact(model)
    handle = GLOBAL_HOOKS[name](lambda m, gradient, *_: tuple(None if g is None else 2 * g for g in gradient))
    try:
        with pytest.raises(ce.UnsupportedError, match="the gradient is not the derivative of the loss"):
            ce.HessianOperator(model, CE, X, Y).dense()
    finally:
        handle.remove()
    _is_exact(model)


def test_a_loss_that_is_replaced_by_one_that_counts_twice_where_torch_looks_it_up_again(monkeypatch):
    model, old = mlp(), F.cross_entropy
    _is_exact(model)
    monkeypatch.setattr(F, "cross_entropy", lambda *args, **options: 2 * old(*args, **options))
    with pytest.raises(ce.UnsupportedError, match="loss_fn: it is"):
        ce.HessianOperator(model, CE, X, Y)


def test_a_replaced_function_that_changes_its_mind(monkeypatch):
    factor, old = [1.0], F.linear
    monkeypatch.setattr(F, "linear", lambda *args: factor[0] * old(*args))
    model = mlp()
    for factor[0] in (1.0, 2.0, 3.0):
        _is_exact(model)


class _Doubling(torch.Tensor):
    """Its linear layers give twice as much."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * out if func is F.linear else out


def test_an_input_of_a_class_with_functions_of_its_own():
    model = mlp()
    _is_exact(model)
    _is_exact(model, X.as_subclass(_Doubling))


class _DoublingParameter(_Doubling, nn.Parameter):
    pass


def test_a_parameter_of_a_class_with_functions_of_its_own():
    model = mlp()
    _is_exact(model)
    model[0].weight = _DoublingParameter(model[0].weight.detach())
    with pytest.raises(ce.UnsupportedError):
        ce.HessianOperator(model, CE, X, Y)


def test_a_parameter_whose_shape_changes():
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)).double()
    _is_exact(model)
    model[2].weight.data = torch.rand(5, 6, dtype=torch.float64)  # of all of theta's the last, so that no offset moves
    _is_exact(model)


def test_what_torch_fx_wraps_while_it_traces_is_not_taken_for_replaced():
    """It does so for all threads: another one's operators keep their rules."""
    before, seen = Code([nn.Linear, nn.CrossEntropyLoss]), []

    class Looks(nn.Module):
        def forward(self, x):
            code = Code([nn.Linear])
            seen.append((nn.Module.__call__ is call, before.is_same(), code.replaced, rule_for(nn.CrossEntropyLoss())))
            return x

    call = nn.Module.__call__
    torch.fx.symbolic_trace(Looks())
    ((unpatched, same, replaced, rule),) = seen
    assert not unpatched
    assert same
    assert replaced is None
    assert rule is not None


def test_parameters_have_no_functions_of_their_own_where_a_mode_is_active():
    model, x, y = nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    with torch.device("cpu"):
        paths = {report.path for report in ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y).explain()}
    assert paths <= {"enter at units", "enter at parameters"}
