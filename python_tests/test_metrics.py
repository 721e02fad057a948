"""The metrics against closed forms and dense linear algebra."""

import math

import cases
import pytest
import torch
from oracles import double_backward, gradient
from torch import nn
from torch.optim import SGD, Adam

import chaos_ext as ce
from chaos_ext.spectra.decompose import spectrum_of_matrix

CE = nn.CrossEntropyLoss()


def _spec(values, g=None):
    d = torch.tensor(values, dtype=torch.float64)
    g = torch.arange(1.0, len(d) + 1, dtype=torch.float64) if g is None else torch.tensor(g, dtype=torch.float64)
    return spectrum_of_matrix(torch.diag(d), g, zero_tol=1e-12)


def _operator():
    model = cases.mlp(2, "tanh", seed=3)
    x, y = cases.batch(5, cases.LOSSES["ce"][1])
    return model, x, y, ce.HessianOperator(model, CE, x, y)


def test_lle_spectrum_has_an_entry_for_every_direction():
    lle = ce.lle_spectrum(_spec([-5.0, 0.0, 1e-15, 1.0, 30.0]), 0.1)
    expected = [math.log(2), math.log(1.5), 0.0, 0.0, math.log(0.9)]
    assert lle.tolist() == pytest.approx(expected, abs=1e-14)
    assert lle.dtype == torch.float64
    signs = ce.count_signs(lle)
    assert (signs.chaotic, signs.neutral, signs.stable) == (2, 2, 1)
    model, x, y, op = _operator()
    whole = ce.lle_spectrum(ce.spectrum(op), 0.3)
    dense = torch.linalg.eigvalsh(double_backward(model, CE, x, y))
    assert torch.allclose(whole, (1 - 0.3 * dense).abs().log().sort(descending=True).values, atol=1e-10)
    with pytest.raises(ValueError, match="complete"):
        ce.lle_spectrum(ce.spectrum(op, k=2), 0.3)


def test_gradient_alignment():
    spec = _spec([-5.0, 0.0, 1.0, 30.0])  # g = 1, 2, 3, 4: eigenvectors of -5, 1, 30 see 1, 3, 4
    found = ce.gradient_alignment(spec, spec.eigenvalues > 0)
    assert (found.share, found.cosine, found.dimension, found.baseline) == pytest.approx(
        (25 / 30, (25 / 30) ** 0.5, 2, 0.5)
    )
    assert found.cosines.abs().tolist() == pytest.approx([3 / 30**0.5, 4 / 30**0.5])
    other = ce.gradient_alignment(spec, spec.eigenvalues < 0, torch.tensor([2.0, 0, 0, 0], dtype=torch.float64))
    assert (other.share, other.cosine) == (1.0, 1.0)
    nothing = ce.gradient_alignment(spec, spec.eigenvalues > 1e9)
    assert (nothing.share, nothing.dimension) == (0.0, 0)
    zero = _spec([1.0, 2.0], [0.0, 0.0])
    assert math.isnan(ce.gradient_alignment(zero, zero.eigenvalues > 0).share)
    model, x, y, op = _operator()
    spec, lr = ce.spectrum(op), 0.5
    mask = ce.select(spec, lr, "negative")
    assert ce.gradient_alignment(spec, mask).share == pytest.approx(ce.spectral_summary(spec, lr).share_negative)
    with pytest.raises(ValueError, match="mask"):
        ce.gradient_alignment(spec, mask[1:])


def test_gradient_cosine():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    assert ce.gradient_cosine(a, b) == pytest.approx(0.5**0.5)
    assert ce.gradient_cosine(a, -3 * a) == -1.0
    assert math.isnan(ce.gradient_cosine(a, 0 * a))
    with pytest.raises(ValueError, match="length"):
        ce.gradient_cosine(a, torch.ones(3))


def test_subspace_similarity_and_its_baseline():
    eye = torch.eye(6, dtype=torch.float64)
    same = ce.subspace_similarity(eye[:, :2] @ torch.tensor([[1.0, 2.0], [0.0, 3.0]]).double(), eye[:, :2])
    assert (same.value, same.baseline, same.excess) == pytest.approx((1.0, 2 / 6, 1.0))
    assert ce.subspace_similarity(eye[:, :1], eye[:, :3]).value == pytest.approx(1.0)
    apart = ce.subspace_similarity(eye[:, :2], eye[:, 2:4])
    assert (apart.value, apart.excess) == pytest.approx((0.0, -0.5))
    tilted = torch.tensor([[math.cos(0.3)], [math.sin(0.3)], [0.0]], dtype=torch.float64)
    found = ce.subspace_similarity(tilted, torch.eye(3, dtype=torch.float64)[:, :1])
    assert found.cosines.tolist() == pytest.approx([math.cos(0.3)])
    # The baseline is what random subspaces have on average, also of different dimensions.
    for a, b in ((3, 3), (2, 7)):
        draws = [ce.subspace_similarity(torch.randn(20, a).double(), torch.randn(20, b).double()) for _ in range(300)]
        mean = sum(d.value for d in draws) / len(draws)
        assert mean == pytest.approx(max(a, b) / 20, rel=0.1)
        assert draws[0].baseline == max(a, b) / 20
    with pytest.raises(ValueError, match="independent"):
        ce.subspace_similarity(torch.ones(4, 2), torch.eye(4)[:, :2])
    with pytest.raises(ValueError, match="A, B"):
        ce.subspace_similarity(eye[:, :2], eye[:5, :2])


@pytest.mark.parametrize(
    ("options", "upper"),
    [
        ({}, 20.0),
        ({"momentum": 0.5}, 30.0),
        ({"momentum": 0.5, "dampening": 0.5}, 60.0),
        ({"momentum": 0.5, "nesterov": True}, 15.0),
    ],
)
def test_distance_to_the_threshold_vanishes_where_the_exponent_does(options, upper):
    """At the edge of stability the leading companion root of a real optimizer's tangent map has modulus one."""
    model = nn.Linear(1, 1, bias=False).double()
    x, y = torch.full((1, 1), (upper / 2) ** 0.5, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for cls in (SGD, ce.CGD):
        opt = cls(model.parameters(), lr=0.1, **options)
        op = ce.HessianOperator(model, nn.MSELoss(), x, y)
        margin = ce.distance_to_threshold(ce.spectrum(op), opt)
        assert (margin.threshold, margin.ratio) == pytest.approx((upper, 1.0))
        assert margin.distance == pytest.approx(0.0, abs=1e-9)
    opt = SGD(model.parameters(), lr=0.1, **options)
    nn.functional.mse_loss(model(x), y).backward()
    opt.step()
    op = ce.HessianOperator(model, nn.MSELoss(), x, y)
    tangent = ce.TangentMap(opt)
    J = tangent.apply_(op, torch.eye(tangent.size, dtype=torch.float64))
    assert float(torch.linalg.eigvals(J).abs().max()) == pytest.approx(1.0)


def test_distance_counts_weight_decay_and_maximize():
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    spec = _spec([-7.0, 0.0, 4.0])
    decay = ce.distance_to_threshold(spec, SGD([p], lr=0.1, weight_decay=0.5))
    assert (decay.sharpness, decay.distance) == (4.5, 15.5)
    assert ce.distance_to_threshold(spec, SGD([p], lr=0.1, maximize=True)).sharpness == 7.0
    assert ce.distance_to_threshold(_spec([-7.0, -1.0, 0.0]), SGD([p], lr=0.1)).sharpness == 0.0
    assert ce.distance_to_threshold(25.0, SGD([p], lr=0.1)).distance == -5.0
    assert ce.distance_to_threshold(25.0, SGD([p], lr=0.0)).ratio == 0.0
    with pytest.raises(ce.UnsupportedError, match="Adam"):
        ce.distance_to_threshold(spec, Adam([p]))
    q = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    with pytest.raises(ce.UnsupportedError, match="different lr"):
        ce.distance_to_threshold(spec, SGD([{"params": [p], "lr": 0.1}, {"params": [q], "lr": 0.2}]))


def test_batch_sharpness():
    model, x, y, op = _operator()
    H, g = double_backward(model, CE, x, y), gradient(model, CE, x, y)
    assert ce.batch_sharpness(op) == pytest.approx(float(g @ H @ g / (g @ g)), rel=1e-10)
