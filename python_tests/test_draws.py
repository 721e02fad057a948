"""Random directions and noise of CGD: the same bits for a step that was looked at, broken off, repeated or reloaded."""

import copy

import cases
import pytest
import torch
from training import CE, batches, small_model

import chaos_ext as ce
from chaos_ext.optim import cgd

BATCHES = [*batches(5), cases.batch(1, cases.LOSSES["ce"][1])]


def _operator(model, i=0):
    return ce.HessianOperator(model, CE, *BATCHES[i])


def _run(own, **options):
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(5) if own else None
    model = small_model()
    opt = ce.CGD(
        model.parameters(), lr=0.1, momentum=0.5, prune="negative", k=2, order="random", generator=generator, **options
    )
    return model, opt


def _end(model, opt):
    """Parameters and the state of the generator after two more steps."""
    for i in (1, 2):
        opt.step(_operator(model, i))
    state = torch.get_rng_state() if opt.generator is None else opt.generator.get_state()
    return torch.cat([torch.nn.utils.parameters_to_vector(model.parameters()).detach(), state.double()])


class _BrokenError(Exception):
    pass


def _broken_before_the_update(monkeypatch, call):
    def fail(*_):
        raise _BrokenError

    with monkeypatch.context() as patch:
        patch.setattr(cgd.CGD, "_updates", fail)
        with pytest.raises(_BrokenError):
            call()


def _look(model, opt, _):
    opt.selection(ce.spectrum(_operator(model)))


def _look_elsewhere(model, opt, _):
    opt.selection(ce.spectrum(_operator(model, 5)))  # another number of negative directions


def _project(model, opt, _):
    opt.tangent_projection(_operator(model))


def _break(model, opt, monkeypatch):
    _broken_before_the_update(monkeypatch, lambda: opt.step(_operator(model)))


def _look_and_break(model, opt, monkeypatch):
    _look(model, opt, monkeypatch)
    _break(model, opt, monkeypatch)
    _break(model, opt, monkeypatch)


def _look_with_other_options(model, opt, _):
    opt.k = 1
    opt.selection(ce.spectrum(_operator(model)))
    opt.k = 2


def _look_without_a_draw_in_between(model, opt, _):
    for k in (1, None, 2):
        opt.k = k
        opt.selection(ce.spectrum(_operator(model)))


def _rewind_by_hand(model, opt, monkeypatch):
    state = torch.get_rng_state() if opt.generator is None else opt.generator.get_state()
    _look(model, opt, monkeypatch)
    torch.set_rng_state(state) if opt.generator is None else opt.generator.set_state(state)


BEFORE = [
    _look,
    _look_elsewhere,
    _project,
    _break,
    _look_and_break,
    _look_with_other_options,
    _look_without_a_draw_in_between,
    _rewind_by_hand,
]


def test_the_two_batches_have_different_numbers_of_negative_directions():
    model, _ = _run(True)
    assert len({int((ce.spectrum(_operator(model, i)).eigenvalues < 0).sum()) for i in (0, 5)}) == 2


@pytest.mark.parametrize("own", [True, False], ids=["own generator", "global generator"])
@pytest.mark.parametrize("options", [{}, {"noise": 0.1}], ids=str)
@pytest.mark.parametrize("first", BEFORE)
def test_a_step_repeated_with_a_new_operator_gives_the_bits_of_an_undisturbed_one(first, options, own, monkeypatch):
    model, opt = _run(own, **options)
    opt.step(_operator(model))
    expected = _end(model, opt)
    model, opt = _run(own, **options)
    first(model, opt, monkeypatch)
    opt.step(_operator(model))
    assert torch.equal(_end(model, opt), expected)


def test_a_look_shows_what_the_step_takes_also_with_a_new_operator():
    model, opt = _run(True)
    spec = ce.spectrum(_operator(model))
    looked = opt.selection(spec)
    assert torch.equal(opt.selection(ce.spectrum(_operator(model))), looked)
    assert torch.equal(opt.selection(ce.directions(_operator(model))), looked)
    others = {tuple(_seeded(model, spec, s).tolist()) for s in range(20)}
    assert len(others) > 1  # the draw could have come out otherwise


def _seeded(model, spec, seed):
    generator = torch.Generator().manual_seed(seed)
    return ce.CGD(model.parameters(), lr=0.1, prune="negative", k=2, order="random", generator=generator).selection(
        spec
    )


def test_numbers_that_others_draw_meanwhile_are_not_taken_back():
    model, opt = _run(False)
    looked = opt.selection(ce.spectrum(_operator(model)))
    drawn = torch.rand(3)
    now = torch.get_rng_state()
    assert torch.equal(opt.selection(ce.spectrum(_operator(model))), looked)
    opt.step(_operator(model))
    assert torch.equal(torch.get_rng_state(), now)
    assert not torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("copied", ["state_dict", "deepcopy"])
@pytest.mark.parametrize("looked", [False, True])
def test_a_copy_made_between_look_and_step_takes_the_same_directions(looked, copied):
    model, opt = _run(True, noise=0.1)
    opt.step(_operator(model))
    if looked:
        opt.selection(ce.spectrum(_operator(model, 1)))
    if copied == "deepcopy":
        twin, other = copy.deepcopy((model, opt))
    else:
        twin, other = _run(True, noise=0.1)
        other.generator.manual_seed(99)
        twin.load_state_dict(model.state_dict())
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert torch.equal(_end(twin, other), _end(model, opt))


def test_the_mask_is_the_callers_own():
    model, opt = _run(True)
    spec = ce.spectrum(_operator(model))
    opt.selection(spec).fill_(False)
    opt.step(spec)
    assert opt.last_step.pruned == 2
