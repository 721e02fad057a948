"""Directions that the units of a first layer cannot see while they are off: left out of spectra, with nothing lost."""

import pytest
import torch
from torch import nn

import chaos_ext as ce
from chaos_ext.curvature import narrowing

LOSS = nn.CrossEntropyLoss()


class Branches(nn.Module):
    """Two first layers; of the second one the output is read twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        z = self.b(x)
        return self.c(torch.relu(self.a(x)) + torch.relu(z) + z)


def mlp(activation, bias=True):
    return nn.Sequential(nn.Linear(6, 7, bias=bias), activation, nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))


class Towers(nn.Module):
    """Two first layers, both with units of their own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(6, 7), nn.Linear(12, 3)

    def forward(self, x):
        return self.c(torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x * x))], 1))


MODELS = {
    "two towers": (Towers, True),
    "relu": (lambda: mlp(nn.ReLU()), True),
    "without bias": (lambda: mlp(nn.ReLU(), bias=False), True),
    "relu6": (lambda: mlp(nn.ReLU6()), True),
    "hardtanh": (lambda: mlp(nn.Hardtanh(-0.1, 0.2)), True),
    "tokens": (lambda: nn.Sequential(nn.Unflatten(1, (3, 2)), mlp_of_tokens(), nn.Flatten(), nn.Linear(15, 3)), True),
    "two first layers": (Branches, True),
    "leaky": (lambda: mlp(nn.LeakyReLU()), False),
    "tanh": (lambda: mlp(nn.Tanh()), False),
    "linear": (lambda: nn.Linear(6, 3), False),
}


def mlp_of_tokens():
    return nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 5))


def problem(name, n=4, dtype=torch.float64):
    torch.manual_seed(3)
    n = 1 if name == "tokens" else n  # three rows of two numbers each
    model = MODELS[name][0]().to(dtype)
    return model, torch.randn(n, 6, dtype=dtype), torch.randint(3, (n,))


def reference(model, x, y):
    """H and g by torch, in float64."""
    params = dict(model.named_parameters())
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    def loss(v):
        parts = torch.split(v, [p.numel() for p in params.values()])
        named = {k: part.view_as(p) for (k, p), part in zip(params.items(), parts, strict=True)}
        return LOSS(torch.func.functional_call(model, named, (x,)), y)

    return torch.func.hessian(loss)(theta), torch.func.grad(loss)(theta)


def sizes(op):
    """Coordinates before and after."""
    return len(op.compressed().S), len(op._engine.narrowed(op.compressed())[1])


@pytest.mark.parametrize("name", MODELS)
def test_the_smaller_form_is_the_hessian(name):
    model, x, y = problem(name)
    op = ce.HessianOperator(model, LOSS, x, y)
    basis, S = op._engine.narrowed(op.compressed())
    H, g = reference(model, x, y)
    Q = basis.lift(torch.eye(len(S), dtype=torch.float64))
    torch.testing.assert_close(Q.T @ Q, torch.eye(len(S), dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(Q @ S @ Q.T, H, rtol=0, atol=1e-12)
    torch.testing.assert_close(Q @ (Q.T @ g), g, rtol=0, atol=1e-12)
    torch.testing.assert_close(basis.coordinates(H), Q.T @ H, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_units_that_are_off_have_fewer_directions(name):
    model, x, y = problem(name)
    whole, small = sizes(ce.HessianOperator(model, LOSS, x, y))
    assert (small < whole) == MODELS[name][1]


def test_as_many_as_the_samples_that_a_unit_is_on_for():
    model, x, y = problem("relu")
    on = (model[0](x) > 0).sum(0)
    whole, small = sizes(ce.HessianOperator(model, LOSS, x, y))
    assert whole - small == 7 * 4 - int(on.sum())


def test_dead_units_have_none():
    model, x, y = problem("relu")
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    op = ce.HessianOperator(model, LOSS, x, y)
    whole, small = sizes(op)
    assert whole - small == 7 * 4
    H, _ = reference(model, x, y)
    spec = ce.spectrum(op)
    expected = torch.linalg.eigvalsh(H)
    torch.testing.assert_close(spec.eigenvalues, expected[expected.abs() > 1e-12 * expected.abs().max()])


def test_more_samples_than_inputs():
    """Units that are on for as many samples as there are inputs keep all directions; and equal samples count once."""
    model, x, y = problem("relu", n=40)
    x[1::2] = x[::2]
    with torch.no_grad():
        model[0].bias.fill_(-1.0)
    op = ce.HessianOperator(model, LOSS, x, y)
    H, _ = reference(model, x, y)
    first = next(b for b in op.compressed().basis.layers if b.weight == 0)
    W = narrowing._turned(op._engine.tape(torch.float64), 0, first)
    if W is not None:
        assert W.size < first.size
    found = ce.spectrum(op).eigenvalues
    expected = torch.linalg.eigvalsh(H)
    torch.testing.assert_close(found, expected[expected.abs() > 1e-12 * expected.abs().max()], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prune", ["chaotic", "negative", "positive"])
def test_steps_of_cgd_are_those_of_the_dense_hessian(prune, dtype):
    torch.manual_seed(0)
    model = ce.models.paper_mlp(hidden=3).to(dtype)
    x, y = torch.rand(8, 1, 16, 16, dtype=dtype), torch.randint(10, (8,))
    op = ce.HessianOperator(model, LOSS, x, y)
    whole, small = sizes(op)
    assert small < 0.9 * whole
    values, V = torch.linalg.eigh(op.dense().double())
    gone = V[:, values < -1e-5 * values.abs().max()]
    if prune == "positive":
        gone = V[:, values > 1e-5 * values.abs().max()]
    g = op.gradient.double()
    expected = torch.nn.utils.parameters_to_vector(model.parameters()).double() - 0.1 * (g - gone @ (gone.T @ g))
    opt = ce.CGD(model.parameters(), lr=0.1, prune=prune, zero_tol=1e-5)
    opt.step(op)
    got = torch.nn.utils.parameters_to_vector(model.parameters()).double()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-6)


def test_eigenvectors_and_files(tmp_path):
    torch.manual_seed(0)
    model = ce.models.paper_mlp(hidden=3).double()
    op = ce.HessianOperator(model, LOSS, torch.rand(8, 1, 16, 16, dtype=torch.float64), torch.randint(10, (8,)))
    spec = ce.spectrum(op)
    V = spec.eigenvectors()
    torch.testing.assert_close(op @ V, V * spec.eigenvalues, rtol=0, atol=1e-11)
    torch.testing.assert_close(V.T @ V, torch.eye(V.shape[1], dtype=torch.float64), rtol=0, atol=1e-12)
    spec.save(tmp_path / "spectrum")
    assert torch.equal(ce.Spectrum.load(tmp_path / "spectrum").eigenvectors(), V)


@pytest.mark.parametrize("name", ["kept", "turn"])
def test_damaged_files_are_refused(tmp_path, name, monkeypatch):
    model = ce.models.paper_mlp(hidden=3).double()
    op = ce.HessianOperator(model, LOSS, torch.rand(8, 1, 16, 16, dtype=torch.float64), torch.randint(10, (8,)))
    spec = ce.spectrum(op)
    layer = spec.parts()[1].layers[0]
    part = vars(layer)[name].clone()
    vars(layer)[name] = part + 1000 if name == "kept" else part[:, :-1]
    monkeypatch.setattr(type(spec), "require_unedited", lambda self: None)
    monkeypatch.setattr("chaos_ext.spectra.storage.plain", lambda Z, basis, near: (Z, basis, near))
    spec.save(tmp_path / "spectrum")
    with pytest.raises(ce.CheckpointError, match=rf"layers.{name}"):
        ce.Spectrum.load(tmp_path / "spectrum")


def test_a_form_that_loses_something_is_not_taken(monkeypatch):
    model, x, y = problem("relu")
    with monkeypatch.context() as patch:
        patch.setattr(narrowing, "_on", lambda tape, node: torch.arange(28).view(4, 7) % 3 == 0)
        whole, small = sizes(ce.HessianOperator(model, LOSS, x, y))
    assert small == whole
