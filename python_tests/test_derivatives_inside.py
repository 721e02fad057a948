"""A forward or a loss that differentiates: physics-informed nets, forces, gradient penalties, inner loops of training.

H has three derivatives and more then. The oracle is differences of gradients in float64.
"""

import differences
import fingerprints
import pytest
import torch
from oracles import relative
from torch import nn

import chaos_ext as ce


def _custom(o, y):
    return ((o - y) ** 2).mean() + (o**4).mean()


LOSSES = {"rules": nn.MSELoss(), "torch": _custom}


class Field(nn.Module):
    """u(x) of a small net, and derivatives of it beside it."""

    def __init__(self, derive, **options):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.derive = nn.Sequential(nn.Linear(2, 4, **options), nn.Tanh(), nn.Linear(4, 1)), derive

    def forward(self, x):
        return self.derive(self.net, x)


def _gradient(net, x):
    x = x.detach().requires_grad_()
    u = net(x)
    (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return torch.cat([u, du], 1)


def _laplacian(net, x):
    x = x.clone().requires_grad_()
    u = net(x)
    (du,) = torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)
    second = [torch.autograd.grad(du[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2)]
    return torch.cat([u, sum(second).unsqueeze(1)], 1)


def _forces(net, x):
    x.requires_grad_()  # in place, as models of molecules do
    energy = net(x).sum()
    return -torch.autograd.grad(energy, x, create_graph=True)[0]


def _jacobian(net, x):
    return torch.autograd.functional.jacobian(lambda t: net(t).sum(0), x, create_graph=True).squeeze(0)


def _inner_step(net, x):
    """Two steps of an inner training on half of the batch, then the outer forward."""
    own = dict(net.named_parameters())
    for _ in range(2):
        inner = (torch.func.functional_call(net, own, (x[::2],)) ** 2).mean()
        steps = torch.autograd.grad(inner, list(own.values()), create_graph=True)
        own = {n: p - 0.1 * g for (n, p), g in zip(own.items(), steps)}
    return torch.func.functional_call(net, own, (x,))


def _anyway(net, x):
    with torch.enable_grad():
        return _gradient(net, x)


def _of_one(net):
    return lambda t: net(t).sum()


DERIVATIVES = {
    "gradient": _gradient,
    "laplacian": _laplacian,
    "forces": _forces,
    "jacobian": _jacobian,
    "inner steps": _inner_step,
    "enable_grad": _anyway,
    "func.grad": lambda net, x: torch.func.vmap(torch.func.grad(_of_one(net)))(x),
    "func.jacrev": lambda net, x: torch.func.vmap(torch.func.jacrev(net))(x).squeeze(1),
    "func.jacfwd": lambda net, x: torch.func.vmap(torch.func.jacfwd(net))(x).squeeze(1),
    "func.hessian": lambda net, x: torch.func.vmap(torch.func.hessian(_of_one(net)))(x).flatten(1),
    "func.jvp": lambda net, x: torch.func.jvp(net, (x,), (torch.ones_like(x),))[1],
    "func.vjp": lambda net, x: torch.func.vjp(net, x)[1](torch.ones_like(x[:, :1]))[0],
}


def _x():
    torch.manual_seed(1)
    return torch.randn(4, 2, dtype=torch.float64)


def _assert_right(model, x, y, loss):
    expected = differences.of_gradients(model, loss, x, y)
    before = fingerprints.of_model(model), fingerprints.of_process(), x.requires_grad, x.grad
    op = ce.HessianOperator(model, loss, x, y, verify=True)
    assert relative(op.dense(), expected) < 1e-7
    assert relative(op @ torch.eye(len(expected), dtype=torch.float64), expected) < 1e-7
    assert not fingerprints.changes(before[0], fingerprints.of_model(model))
    assert not fingerprints.changes(before[1], fingerprints.of_process())
    assert (x.requires_grad, x.grad) == before[2:]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", DERIVATIVES)
def test_a_forward_that_differentiates(name, loss):
    model, x = Field(DERIVATIVES[name]).double(), _x()
    y = torch.randn_like(model(x.clone()).detach())
    _assert_right(model, x, y, LOSSES[loss])
    with torch.no_grad():
        assert relative(ce.hessian(model, LOSSES[loss], x, y), differences_of(model, LOSSES[loss], x, y)) < 1e-7


def differences_of(model, loss, x, y):
    with torch.enable_grad():
        return differences.of_gradients(model, loss, x, y)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_that_requires_a_gradient(loss):
    def derive(net, x):
        u = net(x)
        return torch.cat([u, torch.autograd.grad(u.sum(), x, create_graph=True)[0]], 1)

    model, x = Field(derive).double(), _x().requires_grad_()
    _assert_right(model, x, torch.randn(4, 3, dtype=torch.float64), LOSSES[loss])


class Between(nn.Module):
    def __init__(self, derive):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.field, self.after = nn.Linear(3, 2), Field(derive), nn.Linear(3, 2)

    def forward(self, x):
        return self.after(self.field(self.before(x)))


def _keeping_the_graph(net, x):
    u = net(x)
    return torch.cat([u, torch.autograd.grad(u.sum(), x, create_graph=True)[0]], 1)


@pytest.mark.parametrize("loss", LOSSES)
def test_between_other_layers(loss):
    model = Between(_keeping_the_graph).double()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    _assert_right(model, x, y, LOSSES[loss])


def _penalty(net, x):
    x = x.detach().requires_grad_()
    return net(x), x


def _penalised(o, y):
    u, x = o
    (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return ((u - y) ** 2).mean() + ((du.pow(2).sum(1) + 1e-3).sqrt() - 1).pow(2).mean()


def test_a_loss_that_differentiates():
    _assert_right(Field(_penalty).double(), _x(), torch.randn(4, 1, dtype=torch.float64), _penalised)


def _flatness(o, y, params, **options):
    """The loss and the norm of its gradient."""
    value = ((o - y) ** 2).mean()
    parts = torch.autograd.grad(value, params, create_graph=True, **options)
    return value + sum(0.1 * g.pow(2).sum() for g in parts if g is not None)


def _small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def test_a_loss_that_differentiates_with_respect_to_parameters():
    model, x, y = _small(), _x(), torch.randn(4, 1, dtype=torch.float64)
    op = ce.HessianOperator(model, lambda o, t: _flatness(o, t, list(model.parameters())), x, y, verify=True)
    twin = _small()  # of_gradients works on a copy of its model, which is what the loss has to ask

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = twin

        def forward(self, t):
            return _flatness(self.model(t), y, list(self.model.parameters()))

    expected = differences.of_gradients(Flat(), lambda o, t: o, x, y)
    assert relative(op.dense(), expected) < 1e-7


def test_a_loss_that_differentiates_with_respect_to_parameters_it_holds():
    model, x, y = _small(), _x(), torch.randn(4, 1, dtype=torch.float64)
    held = list(model.parameters())
    with pytest.raises(
        ce.UnsupportedError, match=r"loss_fn.*Parameter objects"
    ):  # it does not see the substituted ones
        ce.hessian(model, lambda o, t: _flatness(o, t, held, allow_unused=True), x, y)


@pytest.mark.parametrize("loss", LOSSES)
def test_steps_of_cgd(loss):
    """Whose forward for what it leaves behind has to have a graph, too."""
    model, x = Field(_gradient).double(), _x()
    twin = Field(_gradient).double()
    y = torch.randn(4, 3, dtype=torch.float64)
    ours, theirs = (
        ce.CGD(model.parameters(), lr=0.05, prune=None),
        torch.optim.SGD(twin.parameters(), lr=0.05, foreach=False, fused=False),
    )
    for _ in range(3):
        ours.step(ce.HessianOperator(model, LOSSES[loss], x, y))
        theirs.zero_grad()
        LOSSES[loss](twin(x), y).backward()
        theirs.step()
    for a, b in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_single_precision():
    model, x = Field(_laplacian), _x().float()
    y = torch.randn(4, 2)
    H = ce.hessian(model, _custom, x, y)
    assert relative(H.double(), differences.of_gradients(model.double(), _custom, x.double(), y.double())) < 1e-4


@pytest.mark.parametrize("loss", LOSSES)
def test_a_forgotten_create_graph_is_named(loss):
    def derive(net, x):
        x = x.detach().requires_grad_()
        u = net(x)
        return torch.cat([u, torch.autograd.grad(u.sum(), x, retain_graph=True)[0]], 1)

    model = Field(derive).double()
    with pytest.raises(ce.ChaosExtError, match="create_graph=True"):
        ce.hessian(model, LOSSES[loss], _x(), torch.randn(4, 3, dtype=torch.float64))
