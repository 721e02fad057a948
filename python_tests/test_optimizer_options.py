"""Options of optimizers and displacements: refused by name before anything is written, whenever they were set."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from training import CE, batches, small_model

import chaos_ext as ce

NAN, INF = math.nan, math.inf
BAD = [
    *((name, value) for name in ("lr", "momentum", "dampening", "weight_decay") for value in (NAN, INF, -0.1)),
    ("lr", torch.tensor(NAN)),
    ("lr", torch.tensor([0.1, 0.2])),
    ("lr", "0.1"),
    ("lr", None),
    ("momentum", 0.9 + 0.1j),
    ("weight_decay", torch.tensor(-1.0)),
]


def _operator(model, seed=10):
    return ce.HessianOperator(model, CE, *batches(1, seed)[0])


def _state(model, opt):
    return copy.deepcopy((list(model.parameters()), opt.state_dict()["state"]))


def _same(a, b):
    assert all(torch.equal(p, q) for p, q in zip(a[0], b[0]))
    assert a[1].keys() == b[1].keys()
    for i in a[1]:
        assert all(torch.equal(torch.as_tensor(a[1][i][k]), torch.as_tensor(b[1][i][k])) for k in a[1][i])


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_cgd_refuses_numbers_at_construction(name, value):
    model = small_model()
    given = {"lr": 0.1, name: value}
    for make in (
        lambda: ce.CGD(model.parameters(), **given),
        lambda: ce.CGD([{"params": model.parameters(), **given}]),
    ):
        with pytest.raises((ValueError, TypeError), match=name):
            make()


@pytest.mark.parametrize("prune", [None, "negative"])
@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_cgd_refuses_numbers_at_the_step_and_writes_nothing(name, value, prune):
    model = small_model()
    first, *rest = model.parameters()
    opt = ce.CGD([{"params": rest}, {"params": [first]}], lr=0.1, momentum=0.9, prune=prune)
    opt.step(_operator(model))
    before, old = _state(model, opt), opt.param_groups[1][name]
    opt.param_groups[1][name] = value
    for use in (opt.step, opt.tangent_projection):
        with pytest.raises((ValueError, TypeError), match=name):
            use(_operator(model))
    _same(_state(model, opt), before)
    assert opt.steps == 1
    opt.param_groups[1][name] = old
    opt.step(_operator(model))
    assert opt.steps == 2


def test_cgd_refuses_numbers_that_came_with_a_state():
    model = small_model()
    opt = ce.CGD(model.parameters(), lr=0.1)
    state = opt.state_dict()
    state["param_groups"][0]["weight_decay"] = NAN
    before = _state(model, opt)
    with pytest.raises(ValueError, match="weight_decay"):
        opt.load_state_dict(state)
    _same(_state(model, opt), before)


@pytest.mark.parametrize("value", [torch.tensor(0.1), torch.tensor([0.1]), torch.tensor(0.1, dtype=torch.float64)])
@pytest.mark.parametrize("prune", [None, "negative"])
def test_learning_rates_may_be_tensors(value, prune):
    model, twin = small_model(), small_model()
    ours = ce.CGD(model.parameters(), lr=value, prune=prune)
    plain = ce.CGD(twin.parameters(), lr=float(value), prune=prune)
    for _ in range(2):
        ours.step(_operator(model))
        plain.step(_operator(twin))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters()))


TANGENTS = [
    *((SGD, name, value) for name, value in BAD),
    *((ce.CGD, name, value) for name, value in BAD[:4]),
    *((cls, name, v) for cls in (Adam, AdamW) for name in ("lr", "eps", "weight_decay") for v in (NAN, INF, -0.1)),
    *((cls, "betas", v) for cls in (Adam, AdamW) for v in ((NAN, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, "x"))),
]


@pytest.mark.parametrize(("cls", "name", "value"), TANGENTS, ids=str)
def test_tangent_maps_refuse_numbers_and_write_nothing(cls, name, value):
    model = small_model()
    extra = {} if cls in (Adam, AdamW) else {"momentum": 0.9}
    opt = cls(model.parameters(), lr=0.1, **extra)
    tangent, op = ce.TangentMap(opt), _operator(model)
    Y = tangent.start(op, k=2)
    before, old = Y.clone(), opt.param_groups[0][name]
    analyzer = ce.LyapunovAnalyzer(model, opt, k=2)
    opt.param_groups[0][name] = value
    for use in (lambda: tangent.apply_(op, Y), lambda: ce.TangentMap(opt), lambda: analyzer.update(op)):
        with pytest.raises((ValueError, TypeError), match=name):
            use()
    assert torch.equal(Y, before)
    assert analyzer.steps == 0
    opt.param_groups[0][name] = old
    analyzer.update(op)
    assert bool(analyzer.exponents().isfinite().all())


def test_groups_may_have_keys_of_their_own():
    model, twin = small_model(), small_model()

    def groups(m):
        own = {"name": "first", "note": torch.ones(3), "foreach": True, "differentiable": False}
        return [{"params": m[1].parameters(), **own}, {"params": m[3].parameters(), "fused": True, "lr": 0.3}]

    ours = ce.CGD(groups(model), lr=0.1, momentum=0.9, prune=None)
    theirs = SGD(groups(twin), lr=0.1, momentum=0.9)
    for seed in range(3):
        op = _operator(model, seed)
        CE(twin(op.origin.x), batches(1, seed)[0][1]).backward()
        ours.step(op)
        theirs.step()
        theirs.zero_grad()
    for p, q in zip(model.parameters(), twin.parameters()):
        assert torch.allclose(p, q, rtol=0, atol=1e-14)
    group = ours.state_dict()["param_groups"][0]
    assert (group["name"], group["foreach"]) == ("first", True)
    again = ce.CGD(groups(model), lr=0.1, prune="negative")
    again.load_state_dict(ours.state_dict())
    again.step(_operator(model))
    pruning = ce.CGD(groups(model), lr=0.1, prune="negative", k=2)
    pruning.step(_operator(model))
    assert pruning.last_step.pruned == 2
    ce.TangentMap(pruning)


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"differentiable": True}, ce.UnsupportedError),
        ({"prune": "negative"}, ValueError),
        ({"k": 3}, ValueError),
        ({"generator": None}, ValueError),
        ({"spectrum_dtype": torch.float64}, ValueError),
    ],
)
def test_options_that_a_group_cannot_have_are_refused_by_name(option, error):
    model = small_model()
    (name,) = option
    with pytest.raises(error, match=name):
        ce.CGD([{"params": model.parameters(), **option}], lr=0.1)
    opt = ce.CGD(model.parameters(), lr=0.1)
    with pytest.raises(error, match=name):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(2))], **option})
    assert len(opt.param_groups) == 1
    opt.param_groups[0].update(option)
    before = _state(model, opt)
    with pytest.raises(error, match=name):
        opt.step(_operator(model))
    _same(_state(model, opt), before)


def _theta(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


@pytest.mark.parametrize("eps", [1e39, 1e300, -1e200])
def test_a_displacement_that_overflows_is_refused_and_writes_nothing(eps):
    model = small_model(torch.float32)
    before = _theta(model)
    last = torch.zeros(len(before))
    last[-1] = 1.0  # all other parameters could be written
    with pytest.raises(ce.NonFiniteError, match="bias"):
        ce.perturb(model, last, eps)
    assert torch.equal(_theta(model), before)


@pytest.mark.parametrize(
    ("direction", "eps", "error", "match"),
    [
        (lambda v: v.to(torch.complex128), 0.1, TypeError, "complex"),
        (lambda v: v.to(torch.complex64) * 1j, 0.1, TypeError, "complex"),
        (lambda v: v, 0.1j, TypeError, "eps"),
        (lambda v: v, "0.1", TypeError, "eps"),
        (lambda v: v, NAN, ValueError, "eps"),
        (lambda v: v * INF, 0.1, ValueError, "direction"),
        (lambda v: v.tolist(), 0.1, ValueError, "direction"),
    ],
)
def test_displacements_are_refused_by_name(direction, eps, error, match):
    model = small_model()
    before = _theta(model)
    with pytest.raises(error, match=match):
        ce.perturb(model, direction(torch.ones_like(before)), eps)
    assert torch.equal(_theta(model), before)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_the_length_of_the_direction_does_not_matter(scale):
    model = small_model()
    before = _theta(model)
    ce.perturb(model, scale * torch.ones_like(before), torch.tensor(1e-3, dtype=torch.float64))
    assert float((_theta(model) - before).norm()) == pytest.approx(1e-3, rel=1e-12)
