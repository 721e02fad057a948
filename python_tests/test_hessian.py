"""The exact Hessian of MLPs: equal to float64 double backward, symmetric, and the same by every route."""

import cases
import pytest
import torch
from oracles import double_backward, gradient, relative
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce

TOL = 1e-10


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("loss", cases.LOSSES)
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_hessian_equals_double_backward(activation, loss, depth):
    model = cases.mlp(depth, activation)
    make, target = cases.LOSSES[loss]
    for n in cases.BATCHES:
        x, y = cases.batch(n, target)
        op = ce.HessianOperator(model, make(), x, y)
        assert {r.path for r in op.explain()} == {"enter at units"}
        H, H_ref = op.dense(), double_backward(model, make(), x, y)
        assert relative(H, H_ref) < TOL
        assert torch.equal(H, H.T)
        assert relative(op.gradient, gradient(model, make(), x, y)) < TOL
        assert relative(op.loss, make()(model(x), y).detach()) < TOL
        assert relative(op.compressed().to_dense(), H_ref) < TOL
        v = torch.randn(op.shape[0], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        assert relative(op @ v, H_ref @ v) < TOL
        assert relative(op @ v[:, 0], H_ref @ v[:, 0]) < TOL


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("depth", [1, 3])
def test_without_bias(activation, depth):
    model = cases.mlp(depth, activation, bias=False)
    x, y = cases.batch(5, cases.LOSSES["ce"][1])
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    assert relative(op.dense(), double_backward(model, nn.CrossEntropyLoss(), x, y)) < TOL
    assert relative(op.compressed().to_dense(), op.dense()) < TOL


@pytest.mark.parametrize("frozen", ["1.weight", "1.bias", "3.weight", "3.bias", "5.weight", "5.bias"])
def test_frozen_parameters_are_constants(frozen):
    model = cases.mlp(3, "tanh")
    dict(model.named_parameters())[frozen].requires_grad_(False)
    x, y = cases.batch(3, cases.LOSSES["ce"][1])
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    H = double_backward(model, nn.CrossEntropyLoss(), x, y)
    assert op.explain()[0].path == "enter at units"
    assert relative(op.dense(), H) < TOL
    assert relative(op.compressed().to_dense(), H) < TOL
    assert relative(op @ torch.eye(len(H), dtype=H.dtype), H) < TOL


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.down, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        a = x.view(x.size(0), -1)
        h = F.gelu(self.inside(a), approximate="tanh") + a
        h = torch.tanh(self.down(h)) + h
        return self.out(h)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.out(self.b(self.a(x.flatten(1)).tanh()).sigmoid())


class Branches(nn.Module):
    """Two layers of which neither is upstream of the other."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        a = torch.flatten(x, 1)
        return self.out(torch.sigmoid(self.left(a)) + F.softplus(self.right(a), beta=2.0))


@pytest.mark.parametrize("build", [Residual, Tied, Branches])
def test_graphs(build):
    torch.manual_seed(0)
    model = build().double()
    x, y = cases.batch(5, cases.LOSSES["ce"][1])
    op = ce.HessianOperator(model, F.cross_entropy, x, y, verify=True)
    H = double_backward(model, F.cross_entropy, x, y)
    assert op.explain()[0].name != "(model)"
    assert relative(op.dense(), H) < TOL
    assert torch.equal(op.dense(), op.dense().T)
    assert relative(op @ torch.eye(len(H), dtype=H.dtype), H) < TOL
    if build is not Tied:
        assert relative(op.compressed().to_dense(), H) < TOL
    values = torch.linalg.eigvalsh(H)
    assert relative(ce.spectrum(op).eigenvalues, values[values.abs() > 1e-12 * values.abs().max()]) < TOL


def test_closed_form_linear_regression():
    """H = (2 / (N O)) I_O (x) X^T X with a column of ones."""
    torch.manual_seed(0)
    n, i, o = 7, 4, 3
    model = nn.Linear(i, o).double()
    x, y = torch.randn(n, i, dtype=torch.float64), torch.randn(n, o, dtype=torch.float64)
    H = ce.hessian(model, nn.MSELoss(), x, y)
    block = 2 / (n * o) * x.T @ x
    weights = torch.kron(torch.eye(o, dtype=torch.float64), block)
    assert relative(H[: o * i, : o * i], weights) < 1e-14
    assert relative(H[o * i :, o * i :], 2 / o * torch.eye(o, dtype=torch.float64)) < 1e-14
    cross = 2 / (n * o) * torch.kron(torch.eye(o, dtype=torch.float64), x.sum(0).unsqueeze(1))
    assert relative(H[: o * i, o * i :], cross) < 1e-14


def test_closed_form_softmax_regression():
    """H = (1 / N) sum_n (diag p - p p^T) (x) x x^T."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    p = model(x).softmax(1).detach()
    B = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    H = sum(torch.kron(B[n], torch.outer(x[n], x[n])) for n in range(6)) / 6
    assert relative(ce.hessian(model, nn.CrossEntropyLoss(), x, y), H) < 1e-14


def test_fitted_batch_keeps_its_digits_in_float32():
    """Where p - onehot cancels in float32, the Hessian still agrees with float64 of the same weights."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    x = torch.randn(5, 4)
    y = model(x).argmax(1).detach()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(400)
    H = ce.hessian(model, nn.CrossEntropyLoss(), x, y).double()
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    model.double()
    exact = ce.HessianOperator(model, nn.CrossEntropyLoss(), x.double(), y)
    assert op.loss < 1e-3
    assert relative(H, exact.dense()) < 1e-4
    assert relative(op.gradient.double(), exact.gradient) < 1e-4


@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_float32_against_float64(activation):
    model = cases.mlp(3, activation)
    x, y = cases.batch(8, cases.LOSSES["ce"][1])
    H = ce.hessian(model, nn.CrossEntropyLoss(), x, y)
    model.float()
    H32 = ce.hessian(model, nn.CrossEntropyLoss(), x.float(), y)
    assert H32.dtype == torch.float32
    assert relative(H32.double(), H) < 1e-4


def test_batch_permutation_and_reductions():
    model = cases.mlp(2, "tanh")
    x, y = cases.batch(8, cases.LOSSES["ce"][1])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    H = ce.hessian(model, nn.CrossEntropyLoss(), x, y)
    assert relative(ce.hessian(model, nn.CrossEntropyLoss(), x[order], y[order]), H) < 1e-13
    assert relative(ce.hessian(model, nn.CrossEntropyLoss(reduction="sum"), x, y), 8 * H) < 1e-13


def test_out_is_written_in_place_and_repeatable():
    model = cases.mlp(2)
    x, y = cases.batch(3, cases.LOSSES["ce"][1])
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    out = torch.full(op.shape, float("nan"), dtype=torch.float64)
    assert op.dense(out) is out
    assert torch.equal(out, op.dense())
    assert torch.equal(out, ce.hessian(model, nn.CrossEntropyLoss(), x, y, out=torch.empty_like(out)))


def test_functional_losses_and_partial():
    from functools import partial

    model = cases.mlp(2)
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    loss = partial(F.cross_entropy, label_smoothing=0.1)
    op = ce.HessianOperator(model, loss, x, y)
    assert op.explain()[0].path == "enter at units"
    assert relative(op.dense(), double_backward(model, loss, x, y)) < TOL


def test_unused_parameters_have_zero_rows():
    model = cases.mlp(2)
    model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    x, y = cases.batch(4, cases.LOSSES["ce"][1])
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    H = op.dense(torch.full(op.shape, float("nan"), dtype=torch.float64))
    assert relative(H, double_backward(model, nn.CrossEntropyLoss(), x, y)) < TOL
    assert relative(op.compressed().to_dense(), H) < TOL
    assert ce.spectrum(op).nullity >= 3


def test_celu_is_more_exact_than_torch():
    """torch rounds 1 / alpha of CELU to float32 in its derivative; finite differences of the loss side with us."""
    torch.manual_seed(0)
    z = torch.linspace(-2, -0.1, 20, dtype=torch.float64).unsqueeze(1)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.CELU(0.7)).double()
    nn.init.constant_(model[0].weight, 0.9)
    op = ce.HessianOperator(model, nn.MSELoss(reduction="sum"), z, torch.zeros_like(z))
    assert op.explain()[0].path == "enter at units"
    w = model[0].weight.item()
    e = torch.exp(w * z / 0.7)
    phi, d1, d2 = 0.7 * (e - 1), z * e, z**2 / 0.7 * e
    exact = (2 * (d1**2 + phi * d2)).sum()
    assert relative(op.dense()[0, 0], exact) < 1e-13
