"""CGD through torch.distributed.checkpoint, which keeps "state" and "param_groups" only, goes on bit for bit."""

import copy

import cases
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from training import CE, batches

import chaos_ext as ce

BATCHES = batches(6)
OPTIONS = [{}, {"momentum": 0.9}, {"momentum": 0.9, "noise": 0.1}, {"weight_decay": 0.1, "noise": 0.1}]
pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of a missing process group


def _run(seed, groups=1, **options):
    model = cases.mlp(2, "tanh", seed=seed, width=3).double()
    params = list(model.parameters())
    given = params if groups == 1 else [{"params": params[:2]}, {"params": params[2:], "momentum": 0.3}]
    generator = torch.Generator().manual_seed(seed)
    options = {"prune": "negative", "k": 2, "order": "random", "start": 2, "generator": generator, **options}
    return model, ce.CGD(given, lr=0.1, **options)


def _train(run, steps):
    model, opt = run
    for i in steps:
        opt.step(ce.HessianOperator(model, CE, *BATCHES[i]))


def _same(a, b):
    generators = torch.equal(a[1].generator.get_state(), b[1].generator.get_state())
    return generators and all(torch.equal(p, q) for p, q in zip(a[0].parameters(), b[0].parameters()))


def _through_files(source, target, folder, options):
    state = {"model": source[0].state_dict(), "opt": get_optimizer_state_dict(*source, options=options)}
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    state = {"model": target[0].state_dict(), "opt": get_optimizer_state_dict(*target, options=options)}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    target[0].load_state_dict(state["model"])
    set_optimizer_state_dict(*target, state["opt"], options=options)


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_run_goes_on_bit_for_bit(options, steps, groups, flat, tmp_path):
    whole, run, resumed = _run(1, groups, **options), _run(1, groups, **options), _run(2, groups, **options)
    _train(whole, range(6))
    _train(run, range(steps))
    _through_files(run, resumed, tmp_path, StateDictOptions(flatten_optimizer_state_dict=flat))
    assert (run[1].steps, resumed[1].steps) == (steps, steps)
    _train(resumed, range(steps, 6))
    assert _same(resumed, whole)
    _train(run, range(steps, 6))  # that it was saved did not disturb it
    assert _same(run, whole)


def test_making_state_is_no_step_and_draws_nothing():
    model, opt = _run(1, momentum=0.9, noise=0.1, start=0)
    before, state = copy.deepcopy(model), opt.generator.get_state()
    get_optimizer_state_dict(model, opt)
    assert (opt.steps, opt.last_step) == (0, None)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters()))
    assert torch.equal(opt.generator.get_state(), state)


@pytest.mark.parametrize("kind", ["lr", "gradient", "source"])
def test_a_step_with_lr_or_gradient_or_source_counts(kind):
    model, opt = _run(1)
    for p in model.parameters():
        p.grad = torch.full_like(p, 1.0 if kind == "gradient" else 0.0)
    opt.param_groups[0]["lr"] = 0.1 if kind == "lr" else 0.0
    opt.step(ce.HessianOperator(model, CE, *BATCHES[0]) if kind == "source" else None)
    assert opt.steps == 1


def test_states_from_before_groups_carried_anything_are_loaded():
    run, resumed = _run(1), _run(2)
    _train(run, range(3))
    state = copy.deepcopy(run[1].state_dict())
    for group in state["param_groups"]:
        del group["chaos_ext"]
    resumed[0].load_state_dict(run[0].state_dict())
    resumed[1].load_state_dict(state)
    assert all(g["chaos_ext"] is None for g in resumed[1].param_groups)
    _train(run, range(3, 6))
    _train(resumed, range(3, 6))
    assert _same(run, resumed)


def test_a_state_of_sgd_starts_at_step_0():
    model, opt = _run(1)
    _train((model, opt), range(3))
    opt.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.5).state_dict())
    assert (opt.steps, opt.param_groups[0]["lr"]) == (0, 0.5)
    get_optimizer_state_dict(model, opt, options=StateDictOptions(flatten_optimizer_state_dict=True))


def test_sgd_takes_its_state():
    model, opt = _run(1, momentum=0.9)
    _train((model, opt), range(3))
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    sgd.load_state_dict(opt.state_dict())
    assert sgd.param_groups[0]["lr"] == 0.1
    sgd.zero_grad()
    CE(model(BATCHES[0][0]), BATCHES[0][1]).backward()
    sgd.step()


DAMAGE = {
    "groups of different steps": lambda groups: groups[1]["chaos_ext"].update(steps=7),
    "one group of another optimizer": lambda groups: groups[0].pop("chaos_ext"),
    "steps that are none": lambda groups: [g["chaos_ext"].update(steps="x") for g in groups],
    "negative steps": lambda groups: [g["chaos_ext"].update(steps=-1) for g in groups],
    "no numbers": lambda groups: [g["chaos_ext"].update(generator="no hex") for g in groups],
    "half a generator": lambda groups: [g["chaos_ext"].update(generator="00ff") for g in groups],
    "no dict": lambda groups: [g.update(chaos_ext=[3]) for g in groups],
    "no group": lambda groups: groups.__setitem__(0, "x"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_groups_are_refused_and_nothing_is_loaded(name):
    run, other = _run(1, groups=2), _run(2, groups=2)
    _train(run, range(3))
    state = copy.deepcopy(run[1].state_dict())
    del state["chaos_ext"]
    DAMAGE[name](state["param_groups"])
    before, generator = copy.deepcopy(other[1].state_dict()), other[1].generator.get_state()
    with pytest.raises(ce.CheckpointError, match="state_dict"):
        other[1].load_state_dict(state)
    assert other[1].state_dict()["param_groups"] == before["param_groups"]
    assert torch.equal(other[1].generator.get_state(), generator)
