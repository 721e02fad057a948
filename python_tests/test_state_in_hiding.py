"""Forwards that write to more than plain attributes: classes, globals, hidden modules, odd types. All is put back.

H is that of the function as it is before the call, which differences of gradients on copies show.
"""

import copy
import functools
import logging

import pytest
import torch
from small import LOSSES, Base, X, Y
from torch import nn

import chaos_ext as ce
from chaos_ext.base.kept import Container, Values
from chaos_ext.base.traces import _walk

TABLE, CALLS = {}, 0
both = pytest.mark.parametrize("loss", LOSSES)


class CountsInItsClass(Base):
    calls = 0

    def factor(self, x):
        type(self).calls += 1
        return 1 + 0.1 * self.calls

    def state(self):
        return CountsInItsClass.calls


class SharesACache(Base):
    cache = {}  # noqa: RUF012 - the very thing

    def factor(self, x):
        if "ones" not in self.cache:
            self.cache["ones"] = 2 * x.new_ones(3)
        return self.cache["ones"]

    def state(self):
        return list(SharesACache.cache)


class MakesACache(Base):
    def factor(self, x):
        if not hasattr(MakesACache, "made"):
            MakesACache.made = 2 * x.new_ones(3)
        return MakesACache.made

    def state(self):
        return hasattr(MakesACache, "made")


def _table(x):
    return TABLE.setdefault("ones", 2 * x.new_ones(3))


class FillsAGlobal(Base):
    def factor(self, x):
        return _table(x)

    def state(self):
        return list(TABLE)


class CountsGlobally(Base):
    def factor(self, x):
        global CALLS
        CALLS += 1
        return 1 + 0.1 * CALLS

    def state(self):
        return CALLS


class HidesATeacher(Base):
    """In a list: no child, whose parameters follow the student's."""

    def prepare(self):
        self.teacher = [nn.Linear(4, 3).double()]

    def factor(self, x):
        with torch.no_grad():
            for p in self.teacher[0].parameters():
                p.mul_(0.9)
        return self.teacher[0](x).detach()

    def state(self):
        return self.teacher[0].weight.tolist()


class HidesParameters(Base):
    def prepare(self):
        self.held = {"a": nn.Parameter(torch.ones(3).double()), "b": torch.ones(3).double().requires_grad_()}

    def factor(self, x):
        with torch.no_grad():
            self.held["a"].mul_(1.1)
            self.held["b"].data.mul_(1.1)
        return self.held["a"] * self.held["b"].detach()

    def state(self):
        return [t.tolist() for t in self.held.values()]


class Slots:
    __slots__ = ("calls",)


class SlotsAndMore(Slots):
    """Has attributes beside slots."""

    def __init__(self):
        self.calls, self.name = 0, ""


class Noted(list):
    """A list with an attribute."""

    calls = 0


def _of_a_similar_name():
    """An object of a package whose name begins like torch's."""
    made = type("Box", (), {"__module__": "torch_helpers"})()
    made.calls = 0
    return made


class CountsIn(Base):
    make = None

    def prepare(self):
        self.box = type(self).make()

    def factor(self, x):
        self.box.calls += 1
        return 1 + 0.1 * self.box.calls

    def state(self):
        return self.box.calls


class DrawsFromALegacyGenerator(Base):
    def prepare(self):
        self.r = pytest.importorskip("numpy").random.RandomState(3)

    def factor(self, x):
        return 1 + 0.1 * self.r.rand()

    def state(self):
        return copy.deepcopy(self.r).rand()


class RemembersByFunctools(Base):
    @functools.lru_cache(8)  # noqa: B019 - the very thing
    def ones(self):
        return 2 * self.net[0].weight.new_ones(3)

    def factor(self, x):
        return self.ones()

    def state(self):
        return 0


class Resizes(Base):
    def prepare(self):
        self.held = [torch.ones(3).double(), torch.ones(3).double()]

    def factor(self, x):
        self.held[0].resize_(len(self.held[0]) + 1).fill_(1.0)
        self.held[1].data = self.held[1].float()
        return self.held[0].sum() + self.held[1].sum()

    def state(self):
        return [(t.dtype, t.tolist()) for t in self.held]


class Labelled(torch.Tensor):
    """A kind of tensor that is one inside, too."""

    def __deepcopy__(self, memo):
        return self.as_subclass(torch.Tensor).clone().as_subclass(Labelled)


class WritesToASubclass(Base):
    def prepare(self):
        self.held = [torch.ones(3).double().as_subclass(Labelled)]

    def factor(self, x):
        self.held[0].mul_(1.1)
        return self.held[0].as_subclass(torch.Tensor)

    def state(self):
        return self.held[0].tolist()


MODELS = {
    **{cls.__name__: cls for cls in (RemembersByFunctools, Resizes, WritesToASubclass)},
    **{cls.__name__: cls for cls in (CountsInItsClass, SharesACache, MakesACache, FillsAGlobal, CountsGlobally)},
    **{cls.__name__: cls for cls in (HidesATeacher, HidesParameters, DrawsFromALegacyGenerator)},
    "slots beside attributes": type("A", (CountsIn,), {"make": SlotsAndMore}),
    "attribute of a list": type("B", (CountsIn,), {"make": Noted}),
    "name like torch's": type("C", (CountsIn,), {"make": staticmethod(_of_a_similar_name)}),
}


@pytest.fixture(autouse=True)
def _forgotten():
    """What all instances share is as it was at first, for the next test."""
    yield
    _forget()


def _forget():
    global CALLS
    CountsInItsClass.calls = CALLS = 0
    for held in (SharesACache.cache, TABLE):
        held.clear()
    if hasattr(MakesACache, "made"):
        del MakesACache.made
    RemembersByFunctools.ones.cache_clear()


def _gradient(model, theta, loss, kept):
    """At theta, by autograd on a copy."""
    twin = copy.deepcopy(model)
    nn.utils.vector_to_parameters(theta, twin.parameters())
    parts = torch.autograd.grad(loss(twin(X), Y), list(twin.parameters()))
    _forget()
    assert model.state() == kept
    return torch.cat([g.flatten() for g in parts])


@both
@pytest.mark.parametrize("name", MODELS)
def test_what_forward_writes_is_put_back(name, loss):
    model, loss = MODELS[name](), LOSSES[loss]
    kept, theta = model.state(), nn.utils.parameters_to_vector(model.parameters()).detach()
    v = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    ahead, here, behind = (_gradient(model, theta + s * v, loss, kept) for s in (1e-5, 0.0, -1e-5))
    op = ce.HessianOperator(model, loss, X, Y)
    product = op @ v
    assert model.state() == kept
    torch.testing.assert_close(op.gradient, here, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(product, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)  # differences: 1e-9
    assert type(model(X)) is torch.Tensor


@both
def test_edits_of_hidden_parameters_are_noticed(loss):
    class Reads(HidesParameters):
        def factor(self, x):
            return self.held["b"].detach()

    model = Reads()
    op = ce.HessianOperator(model, LOSSES[loss], X, Y)
    model.held["b"].data.mul_(2)
    with pytest.raises(ce.StaleOperatorError):
        op.dense()


LOG, DATA = logging.getLogger("hiding"), {i: torch.full((3,), float(i)) for i in range(2_000)}


class Logs(nn.Module):
    """Names a logger, and a data set, which are not its state."""

    def __init__(self):
        super().__init__()
        self.inner, self.log = nn.Linear(4, 3).double(), LOG

    def forward(self, x):
        LOG.debug("a call")
        self.log.debug("another")
        return self.inner(x) * DATA[3].double()


def test_the_process_and_its_data_are_no_state():
    found = list(_walk([Logs()], [Logs.forward]))
    values = {id(k.value) for k in found if isinstance(k, Values)}
    assert not values & {id(t) for t in DATA.values()}
    assert not any(isinstance(k, Container) and k.container is vars(LOG) for k in found)
