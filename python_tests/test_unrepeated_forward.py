"""A model of torch's own modules is not run again for every operator; whatever could have changed has it run again."""

import pytest
import torch
from oracles import double_backward, relative
from small import LOSSES, X, Y, mlp
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

import chaos_ext as ce

CE = LOSSES["rules"]


def _is_exact(model, x=X, y=Y):
    op = ce.HessianOperator(model, CE, x, y)
    assert relative(op.dense(), double_backward(model, CE, x, y)) < 1e-12
    assert relative(op.output, model(x)) < 1e-14


def _products_of_two_layers(model, x=X, y=Y):
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        ce.HessianOperator(model, CE, x, y)
    return sum(e.count for e in seen.key_averages() if e.key == "aten::addmm")


def test_only_the_first_operator_of_each_number_of_samples_runs_the_model():
    model = mlp()
    ce.HessianOperator(model, CE, X, Y)
    assert _products_of_two_layers(model) == 2
    assert _products_of_two_layers(model, X[:3], Y[:3]) == 4
    assert _products_of_two_layers(model, X[:3], Y[:3]) == 2


def test_a_models_own_forward_is_run_every_time():
    class Own(nn.Sequential):
        pass

    model = Own(*mlp())
    ce.HessianOperator(model, CE, X, Y)
    assert _products_of_two_layers(model) == 4


def test_a_forward_that_is_patched_for_a_whole_class(monkeypatch):
    model = mlp()
    _is_exact(model)
    monkeypatch.setattr(nn.Tanh, "forward", lambda self, x: torch.sin(x))
    _is_exact(model)
    monkeypatch.undo()
    _is_exact(model)


def test_a_setting_that_is_a_list_edited_in_place():
    size = [2]
    model = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.AdaptiveAvgPool1d(size), nn.Flatten(), nn.Linear(2, 3)).double()
    _is_exact(model)
    size[0] = 1
    with pytest.raises(ValueError, match="forward failed"):
        ce.HessianOperator(model, CE, X, Y)
    size[0] = 2
    _is_exact(model)


def test_a_global_hook():
    model = mlp()
    _is_exact(model)
    handle = nn.modules.module.register_module_forward_hook(lambda m, _, z: 2 * z if isinstance(m, nn.Tanh) else None)
    try:
        _is_exact(model)
    finally:
        handle.remove()
    _is_exact(model)


class _Doubled(TorchFunctionMode):
    """As a library that counts or quantises would: every tanh comes out doubled."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return 2 * out if func is torch.tanh else out


def test_a_mode_that_changes_functions():
    model = mlp()
    _is_exact(model)
    with _Doubled():
        _is_exact(model)
    _is_exact(model)


def test_what_the_model_refuses_is_said_in_its_terms():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(6, 3)).double()
    x = torch.tensor([[0, 1], [2, 3], [1, 1]])
    ce.HessianOperator(model, CE, x, Y[:3])
    with pytest.raises(ValueError, match="forward failed on a batch"):
        ce.HessianOperator(model, CE, x + 1, Y[:3])
    ce.HessianOperator(model, CE, x, Y[:3])


REFUSED = {
    "labels": (CE, torch.tensor([0, 1, 2, 0, 1, 7])),
    "too few labels": (CE, Y[:2]),
    "targets of another shape": (nn.MSELoss(), torch.zeros(6, 2, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_running_statistics_are_what_they_were_after_targets_are_refused(name):
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    loss, y = REFUSED[name]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(2):  # with and without a program that is known already
        with pytest.raises(ValueError, match=r"^y: "):
            ce.HessianOperator(model, loss, X, y)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        ce.HessianOperator(model, CE, X, Y)
