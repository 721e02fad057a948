"""CGD among torch's optimizers: closures by keyword, Lightning's loop, torch.distributed.checkpoint, steps on .grad."""

import copy

import cases
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import SGD
from training import CE, batches, small_model

import chaos_ext as ce


def _operator(model, seed=10):
    return ce.HessianOperator(model, CE, *batches(1, seed)[0])


def _same(model, twin):
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters()))


@pytest.mark.parametrize("make", [lambda op: op, ce.spectrum], ids=["operator", "spectrum"])
def test_a_closure_by_keyword_is_a_source(make):
    runs = []
    for call in (
        lambda opt, m: opt.step(make(_operator(m))),
        lambda opt, m: opt.step(lambda: make(_operator(m))),
        lambda opt, m: opt.step(closure=lambda: make(_operator(m))),
        lambda opt, m: opt.step(source=lambda: make(_operator(m))),
        lambda opt, m: opt.step(source=None, closure=lambda: make(_operator(m))),
    ):
        model = small_model()
        opt = ce.CGD(model.parameters(), lr=0.1, momentum=0.9, prune="negative")
        losses = [call(opt, model) for _ in range(2)]
        assert losses[1] == _loss_before(model, opt, losses[1])
        runs.append(model)
    assert all(_same(runs[0], m) for m in runs[1:])


def _loss_before(model, opt, loss):
    assert opt.last_step.loss == float(loss)
    return loss


def _backward(model):
    loss = CE(model(batches(1)[0][0]), batches(1)[0][1])
    loss.backward()
    return loss


RETURNED = {
    "loss": _backward,
    "number": lambda m: _backward(m).item(),
    "nothing": lambda m: None,
    "loss and output": lambda m: (_backward(m), 1),
    "gradient": lambda m: _operator(m).gradient,
}


@pytest.mark.parametrize("name", RETURNED)
@pytest.mark.parametrize("prune", [None, "negative"])
@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_that_returns_something_else_is_told_what_to_return(name, prune, keyword):
    model = small_model()
    opt = ce.CGD(model.parameters(), lr=0.1, momentum=0.9, prune=prune)
    before = copy.deepcopy(model)
    with pytest.raises(TypeError, match=r"closure returned.*return chaos_ext\.HessianOperator") as error:
        opt.step(**{"closure" if keyword else "source": lambda: RETURNED[name](model)})
    assert ("the loss?" in str(error.value)) == (name in ("loss", "number"))
    assert _same(model, before)
    assert opt.steps == 0


def test_two_sources_and_closures_that_are_none_are_refused():
    model = small_model()
    opt, op = ce.CGD(model.parameters(), lr=0.1), _operator(model)
    with pytest.raises(TypeError, match="both"):
        opt.step(op, closure=lambda: op)
    with pytest.raises(TypeError, match="closure"):
        opt.step(closure=op)
    assert opt.steps == 0


@pytest.mark.parametrize("bypass", [{"prune": None}, {"start": 9}, {"mix": 0.0}, {"k": 0}])
def test_a_step_that_does_not_prune_takes_grad_as_sgd_does(bypass):
    model, twin = small_model(), small_model()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    ours = ce.CGD(model.parameters(), **options, **bypass)
    theirs = SGD(twin.parameters(), **options, foreach=False)
    for _ in range(3):
        for m, opt, arguments in ((model, ours, {"closure": None}), (twin, theirs, {})):
            opt.zero_grad()
            _backward(m)
            opt.step(**arguments)
        assert _same(model, twin)


def test_a_step_that_prunes_needs_directions():
    model = small_model()
    opt = ce.CGD(model.parameters(), lr=0.1, prune="negative")
    _backward(model)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="expected a HessianOperator"):
        opt.step()
    model[1].weight.grad = None
    with pytest.raises(ValueError, match=r"\.grad is required and missing.*HessianOperator"):
        opt.step(closure=None)
    assert _same(model, before)


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {}, {"momentum": 0.9, "prune": None}], ids=str)
@pytest.mark.parametrize("steps", [0, 2])
def test_distributed_checkpoints_carry_its_state(options, steps):
    """torch.distributed.checkpoint creates state by ``step(closure=None)`` with zero gradients and lr = 0."""
    model, resumed = small_model(), cases.mlp(2, "tanh", seed=9, width=3)
    opt = ce.CGD(model.parameters(), **{"lr": 0.1, "prune": "negative", **options})
    other = ce.CGD(resumed.parameters(), **{"lr": 0.7, "prune": "negative", **options})
    for _ in range(steps):
        opt.step(_operator(model))
    resumed.load_state_dict(model.state_dict())
    state = copy.deepcopy(get_optimizer_state_dict(model, opt))  # as a file would: it shares its tensors with opt
    assert _same(model, resumed)
    set_optimizer_state_dict(resumed, other, state)
    assert other.param_groups[0]["lr"] == 0.1
    for m, o in ((model, opt), (resumed, other)):
        o.step(_operator(m))
    assert _same(model, resumed)


def test_noise_is_put_on_directions_also_where_the_gradient_is_zero():
    model = small_model()
    opt = ce.CGD(model.parameters(), lr=0.1, prune="negative", noise=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(ValueError, match="expected a HessianOperator"):
        opt.step()


def test_schedulers_and_hooks_of_torch_wrap_the_step():
    model, seen = small_model(), []
    opt = ce.CGD(model.parameters(), lr=0.1, prune="negative")
    schedule = torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)
    opt.register_step_pre_hook(lambda o, args, kwargs: seen.append(sorted(kwargs)))
    opt.step(closure=lambda: _operator(model))
    schedule.step()
    assert (seen, opt.param_groups[0]["lr"]) == ([["closure"]], 0.05)


class Lightning:
    """What Lightning's loop does with an optimizer: the step gets a closure, whose result it hands on."""

    def __init__(self, module: nn.Module, opt: torch.optim.Optimizer) -> None:
        self.module, self.opt = module, opt

    def fit(self, steps: int) -> list[float]:
        return [float(self.opt.step(closure=lambda t=t: _operator(self.module, t))) for t in range(steps)]


def test_a_loop_of_closures_trains():
    model = small_model()
    losses = Lightning(model, ce.CGD(model.parameters(), lr=0.5, prune="negative")).fit(1)
    assert losses == [float(_operator(small_model(), 0).loss)]
