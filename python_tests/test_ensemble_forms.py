"""The batched compressed Hessians of an Ensemble: Q S Q^T is H of every member, and is taken where it pays."""

import logging

import pytest
import torch
from ensembles import CE, F64, batch, deltas
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD

import chaos_ext as ce
from chaos_ext.ensemble import forms
from chaos_ext.ensemble.compressed import Compressed

N = 5


class Residual(nn.Module):
    """A layer that is passed by, and one that two others read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(9, 7), nn.Linear(7, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.tanh(self.first(x))
        return self.last(a + torch.sigmoid(self.inner(a)))


class TwoInputs(nn.Module):
    """Two first layers, one of which an activation reads, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(9, 6), nn.Linear(9, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.left(x)) + self.right(x))


def _frozen() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].bias.requires_grad_(False)
    for p in model[2].parameters():
        p.requires_grad_(False)
    return model


MODELS = {
    "relu": lambda: nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)),
    "deep": lambda: nn.Sequential(
        nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 9, bias=False), nn.ELU(), nn.Linear(9, 3)
    ),
    "leaky": lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.LeakyReLU(), nn.Linear(8, 3)),
    "residual": Residual,
    "two inputs": TwoInputs,
    "frozen": _frozen,
    "one layer": lambda: nn.Linear(9, 3),
}
LOSSES = {
    "cross entropy": (CE, lambda y: y),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2, reduction="sum"), lambda y: y),
    "squared": (nn.MSELoss(), lambda y: torch.nn.functional.one_hot(y, 3).double()),
}


def _ensemble(name: str, loss_fn: nn.Module = CE, m: int = 2) -> ce.Ensemble:
    torch.manual_seed(4)
    model = MODELS[name]().double()
    return ce.Ensemble.around(model, loss_fn, SGD(model.parameters(), lr=0.1), deltas(model, m, 0.4))


def _engine(ens: ce.Ensemble) -> Compressed:
    (found,) = ens._directing._batched.values()
    assert found is not None
    return found


class Positions(nn.Module):
    """A Linear whose rows are positions within samples, and one that mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(3, 12), nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.inner(x.view(-1, 3, 3))).flatten(1))


def test_networks_without_a_batched_form_go_one_by_one(caplog):
    torch.manual_seed(4)
    models = {
        "positions within samples": Positions(),
        "does not pay": nn.Sequential(nn.Linear(9, 2), nn.Tanh(), nn.Linear(2, 3)),
        "no batched rules": nn.Sequential(nn.Linear(9, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)),
    }
    for why, model in models.items():
        model.double()
        x, y = batch(12 if why == "does not pay" else N, (9,))
        ens = ce.Ensemble.around(model, CE, SGD(model.parameters(), lr=0.1), deltas(model, 1, 0.4))
        with caplog.at_level(logging.INFO):
            specs = ens.spectrum(x, y)
        assert why in caplog.text
        assert list(ens._directing._batched.values()) == [None]
        for i, spec in enumerate(specs):
            ens.load_into(model, i)
            V, H = spec.eigenvectors(), ce.HessianOperator(model, CE, x, y).dense()
            torch.testing.assert_close((V * spec.eigenvalues) @ V.T, H, rtol=0, atol=1e-10 * float(H.abs().max()))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_eigenpairs_are_those_of_the_dense_hessian(name, loss):
    loss_fn, targets = LOSSES[loss]
    ens = _ensemble(name, loss_fn)
    x, y = batch(N, (9,))
    y = targets(y)
    specs = ens.spectrum(x, y)
    assert _engine(ens).size < sum(p.numel() for p in MODELS[name]().parameters())
    model = MODELS[name]().double()
    for p, own in zip(model.parameters(), ens._twin.model.parameters(), strict=True):
        p.requires_grad_(own.requires_grad)
        p.data.copy_(own)
    for i, spec in enumerate(specs):
        ens.load_into(model, i)
        op = ce.HessianOperator(model, loss_fn, x, y)
        H, V = op.dense(), spec.eigenvectors()
        scale = float(H.abs().max())
        torch.testing.assert_close((V * spec.eigenvalues) @ V.T, H, rtol=0, atol=1e-11 * scale)
        torch.testing.assert_close(V.T @ V, torch.eye(V.shape[1], dtype=F64), rtol=0, atol=1e-12)
        torch.testing.assert_close(spec.gradient_coefficients(), V.T @ op.gradient, rtol=0, atol=1e-12)


def test_units_that_are_off_leave_the_eigenproblem(monkeypatch):
    ens = _ensemble("relu")
    x, y = batch(N, (9,))
    sizes, real = [], Compressed._spectrum

    def watching(self, part, j, form, tolerance):
        sizes.append((len(part.host.of(j).S), part.form.S.shape[1]))
        return real(self, part, j, form, tolerance)

    monkeypatch.setattr(Compressed, "_spectrum", watching)
    narrow = ens.spectrum(x, y)
    assert all(small < n for small, n in sizes)
    monkeypatch.setattr(forms, "_turned", lambda C, saved: (None, None))
    for a, b in zip(narrow, ens.spectrum(x, y), strict=True):
        torch.testing.assert_close(a.eigenvalues, b.eigenvalues, rtol=1e-10, atol=1e-14)


def test_coordinates_that_are_wrongly_left_out_are_found_out(monkeypatch):
    """A mask that claims too little: S is not 0 beyond it, and all coordinates stay."""
    ens = _ensemble("relu")
    x, y = batch(N, (9,))
    expected, real = ens.spectrum(x, y), forms._turned

    def wrong(C, saved):
        W, kept = real(C, saved)
        return W, kept & (torch.arange(kept.shape[2]) < 1)

    monkeypatch.setattr(forms, "_turned", wrong)
    for a, b in zip(ens.spectrum(x, y), expected, strict=True):
        torch.testing.assert_close(a.eigenvalues, b.eigenvalues, rtol=1e-10, atol=1e-14)


def test_forms_that_are_not_the_hessian_are_not_used(monkeypatch, caplog):
    real = forms._through_inputs
    monkeypatch.setattr(forms, "_through_inputs", lambda row, D, J, U: 1.001 * real(row, D, J, U))
    ens = _ensemble("deep")
    x, y = batch(N, (9,))
    with caplog.at_level(logging.INFO):
        specs = ens.spectrum(x, y)
    assert "H v differs by" in caplog.text
    monkeypatch.undo()
    for a, b in zip(specs, _ensemble("deep").spectrum(x, y), strict=True):
        torch.testing.assert_close(a.eigenvalues, b.eigenvalues, rtol=1e-9, atol=1e-12)


def test_repeated_samples_and_wide_batches():
    """Inputs without full rank, and more samples than inputs."""
    ens = _ensemble("deep")
    x, y = batch(N, (9,))
    x[1:] = x[0]
    alone = ce.HessianOperator
    model = MODELS["deep"]().double()
    for samples, labels in ((x, y), (torch.zeros_like(x), y)):
        for i, spec in enumerate(ens.spectrum(samples, labels)):
            ens.load_into(model, i)
            values = torch.linalg.eigvalsh(alone(model, CE, samples, labels).dense())
            values = values[values.abs() > 1e-12 * values.abs().max()]
            torch.testing.assert_close(spec.eigenvalues, values, rtol=1e-8, atol=1e-12)


def test_batches_with_ignored_rows_go_one_by_one_among_others():
    """Whether a label is ignored is seen batch by batch: the compressed form knows plain labels only."""
    loss_fn = nn.CrossEntropyLoss(ignore_index=2)
    torch.manual_seed(4)
    model = MODELS["relu"]().double()
    ens = ce.Ensemble.around(
        model, loss_fn, ce.CGD(model.parameters(), lr=0.1, prune="negative"), deltas(model, 2, 0.4)
    )
    x, y = batch(N, (9,))
    for labels in (y % 2, torch.tensor([0, 2, 1, 2, 0]), y % 2):
        thetas = ens.thetas
        ens.step(x, labels)
        for i in range(3):
            one = MODELS["relu"]().double()
            nn.utils.vector_to_parameters(thetas[i], one.parameters())
            ce.CGD(one.parameters(), lr=0.1, prune="negative").step(ce.HessianOperator(one, loss_fn, x, labels))
            torch.testing.assert_close(ens.thetas[i], parameters_to_vector(one.parameters()).detach())


def test_a_fitted_batch_keeps_its_digits_in_float32():
    """p - 1 has none left where the loss is 1e-7, minus the sum of the others has all.

    Torch's own, with which the first and the last member are compared, has none either.
    """
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([16.0, 0.0, -1.0]))
    x, y = torch.randn(6, 4), torch.zeros(6, dtype=torch.int64)
    theta = parameters_to_vector(model.parameters()).detach()
    others = torch.randn(2, 15)
    thetas = torch.stack([others[0], theta, others[1]])
    ens = ce.Ensemble(model, CE, SGD(model.parameters(), lr=1e5), thetas)
    exact = ce.HessianOperator(model.double(), CE, x.double(), y).gradient
    ens.step(x, y)
    moved = ((theta - ens.thetas[1]) / 1e5)[12:]
    torch.testing.assert_close(moved.double(), exact[12:], rtol=2e-3, atol=0)


def test_members_are_taken_in_parts_that_fit(monkeypatch):
    ens = _ensemble("deep", m=6)
    x, y = batch(N, (9,))
    whole = ens.spectrum(x, y)
    monkeypatch.setattr(_engine(ens), "at_once", 3)
    for a, b in zip(whole, ens.spectrum(x, y), strict=True):
        torch.testing.assert_close(a.eigenvalues, b.eigenvalues, rtol=1e-10, atol=1e-14)
