"""Buffers that share memory, frozen parameters, generators by other names, and steps that fail: refused, or exact."""

import copy
import random
import types

import pytest
import torch
from small import LOSSES, Base, X, Y
from torch import nn

import chaos_ext as ce

both = pytest.mark.parametrize("loss", LOSSES)


class Momentum(Base):
    """A frozen copy follows in forward, as with MoCo."""

    def prepare(self):
        self.follower = nn.Linear(4, 3).double().requires_grad_(False)

    def factor(self, x):
        with torch.no_grad():
            self.follower.weight.mul_(0.9)
        return self.follower(x)


@both
def test_frozen_parameters_that_forward_edits_are_refused_by_name(loss):
    model = Momentum()
    before = model.follower.weight.clone()
    with pytest.raises(ce.UnsupportedError, match=r"edits follower\.weight in place"):
        ce.HessianOperator(model, LOSSES[loss], X, Y)
    assert torch.equal(model.follower.weight, before)


class Aliased(Base):
    """A buffer that is held by another name, too, and written to by it."""

    def prepare(self):
        self.register_buffer("scale", torch.ones(3).double())
        self.held = [self.scale]

    def factor(self, x):
        self.held[0].add_(1)
        return self.scale


class Views(Base):
    """Two buffers with one memory."""

    def prepare(self):
        self.register_buffer("whole", torch.ones(4).double())
        self.register_buffer("part", self.whole[:3])

    def factor(self, x):
        self.whole.add_(1)
        return self.part


@both
@pytest.mark.parametrize("make", [Aliased, Views])
def test_writing_to_buffers_that_share_memory_is_refused_by_name(make, loss):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ce.UnsupportedError, match=r"the memory of the buffer '(scale|whole)'"):
        ce.HessianOperator(model, LOSSES[loss], X, Y)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


@both
@pytest.mark.parametrize("make", [Aliased, Views])
def test_reading_buffers_that_share_memory_is_exact(make, loss):
    model = type("Reads", (make,), {"factor": lambda self, x: list(self.buffers())[-1][:3]})()
    op, plain = ce.HessianOperator(model, LOSSES[loss], X, Y), ce.HessianOperator(model.net, LOSSES[loss], X, Y)
    torch.testing.assert_close(op.dense(), plain.dense(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("draw", [random.uniform, torch.default_generator])
def test_global_generators_by_another_name_are_refused(draw):
    class Draws(Base):
        def factor(self, x):
            return draw(0, 1) if callable(draw) else torch.rand((), generator=draw).item()

    model, states = Draws(), (random.getstate(), torch.get_rng_state())
    model.held = draw
    with pytest.raises(ce.UnsupportedError, match="draws random numbers"):
        ce.HessianOperator(model, LOSSES["torch"], X, Y)
    assert states[0] == random.getstate()
    assert torch.equal(states[1], torch.get_rng_state())


@both
def test_a_generator_without_a_state_is_no_obstacle(loss):
    model = Base()
    model.factor, model.held = types.MethodType(lambda self, x: 1.0, model), random.SystemRandom()
    assert ce.HessianOperator(model, LOSSES[loss], X, Y).dense().shape == (43, 43)


@both
@pytest.mark.parametrize("training", [True, False])
def test_buffers_after_a_step_that_fails(training, loss):
    """A forward of the user's may write to buffers in any mode."""

    class Counts(Base):
        fails = False

        def prepare(self):
            self.register_buffer("calls", torch.zeros(()))

        def factor(self, x):
            self.calls.add_(1)
            if self.fails:
                raise RuntimeError("fails")
            return 1.0

    model = Counts().train(training)
    op, opt = ce.HessianOperator(model, LOSSES[loss], X, Y), ce.CGD(model.parameters(), lr=0.1, prune=None)
    Counts.fails = True
    with pytest.raises(RuntimeError, match="fails"):
        opt.step(op)
    assert model.calls == 0


@both
@pytest.mark.parametrize("first", [nn.ELU(inplace=True), nn.Hardtanh(inplace=True)])
def test_a_step_leaves_the_batch_alone(first, loss):
    torch.manual_seed(0)
    model = nn.Sequential(first, nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = 2 * X
    opt = ce.CGD(model.parameters(), lr=0.1, prune=None)
    opt.step(ce.HessianOperator(model, LOSSES[loss], x, Y))
    assert torch.equal(x, 2 * X)
    assert model[2].num_batches_tracked == 1
