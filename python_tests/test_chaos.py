"""Local exponents and the selection of directions."""

import math

import pytest
import torch

import chaos_ext as ce
from chaos_ext.spectra.decompose import spectrum_of_matrix


def _spec(values, zero_tol=1e-12):
    d = torch.tensor(values, dtype=torch.float64)
    return spectrum_of_matrix(torch.diag(d), torch.arange(1.0, len(d) + 1, dtype=torch.float64), zero_tol=zero_tol)


def test_exponents_keep_their_digits():
    lam = torch.tensor([1e-9, -1e-9, 1.0, -2.0, 3000.0, 2000.0, 1000.0, 0.0], dtype=torch.float64)
    lle = ce.local_lyapunov_exponents(lam, 1e-3)
    expected = [
        math.log1p(-1e-12),
        math.log1p(1e-12),
        math.log1p(-1e-3),
        math.log1p(2e-3),
        math.log(2),
        0.0,
        -math.inf,
        0.0,
    ]
    assert lle.dtype == torch.float64
    assert lle.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert ce.local_lyapunov_exponents(lam.float(), 1e-3).dtype == torch.float64


def test_exponent_is_the_growth_of_a_real_gradient_descent_step():
    """On L = lambda x^2 / 2 one step of torch.optim.SGD multiplies a deviation by 1 - lr lambda."""
    for lam in (-3.0, 0.5, 19.0, 25.0):
        x = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=0.1)
        (lam * x**2 / 2).sum().backward()
        optimizer.step()
        growth = ce.local_lyapunov_exponents(torch.tensor([lam]), 0.1)
        assert growth.item() == pytest.approx(math.log(abs(x.item())), rel=1e-12)


def test_sets_and_zero_rule():
    spec = _spec([-5.0, -1e-14, 0.0, 1e-14, 1.0, 30.0])
    assert spec.eigenvalues.tolist() == [-5.0, 1.0, 30.0]
    assert ce.select(spec, 0.1, "negative").tolist() == [True, False, False]
    assert ce.select(spec, 0.1, "positive").tolist() == [False, True, True]
    assert ce.select(spec, 0.1, "chaotic").tolist() == [True, False, True]
    assert ce.select(spec, 0.01, "chaotic").tolist() == [True, False, False]
    assert ce.select(spec, 0.1, None).tolist() == [False] * 3
    assert ce.select(spec, 0.1, "negative", k=0).tolist() == [False] * 3


def test_threshold_is_strict():
    spec = _spec([1.0, 20.0, 20.000001])
    assert ce.select(spec, 0.1).tolist() == [False, False, True]


def test_top_k_ranks_by_modulus_or_exponent_and_ties_by_index():
    spec = _spec([-4.0, -2.0, 1.0, 3.0, 22.0])
    assert ce.select(spec, 0.1, "negative", k=1).tolist() == [True, False, False, False, False]
    assert ce.select(spec, 0.1, "positive", k=1).tolist() == [False, False, False, False, True]
    # ln|1 - 0.1 * 22| = ln 1.2 ranks with ln 1.2 of lambda = -2, below ln 1.4 of lambda = -4, although |22| is largest.
    assert ce.select(spec, 0.1, "chaotic", k=1).tolist() == [True, False, False, False, False]
    tied = _spec([-2.0, -2.0, 1.0, 2.0, 2.0])
    assert ce.select(tied, 0.1, "negative", k=1).tolist() == [True, False, False, False, False]
    assert ce.select(tied, 0.1, "positive", k=1).tolist() == [False, False, False, True, False]


def test_random_selection_is_without_replacement_and_uniform():
    spec = _spec([-4.0, -3.0, -2.0, -1.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(5)
    for _ in range(2000):
        mask = ce.select(spec, 0.1, "negative", k=2, order="random", generator=generator)
        assert int(mask.sum()) == 2
        counts += mask
    assert counts[4] == 0
    assert (counts[:4] / 2000 - 0.5).abs().max() < 0.05
    again = [
        ce.select(spec, 0.1, "negative", k=2, order="random", generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    ]
    assert torch.equal(*again)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"prune": "chaos"}, ValueError),
        ({"order": "first"}, ValueError),
        ({"k": -1}, ValueError),
        ({"k": 6}, ValueError),
        ({"k": 1.5}, TypeError),
        ({"k": True}, TypeError),
        ({"lr": -1.0}, ValueError),
        ({"lr": math.nan}, ValueError),
    ],
)
def test_bad_arguments(kwargs, error):
    spec = _spec([-1.0, 0.0, 0.5, 1.0, 2.0])
    with pytest.raises(error, match=next(iter(kwargs))):
        ce.select(spec, **{"lr": 0.1, **kwargs})


def test_lr_zero_has_no_upper_threshold():
    spec = _spec([-1.0, 1e9])
    assert ce.select(spec, 0.0).tolist() == [True, False]
    assert ce.local_lyapunov_exponents(spec.eigenvalues, 0.0).tolist() == [0.0, 0.0]


def test_summary_counts_and_shares():
    spec = _spec([-5.0, 0.0, 1.0, 30.0])
    s = ce.spectral_summary(spec, 0.1)
    total = 1 + 4 + 9 + 16
    assert (s.n_negative, s.n_zero, s.n_positive, s.n_chaotic) == (1, 1, 2, 2)
    assert (s.lambda_min, s.lambda_max) == (-5.0, 30.0)
    shares = (s.share_negative, s.share_zero, s.share_positive, s.share_chaotic)
    assert shares == pytest.approx((1 / total, 4 / total, 25 / total, 17 / total))
    definite = ce.spectral_summary(_spec([0.0, 1.0, 2.0]), 0.1)
    assert (definite.lambda_min, definite.lambda_max) == (0.0, 2.0)


def test_summary_needs_a_complete_spectrum():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    op = ce.HessianOperator(model, torch.nn.CrossEntropyLoss(), x, y)
    with pytest.raises(ValueError, match="complete"):
        ce.spectral_summary(ce.spectrum(op, k=2), 0.1)
