"""Sharpness dimension and batch sharpness against their definitions, by dense linear algebra."""

import math

import pytest
import torch
from oracles import double_backward, gradient
from scipy import stats
from training import CE, batches, small_model

import chaos_ext as ce

LR = 0.7


def _dimension(values):
    """The definition, number by number."""
    values = sorted(values, reverse=True)
    sums = [sum(values[: i + 1]) for i in range(len(values))]
    if values[0] < 0:
        return 0.0
    if min(sums) >= 0:
        return float(len(values))
    j = max(i for i, s in enumerate(sums) if s >= 0)
    return j + 1 + sums[j] / abs(values[j + 1])


@pytest.mark.parametrize("seed", range(8))
def test_dimension_of_exponents_is_the_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    lists = torch.randn(3, 12, generator=generator, dtype=torch.float64) - 0.3 * (seed % 4)
    lists[:, :4] = 0
    found = ce.sharpness_dimension(lists)
    ranked = lists.sort(dim=1, descending=True).values
    means = ranked.mean(0)
    assert torch.allclose(found.exponents, means)
    assert found.with_zeros == pytest.approx(_dimension(means.tolist()))
    kept = [float(m) for i, m in enumerate(means) if not bool((ranked[:, i] == 0).all())]
    assert found.zeros == 12 - len(kept)
    assert found.without_zeros == pytest.approx(_dimension(kept))
    assert (found.batches, math.isnan(found.kaplan_yorke)) == (3, True)


def test_dimension_of_spectra_is_that_of_the_dense_singular_values():
    model, data = small_model(), batches(4)
    spectra = (ce.spectrum(ce.HessianOperator(model, CE, x, y)) for x, y in data)  # one at a time
    found = ce.sharpness_dimension(spectra, LR)
    lists = []
    for x, y in data:
        H = double_backward(model, CE, x, y)
        lists.append(torch.linalg.svdvals(torch.eye(len(H)).double() - LR * H).log())
    means = torch.stack(lists).mean(0)
    assert torch.allclose(found.exponents, means, atol=1e-10)
    flat = torch.stack([v.abs() < 1e-10 for v in lists]).all(0)
    assert found.zeros == int(flat.sum()) >= 4  # the last layer's shifts of all logits, at least
    assert found.with_zeros == pytest.approx(_dimension(found.exponents.tolist()), rel=1e-9)
    assert found.without_zeros == pytest.approx(_dimension(means[~flat].tolist()), rel=1e-6)
    assert found.with_zeros == pytest.approx(found.without_zeros + found.zeros, rel=1e-6)


def test_an_index_is_a_zero_only_if_it_is_one_in_every_batch():
    found = ce.sharpness_dimension(torch.tensor([[0.5, 0.0, 0.0, -1.0], [0.5, 0.3, 0.0, -1.0]]))
    assert found.zeros == 1
    assert found.exponents.tolist() == pytest.approx([0.5, 0.15, 0.0, -1.0])
    assert (found.with_zeros, found.without_zeros) == pytest.approx((3.65, 2.65))


def test_limits_of_the_dimension():
    assert ce.sharpness_dimension(torch.tensor([-0.1, -0.2])).with_zeros == 0
    assert ce.sharpness_dimension(torch.tensor([0.3, 0.0, -0.2])).with_zeros == 3
    assert ce.sharpness_dimension(torch.zeros(5)).with_zeros == 5
    assert ce.sharpness_dimension(torch.zeros(5)).without_zeros == 0
    assert ce.sharpness_dimension(torch.tensor([0.3, -math.inf])).with_zeros == 1
    assert ce.sharpness_dimension(torch.tensor([0.3, -math.inf])).exponents.tolist()[1] == -math.inf


def test_the_kaplan_yorke_dimension_stands_beside_it():
    state = torch.tensor([0.5, 0.1, -0.4, -0.6], dtype=torch.float64)
    run = torch.tensor([0.2, -0.1, -0.4, -0.5], dtype=torch.float64)
    found = ce.sharpness_dimension(state, lyapunov=run)
    assert found.kaplan_yorke == pytest.approx(2 + 0.1 / 0.4)
    assert ce.sharpness_dimension(state, lyapunov=run[:3]).kaplan_yorke == found.kaplan_yorke
    with pytest.raises(ValueError, match="needs more of them"):
        ce.sharpness_dimension(state, lyapunov=run[:1])


def test_what_has_no_dimension_is_refused_by_name():
    x, y = batches(1)[0]
    op = ce.HessianOperator(small_model(), CE, x, y)
    spec = ce.spectrum(op)
    for source, options, error, message in (
        (torch.tensor([0.1, math.nan]), {}, ValueError, "source: expected exponents below infinity"),
        (torch.tensor([math.inf, 0.1]), {}, ValueError, "source: expected exponents below infinity"),
        (torch.zeros(2, 2, 2), {}, ValueError, r"source: expected real exponents"),
        (torch.zeros(0), {}, ValueError, "source: expected exponents of at least one batch"),
        (torch.zeros(0, 3), {}, ValueError, "source: expected exponents of at least one batch"),
        ([], {"lr": LR}, ValueError, "source: expected exponents of at least one batch"),
        ([spec], {}, ValueError, "lr: expected the learning rate"),
        (torch.zeros(3), {"lr": LR}, ValueError, "lr: expected None"),
        ([spec, 3.0], {"lr": LR}, TypeError, "source: expected spectra"),
        ([ce.spectrum(op, k=2)], {"lr": LR}, ValueError, "complete"),
    ):
        with pytest.raises(error, match=message):
            ce.sharpness_dimension(source, **options)
    wider = ce.spectrum(ce.HessianOperator(small_model(width=4), CE, x, y))
    with pytest.raises(ValueError, match="batch 1 has"):
        ce.sharpness_dimension([spec, wider], LR)


def _dense(model, data):
    """g^T H g and g^T g of each batch."""
    pairs = []
    for x, y in data:
        H, g = double_backward(model, CE, x, y), gradient(model, CE, x, y)
        pairs.append((float(g @ H @ g), float(g @ g)))
    return torch.tensor(pairs, dtype=torch.float64).T


def test_both_definitions_of_batch_sharpness():
    model, data = small_model(), batches(6)
    a, b = _dense(model, data)
    each = [ce.HessianOperator(model, CE, x, y) for x, y in data]
    mean = ce.batch_sharpness_over(iter(each), level=0.8)
    assert mean.estimate.value == pytest.approx(float((a / b).mean()), rel=1e-10)
    interval = stats.t.interval(0.8, 5, loc=float((a / b).mean()), scale=stats.sem((a / b).numpy()))
    assert (mean.estimate.low, mean.estimate.high) == pytest.approx(interval, rel=1e-9)
    assert mean.estimate.value == pytest.approx(sum(map(ce.batch_sharpness, each)) / 6)
    ratio = ce.batch_sharpness_over(each, "ratio_of_means")
    assert ratio.estimate.value == pytest.approx(float(a.sum() / b.sum()), rel=1e-10)
    assert ratio.estimate.value != pytest.approx(mean.estimate.value, rel=1e-3)
    assert torch.allclose(ratio.curvatures, a)
    assert torch.allclose(ratio.squares, b)
    assert (ratio.definition, ratio.level) == ("ratio_of_means", 0.95)


def test_the_interval_of_the_ratio_is_as_wide_as_the_scatter_of_ratios():
    """Against the spread of the same estimate over many independent sets of batches."""
    model = small_model()
    values, widths = [], []
    for s in range(40):
        ops = (ce.HessianOperator(model, CE, x, y) for x, y in batches(12, seed=1000 * s))
        e = ce.batch_sharpness_over(ops, "ratio_of_means", level=0.9).estimate
        values.append(e.value)
        widths.append((e.high - e.low) / 2 / stats.t.ppf(0.95, 11))
    spread = float(torch.tensor(values).std())
    assert sum(widths) / len(widths) == pytest.approx(spread, rel=0.35)  # 40 values know a spread to 11 %, times 3


def test_a_single_batch_has_no_interval():
    model, data = small_model(), batches(1)
    e = ce.batch_sharpness_over([ce.HessianOperator(model, CE, *data[0])]).estimate
    assert e.value > 0
    assert math.isnan(e.low)
    assert math.isnan(e.high)


def test_batches_without_a_direction_are_refused_by_name():
    model = torch.nn.Linear(2, 1, bias=False).double()
    zero = ce.HessianOperator(model, torch.nn.MSELoss(), torch.zeros(3, 2).double(), torch.zeros(3, 1).double())
    one = ce.HessianOperator(model, torch.nn.MSELoss(), torch.ones(3, 2).double(), torch.zeros(3, 1).double())
    with pytest.raises(ValueError, match=r"batches \[1\] have zero gradients"):
        ce.batch_sharpness_over([one, zero])
    assert ce.batch_sharpness_over([one, zero], "ratio_of_means").estimate.value == pytest.approx(4.0)
    with pytest.raises(ValueError, match="every gradient is zero"):
        ce.batch_sharpness_over([zero], "ratio_of_means")
    with pytest.raises(ValueError, match="at least one HessianOperator"):
        ce.batch_sharpness_over([])
    with pytest.raises(ValueError, match="definition: expected one of"):
        ce.batch_sharpness_over([one], "mean")
    with pytest.raises(ValueError, match="level: expected"):
        ce.batch_sharpness_over([one], level=1.0)
    with pytest.raises(TypeError, match="operators: expected HessianOperators, got float at 1"):
        ce.batch_sharpness_over([one, 1.0])
