"""Fisher matrices and gradient covariances against outer products of gradients of single samples."""

import cases
import pytest
import torch
from oracles import gauss_newton, relative
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce

# The loss of one sample, as the batch's is the mean or the sum over samples of it.
OF_ONE = {
    "ce": lambda z, y: F.cross_entropy(z, y),
    "ce_sum": lambda z, y: F.cross_entropy(z, y),
    "ce_sum_weight_smooth": lambda z, y: cases.LOSSES["ce_sum_weight_smooth"][0]()(z, y),
    "ce_probabilities_sum": lambda z, y: F.cross_entropy(z, y),
    "mse": lambda z, y: F.mse_loss(z, y),
    "mse_sum": lambda z, y: F.mse_loss(z, y, reduction="sum"),
    "bce": lambda z, y: F.binary_cross_entropy_with_logits(z, y),
    "bce_weights": lambda z, y: cases.LOSSES["bce_weights"][0]()(z, y),
    "bce_sum_soft": lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="sum"),
}


def _gradients(model, loss_of_one, x, y):
    params = list(model.parameters())
    rows = [torch.autograd.grad(loss_of_one(model(x[i : i + 1]), y[i : i + 1]), params) for i in range(len(x))]
    return torch.stack([torch.cat([g.reshape(-1) for g in r]) for r in rows])


def _problem(loss, n=6):
    make, target = cases.LOSSES[loss]
    return (cases.mlp(3, "tanh"), make(), *cases.batch(n, target))


@pytest.mark.parametrize("loss", OF_ONE)
def test_outer_products(loss):
    model, loss_fn, x, y = _problem(loss)
    g = _gradients(model, OF_ONE[loss], x, y)
    scale = len(g) if loss_fn.reduction == "mean" else 1
    rest = g - g.mean(0)
    for kind, expected in (("empirical", g.T @ g / scale), ("covariance", rest.T @ rest / len(g))):
        op = ce.FisherOperator(model, loss_fn, x, y, kind)
        v = torch.randn(len(expected), 2, dtype=torch.float64)
        assert relative(op.dense(), expected) < 1e-11
        assert relative(op @ v, expected @ v) < 1e-11
        assert relative(op.diagonal(), expected.diagonal()) < 1e-11
        values, r = torch.linalg.eigvalsh(expected), len(ce.spectrum(op).eigenvalues)
        assert r <= len(x) - (kind == "covariance")
        assert relative(ce.spectrum(op).eigenvalues, values[-r:]) < 1e-11
        assert float(ce.trace(op)) == pytest.approx(float(expected.trace()), rel=1e-11)
        assert float(ce.frobenius_norm(op)) == pytest.approx(float(expected.norm()), rel=1e-11)
        assert op.gradient.shape == v[:, 0].shape


def test_ignored_samples_count_nowhere():
    model, x = cases.mlp(2, "tanh"), cases.batch(6, cases.LOSSES["ce"][1])[0]
    y = torch.tensor([0, -100, 2, 1, -100, 1])
    kept = y >= 0
    g = _gradients(model, F.cross_entropy, x[kept], y[kept])
    rest = g - g.mean(0)
    for reduction, scale in (("mean", 4), ("sum", 1)):
        loss_fn = nn.CrossEntropyLoss(reduction=reduction)
        assert relative(ce.FisherOperator(model, loss_fn, x, y).dense(), g.T @ g / scale) < 1e-11
        assert relative(ce.FisherOperator(model, loss_fn, x, y, "covariance").dense(), rest.T @ rest / 4) < 1e-11


def test_a_convolution_with_an_output_at_every_position():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Conv2d(3, 3, 1)).double().eval()
    x, y = torch.randn(4, 1, 5, 5, dtype=torch.float64), torch.randint(3, (4, 3, 3))
    g = _gradients(model, F.cross_entropy, x, y)
    assert relative(ce.FisherOperator(model, nn.CrossEntropyLoss(), x, y).dense(), g.T @ g / 4) < 1e-11
    sampled = ce.FisherOperator(model, nn.CrossEntropyLoss(), x, y, "sampled", samples=4000).dense()
    assert relative(sampled, gauss_newton(model, F.cross_entropy, x, y)) < 0.1


@pytest.mark.parametrize("loss", ["ce", "ce_weight_ignore_smooth", "mse", "bce", "bce_weights"])
def test_sampled_labels_are_unbiased_for_the_gauss_newton_matrix(loss):
    model, loss_fn, x, y = _problem(loss)
    G, v = gauss_newton(model, loss_fn, x, y), torch.randn(75, dtype=torch.float64)
    v = v[: len(G)]
    forms = [
        v @ (ce.FisherOperator(model, loss_fn, x, y, "sampled", samples=5, generator=g) @ v)
        for g in (torch.Generator().manual_seed(i) for i in range(200))
    ]
    forms = torch.stack(forms)
    assert abs(float(forms.mean() - v @ G @ v)) < 4 * float(forms.std()) / 200**0.5


def test_labels_are_drawn_once_and_never_from_the_global_generator():
    model, loss_fn, x, y = _problem("ce")
    before = torch.get_rng_state()
    op = ce.FisherOperator(model, loss_fn, x, y, "sampled", samples=3)
    again = ce.FisherOperator(model, loss_fn, x, y, "sampled", samples=3)
    other = ce.FisherOperator(model, loss_fn, x, y, "sampled", generator=torch.Generator().manual_seed(7))
    assert torch.equal(op.dense(), again.dense())
    assert relative(op @ op.gradient, op.dense() @ op.gradient) < 1e-12
    assert not torch.allclose(op.dense(), other.dense())
    assert torch.equal(torch.get_rng_state(), before)
    assert len(ce.spectrum(op).eigenvalues) <= 18


def test_refusals():
    model, loss_fn, x, y = _problem("ce")
    with pytest.raises(ValueError, match="kind"):
        ce.FisherOperator(model, loss_fn, x, y, "kfac")
    with pytest.raises(ValueError, match="samples"):
        ce.FisherOperator(model, loss_fn, x, y, "sampled", samples=0)
    with pytest.raises(TypeError, match="generator"):
        ce.FisherOperator(model, loss_fn, x, y, "sampled", generator=1)
    with pytest.raises(ce.UnsupportedError, match="layer rules"):
        ce.FisherOperator(model, lambda z, y: F.cross_entropy(z, y), x, y)
    with pytest.raises(ce.UnsupportedError, match="weight"):
        ce.FisherOperator(model, nn.CrossEntropyLoss(weight=torch.ones(3)), x, y)
    coupled = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    with pytest.raises(ce.UnsupportedError, match="interact"):
        ce.FisherOperator(coupled, loss_fn, x, y)
    op = ce.FisherOperator(model, loss_fn, x, y)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    with pytest.raises(ce.StaleOperatorError):
        op @ op.gradient


def test_no_sample_that_counts_has_no_covariance():
    model, x = cases.mlp(2, "tanh"), cases.batch(3, cases.LOSSES["ce"][1])[0]
    loss_fn, y = nn.CrossEntropyLoss(reduction="sum"), torch.full((3,), -100)
    for kind in ("empirical", "sampled", "covariance"):
        assert not ce.FisherOperator(model, loss_fn, x, y, kind).dense().any()


@pytest.mark.parametrize("logit", [10.0, 14.0, 18.0])
@pytest.mark.parametrize("loss", ["softmax", "binary"])
def test_sampled_labels_of_a_fitted_batch_in_float32(loss, logit):
    """All labels drawn are the likely one: G is z's gradient 1 - p squared, and 1 - p is far below float32's eps."""
    outputs = 2 if loss == "softmax" else 1
    model, x = nn.Linear(1, outputs, bias=False), torch.ones(4, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[logit], [0.0]])[:outputs])
    loss_fn, y = (nn.CrossEntropyLoss(), torch.zeros(4).long()) if outputs == 2 else (nn.BCEWithLogitsLoss(), x)
    rest = 1 / (1 + torch.tensor(logit, dtype=torch.float64).exp())
    op = ce.FisherOperator(model, loss_fn, x, y, "sampled", samples=3)
    assert float(op.diagonal()[0]) == pytest.approx(float(rest**2), rel=1e-5, abs=0)
    assert float(op.dense()[0, 0]) == pytest.approx(float(rest**2), rel=1e-5, abs=0)
