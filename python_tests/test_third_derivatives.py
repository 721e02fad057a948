"""D3 L[v, v, .] of every layer, activation and loss, against differences of torch's double backward."""

import copy

import architectures
import cases
import functions_table
import pytest
import torch
import torch.nn.functional as F
from eigenvalues import directions, third_derivative
from oracles import relative
from small import mlp
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import chaos_ext as ce
from chaos_ext import _ops
from chaos_ext.curvature import third, third_trust
from chaos_ext.rules.activation_jets import ACTIVATIONS

TABLES = {**architectures.LAYERS, **architectures.GRAPHS, **architectures.AUTOMATIC}
ALL = {**TABLES, **functions_table.GRAPHS, **functions_table.MODULES}
LABELS = torch.tensor([0, 2, 1, 1])


def _batch(shape, n=4):
    return torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def _made(build, mode="train"):
    torch.manual_seed(1)
    return build().double().train(mode == "train")


def _found(op, v):
    products, found = op.curvature_along(v.to(op.dtype).unsqueeze(1))
    assert relative(products[:, 0], op @ v.to(op.dtype)) < (1e-4 if op.dtype == torch.float32 else 1e-12)
    return found


def _size(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _compare(model, loss_fn, x, y, tolerance=1e-6):
    v = directions(_size(model), 1)[0]
    found = _found(ce.HessianOperator(model, loss_fn, x, y), v)
    assert relative(found, third_derivative(model, loss_fn, x, y, v)) < tolerance


@pytest.mark.parametrize(
    ("name", "mode"),
    [(n, "train") for n in TABLES if "Dropout" not in n]
    + [(n, "eval") for n in TABLES if "Dropout" in n or "BatchNorm" in n or "InstanceNorm" in n or n == "frozen parts"],
)
def test_every_layer(name, mode):
    build, shape = TABLES[name]
    _compare(_made(build, mode), nn.CrossEntropyLoss(), _batch(shape), LABELS)


@pytest.mark.parametrize("name", cases.ACTIVATIONS)
def test_every_activation(name):
    make = cases.ACTIVATIONS[name]
    layers = [nn.Linear(4, 5), make(), nn.Linear(5, 4), make(), nn.Linear(4, 3)]
    _compare(_made(lambda: nn.Sequential(*layers)), nn.CrossEntropyLoss(), _batch((4,)), LABELS)


def _gelu_tanh(z):
    t = 2 * (2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)
    return torch.where(z > 0, z - z * torch.sigmoid(-t), z * torch.sigmoid(t))


# Torch's own are formed from 1 + erf and 1 + tanh, of which nothing is left.
SAME = {"gelu": lambda z: z * torch.erfc(-z * 0.5**0.5) / 2, "gelu_tanh": _gelu_tanh}


@pytest.mark.parametrize("name", ["elu", "selu", "celu", "sigmoid", "tanh", "softplus", "silu", "gelu", "gelu_tanh"])
def test_activations_far_from_zero(name):
    """Where they saturate, and beyond thresholds, third derivatives keep their digits."""
    make = cases.ACTIVATIONS[name]
    x = torch.tensor([[-5.0], [-4.0], [3.9], [7.0]], dtype=torch.float64)
    model = nn.Sequential(nn.Linear(1, 1), make()).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(0.0)
    for row in x:
        one, v = row.view(1, 1), torch.tensor([0.6, 0.8], dtype=torch.float64)
        found = _found(ce.HessianOperator(model, nn.MSELoss(), one, torch.zeros(1, 1, dtype=torch.float64)), v)
        z = row.clone().requires_grad_()
        parts = [SAME.get(name, model[1])(z)]  # by torch's derivatives of one number
        for _ in range(3):
            parts.append(torch.autograd.grad(parts[-1], z, create_graph=True)[0])
        f, d1, d2, d3 = (t.detach() for t in parts)
        slope = v[0] * row + v[1]  # dz
        expected = 2 * slope**2 * (3 * d1 * d2 + f * d3) * torch.cat([row, torch.ones(1, dtype=torch.float64)])
        assert relative(found, expected) < 1e-9


@pytest.mark.parametrize("name", cases.LOSSES)
def test_every_loss(name):
    make, targets = cases.LOSSES[name]
    model = _made(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    _compare(model, make(), _batch((4,)), targets(4, torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("loss_fn", [F.nll_loss, F.huber_loss, lambda o, y: F.softplus(o).pow(3).mean()])
def test_losses_that_have_no_rule(loss_fn):
    class Output(nn.Module):
        def forward(self, x):
            return x.log_softmax(1) if loss_fn is F.nll_loss else x

    y = LABELS if loss_fn is F.nll_loss else _batch((3,))
    model = _made(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), Output()))
    _compare(model, loss_fn, _batch((4,)), y)


@pytest.mark.parametrize("y", [LABELS, torch.tensor([0, -100, 1, -100])])
def test_a_fitted_batch_keeps_its_digits_in_float32(y):
    """p - onehot is 1e-5 here: what is formed by subtraction from 1 has two digits left."""
    model = _made(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
    x = _batch((4,))
    with torch.no_grad():
        target = 12.0 * F.one_hot(y.clamp(min=0), 3).double()
        hidden = torch.cat([model[1](model[0](x)), torch.ones(4, 1, dtype=torch.float64)], 1)
        fit = torch.linalg.lstsq(hidden, target).solution.T
        model[2].weight.copy_(fit[:, :-1])
        model[2].bias.copy_(fit[:, -1])
    v = directions(_size(model), 1)[0]
    narrow = model.float()
    v32, x32 = v.float(), x.float()
    found = _found(ce.HessianOperator(narrow, nn.CrossEntropyLoss(), x32, y), v32)
    wide = nn.Sequential(*narrow).double()  # with what float32 has left of the weights
    op = ce.HessianOperator(wide, nn.CrossEntropyLoss(), x32.double(), y)
    assert float(op.loss) < 1e-3
    assert relative(found.double(), _found(op, v32.double())) < 1e-4


@pytest.mark.parametrize("name", ["MLP with BatchNorm", "MLP with LayerNorm", "functional calls", "LSTM"])
def test_float32(name):
    build, shape = ALL[name]
    wide, x = _made(build).float().double(), _batch(shape).float()
    v = directions(_size(wide), 1)[0].float()
    expected = third_derivative(wide, nn.CrossEntropyLoss(), x.double(), LABELS, v.double())
    found = _found(ce.HessianOperator(wide.float(), nn.CrossEntropyLoss(), x, LABELS), v)
    assert found.dtype == torch.float32
    assert relative(found.double(), expected) < 2e-3


@pytest.mark.parametrize("padding", [None, 2])
def test_an_embedding_with_a_row_that_is_constant(padding):
    model = _made(lambda: architectures.Tokens(padding_idx=padding))
    x = torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(1))
    x[0, 0] = 2
    v = directions(_size(model), 1)[0]
    found = _found(ce.HessianOperator(model, nn.CrossEntropyLoss(), x, LABELS), v)
    row = slice(2 * 4, 3 * 4)
    if padding is not None:
        assert bool((found[row] == 0).all())
        v[row] = 0  # it moves nothing
    assert relative(found, third_derivative(model, nn.CrossEntropyLoss(), x, LABELS, v)) < 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_a_parameter_that_the_loss_reads_itself(dtype, tolerance):
    model = mlp().to(dtype)

    def loss_fn(o, y):
        return F.cross_entropy(o, y) + 0.05 * sum(p.pow(4).sum() for p in model.parameters())

    x, y, v = _batch((4,)).to(dtype), LABELS, directions(_size(model), 1)[0].to(dtype)
    op = ce.HessianOperator(model, loss_fn, x, y)
    plain = third_derivative(copy.deepcopy(model).double(), F.cross_entropy, x.double(), y, v.double())
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    before = theta.clone()
    assert relative(_found(op, v).double(), plain + 0.05 * 24 * (theta * v**2).double()) < tolerance
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()).detach(), before)


def test_at_a_kink_torchs_convention_holds():
    """A pre-activation of exactly 0: ReLU is flat there, and its derivatives too."""
    model = _made(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    nn.init.zeros_(model[0].bias)
    x = _batch((4,))
    x[1] = 0
    v = directions(_size(model), 1)[0]
    found = _found(ce.HessianOperator(model, nn.CrossEntropyLoss(), x, LABELS), v)
    params = list(model.parameters())
    g = F.cross_entropy(model(x), LABELS)
    for _ in range(2):
        parts = torch.autograd.grad(g, params, create_graph=True)
        g = torch.cat([p.reshape(-1) for p in parts]) @ v
    expected = torch.cat([p.reshape(-1) for p in torch.autograd.grad(g, params)])
    assert relative(found, expected) < 1e-12


def test_torch_alone_would_be_wrong_of_layer_norm():
    """What is worked around is there: nested derivatives of torch's own function."""
    x, v = _batch((6,)), directions(24, 1)[0]

    def third_of(norm):
        t = x.reshape(-1).clone().requires_grad_()
        g = norm(t.view(4, 6)).sin().sum()
        for _ in range(2):
            (d,) = torch.autograd.grad(g, t, create_graph=True)
            g = d @ v
        return torch.autograd.grad(g, t)[0]

    def composed(a):
        c = a - a.mean(1, keepdim=True)
        return c * (c.square().mean(1, keepdim=True) + 1e-5).rsqrt()

    assert relative(third_of(lambda a: F.layer_norm(a, (6,))), third_of(composed)) > 1e-2


FOUR = torch.tensor([0.5, 1.0, 1.5, 2.5], dtype=torch.float64)
NORMS = {
    "layer_norm": lambda a, w, b: F.layer_norm(a, (4, 3), eps=0.01),
    "layer_norm by name": lambda a, w, b: F.layer_norm(a, [3], weight=w[:3], bias=b[:3]),
    "torch.layer_norm": lambda a, w, b: torch.layer_norm(a, (3,), w[:3], b[:3], 0.1),
    "batch_norm": lambda a, w, b: F.batch_norm(a, None, None, w, b, True),
    "batch_norm in eval mode": lambda a, w, b: F.batch_norm(a, FOUR - 1, FOUR, w, b, eps=0.1),
    "torch.batch_norm": lambda a, w, b: torch.batch_norm(a, w, b, None, None, True, 0.1, 1e-3, False),
    "instance_norm": lambda a, w, b: F.instance_norm(a, weight=w, bias=b),
    "torch.instance_norm": lambda a, w, b: torch.instance_norm(a, w, b, None, None, True, 0.1, 0.01, False),
    "group_norm": lambda a, w, b: F.group_norm(a, 2, w, b),
    "rms_norm": lambda a, w, b: F.rms_norm(a, (3,), w[:3]),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalisation_where_torch_differentiates_the_whole(name):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = nn.Linear(3, 3), nn.Linear(12, 3)
            self.w, self.b = nn.Parameter(torch.rand(4) + 0.5), nn.Parameter(torch.randn(4))

        def forward(self, x):
            return self.out(NORMS[name](self.a(x), self.w, self.b).tanh().flatten(1))

    _compare(_made(Net), lambda o, y: F.cross_entropy(o, y) + 0.0, _batch((4, 3)), LABELS)


@pytest.mark.parametrize("name", ["Conv3d", "LSTM", "MultiheadAttention", "InstanceNorm2d"])
def test_float64_directions_of_a_float32_model(name):
    """A rule of torch's own is taken to float64, too."""
    build, shape = ALL[name]
    wide = _made(build).float().double()
    x, v = _batch(shape).float(), directions(_size(wide), 1)[0]
    op = ce.HessianOperator(copy.deepcopy(wide).float(), nn.CrossEntropyLoss(), x, LABELS)
    found = op.curvature_along(v.unsqueeze(1))[1]
    assert relative(found, third_derivative(wide, nn.CrossEntropyLoss(), x.double(), LABELS, v)) < 1e-6


class Own(torch.autograd.Function):
    """exp with a backward of its own, twice differentiable and no more: what is saved is a constant to the third."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a.exp()

    @staticmethod
    def backward(ctx, g):
        (a,) = ctx.saved_tensors
        return Inner.apply(a, g)


class Inner(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, g):
        ctx.save_for_backward(a, g)
        return g * a.exp()

    @staticmethod
    def backward(ctx, u):
        a, g = ctx.saved_tensors
        value = a.exp().detach()
        return u * g * value, u * value


class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(Own.apply(self.a(x).tanh()))


def test_a_function_whose_third_derivative_is_wrong_is_refused():
    torch.manual_seed(0)
    model = Wrong().double()
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), _batch((4,)), LABELS)
    for _ in range(2):
        with pytest.raises(ce.UnsupportedError, match="third derivatives of this model and loss are not"):
            op.curvature_along(directions(op.shape[0], 1).T)


def test_what_forward_takes_out_of_the_graph_is_refused():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            h = self.a(x).tanh()
            return self.b(h * h.detach().exp())

    torch.manual_seed(0)
    op = ce.HessianOperator(Detached().double(), nn.CrossEntropyLoss(), _batch((4,)), LABELS)
    with pytest.raises(ce.UnsupportedError, match="eigenvalue_gradient"):
        op.curvature_along(directions(op.shape[0], 1).T)


def test_a_wrong_jet_is_found_out(monkeypatch, caplog):
    """The check is one that can fail: of every program, before anything is returned. Torch has to do, then."""
    real = ACTIVATIONS[_ops.ELU]
    monkeypatch.setitem(ACTIVATIONS, _ops.ELU, lambda z, a, b: (*real(z, a, b)[:2], 1.001 * real(z, a, b)[2]))
    model = _made(lambda: nn.Sequential(nn.Linear(4, 5), nn.ELU(), nn.Linear(5, 3)))
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), _batch((4,)), LABELS)
    v = directions(op.shape[0], 1)[0]
    for _ in range(2):
        found = _found(op, v)
        assert relative(found, third_derivative(model, nn.CrossEntropyLoss(), _batch((4,)), LABELS, v)) < 1e-6
    assert "are not the derivative of H here" in caplog.text
    ggn = ce.GGNOperator(model, nn.CrossEntropyLoss(), _batch((4,)), LABELS)
    with pytest.raises(ce.UnsupportedError, match="differences of H v"):
        ggn.curvature_along(v.unsqueeze(1))


def test_differences_that_settle_nowhere_are_no_proof():
    gen = torch.Generator().manual_seed(0)

    def noise(theta):
        return torch.randn(3, generator=gen, dtype=torch.float64)

    theta = torch.ones(3, dtype=torch.float64)
    assert third_trust.agrees(noise, noise, theta, theta) is None


def test_a_program_is_checked_once(monkeypatch):
    model, calls = mlp(), []
    real = third.agrees
    monkeypatch.setattr(third, "agrees", lambda *a: calls.append(1) or real(*a))
    for seed in (0, 1):
        op = ce.HessianOperator(model, nn.CrossEntropyLoss(), _batch((4,)) + seed, LABELS)
        op.curvature_along(directions(op.shape[0], 2).T)
    assert len(calls) == 1


def test_it_costs_a_few_training_steps():
    model = _made(lambda: nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)))
    x = _batch((64,))
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, LABELS)
    V = directions(op.shape[0], 1).T
    op.curvature_along(V)  # the check, once
    with FlopCounterMode(display=False) as one:
        op.curvature_along(V)
    with FlopCounterMode(display=False) as step:
        functional.cross_entropy(model(x), LABELS).backward()
    assert one.get_total_flops() <= 5 * step.get_total_flops()
