"""The tangent map on every path of the engine: natively fused, in blocks layer by layer, and by torch as a whole."""

import gc

import pytest
import torch
from oracles import double_backward, relative
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam

import chaos_ext as ce
from chaos_ext.curvature import layerwise
from chaos_ext.graph.program import Program


class Residual(nn.Module):
    """Sums, factors, reshapes and a frozen weight around Linear layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 3)
        self.c.weight.requires_grad_(False)

    def forward(self, x):
        h = torch.tanh(self.a(x.view(-1, 2, 6)))
        h = h - 0.5 * F.silu(self.b(h)) + 1.0
        return self.c(h.reshape(-1, 5))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(torch.tanh(self.b(torch.tanh(self.a(x)))))


def _conv():
    layers = [
        nn.Unflatten(1, (1, 3, 4)),
        nn.Conv2d(1, 2, 2),
        nn.BatchNorm2d(2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 3),
    ]
    return nn.Sequential(*layers)


def _mlp():
    return nn.Sequential(nn.Linear(12, 5), nn.GELU(), nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, 3))


def _smooth(z, y):
    return (z.sigmoid() - y).square().mean() + z.square().mean()


CE, MSE = nn.CrossEntropyLoss(label_smoothing=0.1), nn.MSELoss()
# model, loss, rows and columns of the output, whether the sweep is native
CASES = {
    "MLP": (_mlp, CE, (7, 3), True),
    "MLP, one sample": (_mlp, CE, (1, 3), True),
    "MLP, BCE": (_mlp, nn.BCEWithLogitsLoss(reduction="sum"), (7, 3), True),
    "one layer, MSE": (lambda: nn.Linear(12, 3), MSE, (7, 3), True),
    "residual, MSE": (Residual, MSE, (7, 3), True),
    "residual, positions": (Residual, CE, (7, 3), True),
    "tied": (Tied, MSE, (7, 4), False),
    "convolution": (_conv, CE, (7, 3), False),
    "a loss of one's own": (_mlp, _smooth, (7, 3), False),
}


def _setting(name):
    torch.manual_seed(5)
    make, loss, (n, outputs), native = CASES[name]
    model = make().double()
    x = torch.randn(n, 12, dtype=torch.float64)
    rows = 2 * n if isinstance(model, Residual) else n
    y = torch.randint(outputs, (rows,)) if loss is CE else torch.rand(rows, outputs, dtype=torch.float64)
    return model, loss, x, y, native


def _trained(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("k", [1, 9, 40])
@pytest.mark.parametrize("name", CASES)
def test_sgd_against_the_matrix(name, k):
    """Y -> J Y with H by double backward, for momentum with decay, dampening and maximize; Y in any layout."""
    model, loss, x, y, native = _setting(name)
    opt = SGD(_trained(model), lr=0.1, momentum=0.8, dampening=0.3, weight_decay=0.05, maximize=True)
    for p in _trained(model):
        opt.state[p]["momentum_buffer"] = torch.zeros_like(p)
    op = ce.HessianOperator(model, loss, x, y)
    assert (op.native_sweep() is not None) == native
    H = double_backward(model, loss, x, y)
    P = len(H)
    Y = torch.randn(2 * P, k, dtype=torch.float64)
    v = 0.8 * Y[P:] + 0.7 * (0.05 * Y[:P] - H @ Y[:P])
    expected = torch.cat([Y[:P] - 0.1 * v, v])
    for layout in (Y.clone(), Y.T.contiguous().T, torch.cat([Y, Y], 1)[:, :k]):
        assert ce.TangentMap(opt).apply_(op, layout) is layout
        assert relative(layout, expected) < 1e-11


@pytest.mark.parametrize("cls", [SGD, Adam])
@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case[3]])
def test_native_equals_layer_by_layer(name, cls, monkeypatch):
    model, loss, x, y, _ = _setting(name)
    opt = cls(_trained(model), lr=0.05)
    Y = torch.randn(ce.TangentMap(opt).size, 11, dtype=torch.float64)
    twin = Y.clone()
    ce.TangentMap(opt).apply_(ce.HessianOperator(model, loss, x, y), Y)
    monkeypatch.setattr(layerwise, "native", lambda tape, offsets: None)
    ce.TangentMap(opt).apply_(ce.HessianOperator(model, loss, x, y), twin)
    assert relative(Y, twin) < 1e-12


def test_another_batch_size_and_another_loss_of_one_model():
    """What is kept of a program follows the shapes and the loss."""
    model, _, x, y, _ = _setting("MLP")
    targets = torch.rand(7, 3, dtype=torch.float64)
    v = torch.randn(sum(p.numel() for p in model.parameters()), 3, dtype=torch.float64)
    for loss, n, t in (
        (CE, 7, y),
        (MSE, 7, targets),
        (nn.MSELoss(reduction="sum"), 7, targets),
        (CE, 4, y),
        (MSE, 2, targets),
    ):
        op = ce.HessianOperator(model, loss, x[:n], t[:n])
        assert op.native_sweep() is not None
        assert relative(op @ v, double_backward(model, loss, x[:n], t[:n]) @ v) < 1e-11


def test_no_deviations_at_all():
    model, loss, x, y, _ = _setting("convolution")
    opt = SGD(model.parameters(), lr=0.1)
    Y = torch.empty(ce.TangentMap(opt).size, 0, dtype=torch.float64)
    assert ce.TangentMap(opt).apply_(ce.HessianOperator(model, loss, x, y), Y).shape == Y.shape


def test_deviations_that_are_not_finite_are_an_error():
    model, loss, x, y, _ = _setting("MLP")
    opt = SGD(model.parameters(), lr=0.1)
    Y = torch.ones(ce.TangentMap(opt).size, 3, dtype=torch.float64)
    Y[4, 1] = torch.nan
    with pytest.raises(ce.NonFiniteError, match="deviations"):
        ce.TangentMap(opt).apply_(ce.HessianOperator(model, loss, x, y), Y)
    large = torch.full_like(Y, 1e200)  # finite, though its squares are not
    ce.TangentMap(opt).apply_(ce.HessianOperator(model, loss, x, y), large)
    assert torch.isfinite(large).all()


def test_one_parameter_and_columns_apart():
    """A single row says nothing of how columns lie."""
    model, x, y = nn.Linear(1, 1, bias=False).double(), torch.randn(4, 1).double(), torch.randn(4, 1).double()
    op = ce.HessianOperator(model, MSE, x, y)
    whole = torch.arange(1.0, 9.0, dtype=torch.float64).view(1, 8)
    part, h = whole[:, ::2], float(op.dense())
    assert relative(op @ part, h * part) < 1e-12
    expected = torch.where(torch.arange(8) % 2 == 0, (1 - 0.1 * h) * whole, whole)
    ce.TangentMap(SGD(model.parameters(), lr=0.1)).apply_(op, part)
    assert relative(whole, expected) < 1e-12


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_as_many_layers_as_the_native_sweep_takes_and_more(extra):
    layers = [nn.Linear(3, 3) for _ in range(31)] + [nn.Linear(3, 3, bias=False) for _ in range(2 + extra)]
    model, x, y = nn.Sequential(*layers).double(), torch.randn(4, 3).double(), torch.randn(4, 3).double()
    op = ce.HessianOperator(model, MSE, x, y)
    assert (op.native_sweep() is not None) == (extra == 0)
    v = torch.randn(op.shape[0], 3, dtype=torch.float64)
    assert relative(op @ v, double_backward(model, MSE, x, y) @ v) < 1e-10
    assert {r.path for r in op.explain()} == {"enter at units"}


def test_programs_die_with_their_models():
    def alive():
        gc.collect()
        return sum(isinstance(o, Program) for o in gc.get_objects())

    before = alive()
    for _ in range(5):
        model, loss, x, y, _ = _setting("MLP")
        ce.HessianOperator(model, loss, x, y) @ torch.ones(sum(p.numel() for p in model.parameters())).double()
    del model
    assert alive() <= before
