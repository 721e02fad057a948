"""Parameters that come, go, freeze and take each other's place under a tangent map: a named error, or right numbers."""

import copy
import gc

import pytest
import torch
from oracles import double_backward, relative
from torch import nn
from torch.optim import SGD, Adam
from training import CE, batches, small_model, train

import chaos_ext as ce

OPTIMIZERS = [(SGD, {}), (SGD, {"momentum": 0.9}), (Adam, {}), (ce.CGD, {"prune": "negative"})]


def _operator(model, seed=10):
    return ce.HessianOperator(model, CE, *batches(1, seed)[0])


def _unfreeze(model):
    model[1].weight.requires_grad_(True)


def _freeze(model):
    model[3].bias.requires_grad_(False)


def _swap(model):
    _freeze(model)
    _unfreeze(model)


CHANGES = {"unfreeze": (_unfreeze, r"1\.weight"), "freeze": (_freeze, r"\(3,\)"), "swap": (_swap, r"1\.weight.*\(3,\)")}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS, ids=str)
def test_a_change_of_requires_grad_is_refused_by_name_and_state_is_as_before(cls, options, warm, change):
    model = small_model()
    model[1].weight.requires_grad_(False)
    opt = cls(model.parameters(), lr=0.1, **options)
    analyzer, tangent = ce.LyapunovAnalyzer(model, opt, k=2), ce.TangentMap(opt)
    train(model, opt, batches(warm), watch=analyzer.update)
    state = copy.deepcopy(analyzer.state_dict())
    sizes = tangent.parameters, tangent.size
    Y = tangent.start(_operator(model), k=2)
    before = Y.clone()
    act, match = CHANGES[change]
    act(model)
    for use in (lambda: analyzer.update(_operator(model)), lambda: tangent.apply_(_operator(model), Y)):
        with pytest.raises(ValueError, match=rf"requires_grad of .*{match}.* changed .* make a new"):
            use()
    assert torch.equal(Y, before)
    assert (tangent.parameters, tangent.size) == sizes
    model[1].weight.requires_grad_(False)
    model[3].bias.requires_grad_(True)
    after = analyzer.state_dict()
    assert after["run"]["steps"] == state["run"]["steps"] == warm
    assert torch.equal(after["run"]["Y"], state["run"]["Y"])
    tangent.apply_(_operator(model), Y)
    train(model, opt, batches(2, seed=20), watch=analyzer.update)
    assert analyzer.steps == warm + 2


@pytest.mark.parametrize("warm", [0, 2])
def test_a_parameter_that_joins_is_refused_by_name_by_the_analyzer_too(warm):
    model = small_model()
    model[1].weight.requires_grad_(False)
    opt = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    analyzer = ce.LyapunovAnalyzer(model, opt, k=2)
    train(model, opt, batches(warm), watch=analyzer.update)
    Q = analyzer.directions()
    _unfreeze(model)
    opt.add_param_group({"params": [model[1].weight]})
    with pytest.raises(ValueError, match="joined"):
        analyzer.update(_operator(model))
    assert torch.equal(analyzer.directions(), Q)
    assert analyzer.steps == warm


def test_frozen_parameters_that_join_matter_to_nobody():
    model = small_model()
    opt = SGD(model.parameters(), lr=0.1)
    tangent = ce.TangentMap(opt)
    opt.add_param_group({"params": [nn.Parameter(torch.zeros(4), requires_grad=False)]})
    Y = tangent.start(_operator(model))
    expected = Y - 0.1 * double_backward(model, CE, *batches(1)[0])
    for _ in range(2):
        tangent.apply_(_operator(model), Y)
        assert relative(Y, expected) < 1e-10
        Y = tangent.start(_operator(model))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_parameter_that_takes_a_freed_ones_place_is_not_taken_for_it(momentum):
    """A replaced layer may get the id of the old one: the map holds its parameters, so that they cannot be freed."""
    model = small_model()
    opt = SGD(model.parameters(), lr=0.1, momentum=momentum)
    tangent = ce.TangentMap(opt)
    tangent.apply_(_operator(model), tangent.start(_operator(model)))
    for _ in range(20):
        old = id(model[1].weight)
        opt.param_groups[0]["params"].remove(model[1].weight)
        model[1].weight = nn.Parameter(torch.randn(3, 6, dtype=torch.float64))
        gc.collect()
        opt.param_groups[0]["params"].insert(0, model[1].weight)
        assert id(model[1].weight) != old or not model[1].weight.requires_grad
        with pytest.raises(ValueError, match="joined"):
            tangent.apply_(_operator(model), torch.eye(tangent.size, dtype=torch.float64))


def test_copies_of_a_tangent_map_belong_to_the_copied_model():
    model = small_model()
    opt = SGD(model.parameters(), lr=0.1, momentum=0.9)
    tangent = ce.TangentMap(opt)
    Y = tangent.start(_operator(model))
    twin, _, other = copy.deepcopy((model, opt, tangent))
    Z = Y.clone()
    tangent.apply_(_operator(model), Y)
    other.apply_(_operator(twin), Z)
    assert torch.equal(Y, Z)
    with pytest.raises(ValueError, match=r"1\.weight"):
        other.apply_(_operator(model), Z)
