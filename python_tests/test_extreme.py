"""Selections of k from extreme pairs alone: the same directions as from all of them, where all would be costly."""

import copy

import cases
import pytest
import torch
from oracles import double_backward, gradient, relative
from torch import nn

import chaos_ext as ce
from chaos_ext.spectra import cost, extreme

CE = nn.CrossEntropyLoss()
LR = 0.1


@pytest.fixture
def costly(monkeypatch):
    """Everything of more than a hundred rows counts as costly."""
    monkeypatch.setattr(extreme, "_COSTLY", 100)
    monkeypatch.setattr(extreme, "_FEW", 1)


def _setting(dtype=torch.float64):
    model = cases.mlp(3, "tanh", width=12).to(dtype)
    x, y = cases.batch(24, cases.LOSSES["ce"][1])
    return model, x.to(dtype), y


def _theta(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def _chosen(H, prune, k, lr):
    """The eigenvectors that a selection takes, from all of them."""
    values, V = torch.linalg.eigh(H)
    counted = values.abs() > 1e-12 * values.abs().max()
    member, rank = {
        "dominant": (counted, values),
        "bulk": (counted, values),
        "positive": (counted & (values > 0), values.abs()),
        "negative": (counted & (values < 0), values.abs()),
        "chaotic": (counted & ((values < 0) | (values > 2 / lr)), (1 - lr * values).abs().log()),
    }[prune]
    index = member.nonzero().squeeze(1)
    return V[:, index[rank[index].argsort(descending=True)[:k]]]


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("prune", ["dominant", "bulk", "positive", "negative", "chaotic"])
def test_steps_are_those_of_all_eigenpairs(prune, k, costly):
    model, x, y = _setting()
    H, g, before = double_backward(model, CE, x, y), gradient(model, CE, x, y), _theta(model)
    lr = 2 / (0.5 * torch.linalg.eigvalsh(H)[-1].item())  # both kinds of chaotic directions
    V = _chosen(H, prune, k, lr)
    inside = V @ (V.T @ g)
    opt = ce.CGD(model.parameters(), lr=lr, prune=prune, k=k)
    opt.step(ce.HessianOperator(model, CE, x, y))
    assert relative((before - _theta(model)) / lr, inside if prune == "bulk" else g - inside) < 1e-7
    info = opt.last_step
    assert info.n_negative is None  # of a partial spectrum
    assert info.pruned == (len(g) - k if prune == "bulk" else V.shape[1])
    assert info.lambda_max == pytest.approx(torch.linalg.eigvalsh(H)[-1].item())


def test_fewer_than_k_in_the_set(costly):
    """Of 30 asked for there are fewer negative ones; none of the small positive ones is taken for one."""
    model, x, y = _setting()
    H = double_backward(model, CE, x, y)
    n = int((torch.linalg.eigvalsh(H) < -1e-12 * H.abs().max()).sum())
    shift = copy.deepcopy(model)
    opt = ce.CGD(shift.parameters(), lr=LR, prune="negative", k=min(n + 5, 90))
    before, g = _theta(shift), gradient(shift, CE, x, y)
    V = _chosen(H, "negative", opt.k, LR)
    opt.step(ce.HessianOperator(shift, CE, x, y))
    assert opt.last_step.pruned == V.shape[1]
    assert relative((before - _theta(shift)) / LR, g - V @ (V.T @ g)) < 1e-7


def test_a_data_set(costly):
    model, x, y = _setting()
    batches = [(x[:16], y[:16]), (x[16:], y[16:])]
    H, g, before = double_backward(model, CE, x, y), gradient(model, CE, x, y), _theta(model)
    V = _chosen(H, "dominant", 4, LR)
    opt = ce.CGD(model.parameters(), lr=LR, prune="dominant", k=4)
    opt.step(ce.DatasetHessian(model, CE, batches))
    assert relative((before - _theta(model)) / LR, g - V @ (V.T @ g)) < 1e-7


def test_the_operator_keeps_what_was_found_and_the_same_comes_again(costly):
    model, x, y = _setting()
    moved = []
    for _ in range(2):
        own = copy.deepcopy(model)
        op = ce.HessianOperator(own, CE, x, y)
        opt = ce.CGD(own.parameters(), lr=LR, prune="negative", k=3)
        assert opt.tangent_projection(op) is not None
        opt.step(op)
        moved.append(_theta(own))
    assert torch.equal(*moved)
    spec = extreme.extreme(ce.HessianOperator(model, CE, x, y), "negative", 3, zero_tol=None, spectrum_dtype=None)
    assert (spec.nullity, spec.ends) == (None, (3, 3))


@pytest.mark.parametrize(
    "options", [{"k": None}, {"k": 3, "order": "random"}, {"k": 3, "spectrum_dtype": torch.float64}]
)
def test_what_needs_all_eigenpairs_gets_them(options, costly):
    model, x, y = _setting(torch.float32)
    opt = ce.CGD(model.parameters(), lr=LR, prune="negative", **options)
    opt.step(ce.HessianOperator(model, CE, x, y))
    assert opt.last_step.n_negative is not None


def test_sizes_decide():
    """The paper's networks and every k that is not small keep the exact way."""
    assert not extreme._pays(1158, 20)
    assert not extreme._pays(2047, 2)
    assert extreme._pays(2048, 20)
    assert extreme._pays(7000, 20)
    assert not extreme._pays(2048, 200)
    model, x, y = _setting()
    op = ce.HessianOperator(model, CE, x, y)
    basis, S = op.smallest_form(torch.float64, 32)
    assert len(S) <= cost.decomposed_size(op, torch.float64) <= op.shape[0]
    assert cost.decomposed_size(ce.DatasetHessian(model, CE, [(x, y)]), torch.float64) == op.shape[0]


def test_a_large_network_takes_k_directions_quickly():
    """P = 23,000: all eigenpairs would take minutes and 13 GB."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Tanh(), nn.Conv2d(16, 16, 3), nn.Tanh(), nn.Flatten())
    model.extend([nn.Linear(16 * 36, 35), nn.Tanh(), nn.Linear(35, 3)])
    model = model.double()
    x, y = torch.randn(16, 1, 10, 10, dtype=torch.float64), torch.arange(16) % 3
    twin, before = copy.deepcopy(model), _theta(model)
    assert len(before) > 22000
    opt = ce.CGD(model.parameters(), lr=LR, k=2)
    opt.step(ce.HessianOperator(model, CE, x, y))
    assert opt.last_step.pruned == 2
    removed = gradient(twin, CE, x, y) - (before - _theta(model)) / LR
    # It lies in a plane that H maps to itself, by autograd's products, and H is negative there.
    params = list(twin.parameters())
    slope = torch.cat([t.reshape(-1) for t in torch.autograd.grad(CE(twin(x), y), params, create_graph=True)])
    columns = [removed]
    for _ in range(2):
        product = torch.autograd.grad(slope @ columns[-1], params, retain_graph=True)
        columns.append(torch.cat([t.reshape(-1) for t in product]))
    U, sigma, _ = torch.linalg.svd(torch.stack([c / c.norm() for c in columns], 1), full_matrices=False)
    assert sigma[2] < 1e-6 * sigma[1]
    assert float(removed @ columns[1]) < 0
