"""``chaos-ext reproduce generalisation``: rows against a plain loop, verdicts, and permutations against scipy."""

import itertools

import pytest
import torch
from reading_studies import (
    few_digits,
    hessian_at,
    interrupted,
    killed,
    manifest,
    reproduce,
    rows,
    trajectory,
    write_rows,
)

from chaos_ext.data import BatchOrder
from chaos_ext.data.batches import derive_seed
from chaos_ext.dynamics.start import start_block
from chaos_ext.experiments import generalisation, significance
from chaos_ext.experiments import generalisation_findings as judged

pytestmark = pytest.mark.usefixtures("digits_cache")

STEPS, EVERY, K, REFERENCE = 24, 5, 3, 40
OPTIONS = ("--seeds", "3,4", "--lr", "0.3", "--more-lr", "0.1", "--more-batch-size", "5", "--k", str(K))
OPTIONS += ("--every", str(EVERY), "--reference", str(REFERENCE))
RUNS = ["lr0.1-batch5", "lr0.1-batch8", "lr0.3-batch5", "lr0.3-batch8"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits_cache):
    out = tmp_path_factory.mktemp("generalisation") / "out"
    assert reproduce(generalisation.Generalisation, out, *OPTIONS, steps=STEPS) == 0
    return out


def test_there_is_a_row_for_every_training(finished):
    found = [(r["seed"], r["run"], r["step"], r["lr"], r["batch_size"]) for r in rows(finished)]
    assert found == [(s, run, str(STEPS), run[2:5], run[-1]) for s in "34" for run in RUNS]
    m = manifest(finished)
    assert list(rows(finished)[0]) == list(m["columns"])
    assert sorted(m["batch_hashes_per_epoch"]) == ["3, batch5", "3, batch8", "4, batch5", "4, batch8"]
    assert [f["verdict"] for f in m["findings"]] == ["undecided"] * len(judged.MEASURES)  # 8 runs


@pytest.mark.parametrize(("lr", "batch"), [(0.3, 8), (0.1, 5)])
def test_rows_are_those_of_a_plain_loop(finished, lr, batch):
    (row,) = (r for r in rows(finished) if r["seed"] == "3" and r["run"] == f"lr{lr}-batch{batch}")
    model, path = trajectory(3, STEPS, lr, batch_size=batch)
    hessians = [hessian_at(model, *moment) for moment in path]
    model.load_state_dict(path[STEPS][0])
    d, expected = few_digits().to(torch.float64, "cpu"), {}
    for name, x, y in (("train", d.x_train, d.y_train), ("test", d.x_test, d.y_test)):
        with torch.no_grad():
            out = model(x)
        expected[f"{name}_loss"] = torch.nn.functional.cross_entropy(out, y).item()
        expected[f"{name}_accuracy"] = (out.argmax(1) == y).double().mean().item()
    expected["gap"] = expected["test_loss"] - expected["train_loss"]
    expected["accuracy_gap"] = expected["train_accuracy"] - expected["test_accuracy"]

    Y = start_block(277, K, torch.float64, torch.device("cpu"), 3)
    looked = []
    for t in range(STEPS):
        Y = Y - lr * hessians[t] @ Y
        if t % EVERY == 0:
            looked.append(chaotic(model, *path[t], hessians[t], lr))
    exponents = torch.linalg.qr(Y).R.diagonal().abs().log() / STEPS
    expected["lambda_1"], expected["sum_positive"] = exponents.max().item(), exponents.clamp_min(0).sum().item()
    expected["n_chaotic"], expected["share_chaotic"] = (sum(v) / len(looked) for v in zip(*looked, strict=True))

    index = torch.randperm(77, generator=torch.Generator().manual_seed(derive_seed("reference", 3)))[:REFERENCE]
    H = hessian_at(model, path[STEPS][0], d.x_train[index], d.y_train[index])
    expected["sharpness"] = torch.linalg.eigvalsh(H)[-1].item() * lr / 2
    order = BatchOrder(77, batch, 3)
    batches = order.epoch(STEPS // order.steps_per_epoch + 1)[:8]
    lists = []
    for i in batches:
        values = torch.linalg.eigvalsh(hessian_at(model, path[STEPS][0], d.x_train[i], d.y_train[i]))
        values[values.abs() < 1e-12 * values.abs().max()] = 0.0
        lists.append((1 - lr * values).abs().log().sort(descending=True).values)
    expected["sharpness_dimension"] = dimension(torch.stack(lists))
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(value, rel=1e-6, abs=1e-9), name


def chaotic(model, state, x, y, H, lr):
    """Number of chaotic directions, and their share of the gradient."""
    model.load_state_dict(state)
    loss = torch.nn.functional.cross_entropy(model(x), y)
    g = torch.cat([v.flatten() for v in torch.autograd.grad(loss, list(model.parameters()))])
    values, vectors = torch.linalg.eigh(H)
    mask = (values < -1e-12 * values.abs().max()) | (values > 2 / lr)
    return int(mask.sum()), float((vectors[:, mask].T @ g).square().sum() / g.square().sum())


def dimension(lists):
    """j + (l_1 + ... + l_j) / |l_(j+1)| of the means, without what is zero in every list."""
    means = lists.mean(0)[~(lists == 0).all(0)]
    sums = means.cumsum(0)
    j = int((sums >= 0).sum())
    return j + float(sums[j - 1] if j else 0.0) / abs(float(means[j]))


@pytest.mark.parametrize("after", [1, 3, 17, 24, 25, 60, 130])
def test_an_interrupted_study_goes_on_to_the_same_bytes(finished, after, tmp_path):
    assert interrupted(generalisation.Generalisation, after, tmp_path / "out", *OPTIONS, steps=STEPS) == 130
    assert reproduce(generalisation.Generalisation, tmp_path / "out", *OPTIONS, "--resume", steps=STEPS) == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    assert manifest(tmp_path / "out")["findings"] == manifest(finished)["findings"]


def test_a_killed_study_goes_on_to_the_same_bytes(tmp_path):
    killed(generalisation.Generalisation, 70, tmp_path / "out", *OPTIONS)
    assert reproduce(generalisation.Generalisation, tmp_path / "out", *OPTIONS, "--resume") == 0
    assert reproduce(generalisation.Generalisation, tmp_path / "whole", *OPTIONS) == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--more-lr", "0"), ("--more-batch-size", "78"), ("--more-batch-size", "4,4"), ("--more-batch-size", "x"),
     ("--batch-size", "78"), ("--reference", "78"), ("--k", "278")],
)  # fmt: skip
def test_bad_options_are_refused_by_name(option, value, tmp_path, capsys):
    assert reproduce(generalisation.Generalisation, tmp_path / "out", option, value) == 2
    assert option in capsys.readouterr().err


def verdicts(path, gap, rates=3, runs=9):
    """Of made-up rows whose measures are those of run i at rate j, by name, and whose gap is a function of these."""
    g = torch.Generator().manual_seed(1)
    found = []
    for j in range(rates):
        for i in range(runs):
            noise = torch.rand(len(judged.MEASURES), generator=g, dtype=torch.float64).tolist()
            own = {"lambda_1": 10.0 * j + i, "sharpness": 10.0 * j, "batch_size": 8}
            values = dict(zip(judged.MEASURES, noise, strict=True)) | own
            found.append((f"lr{j}-batch8", i, 0.1 * (j + 1), gap(i, j), *values.values()))
    names = ("run", "seed", "lr", "gap", *judged.MEASURES)
    return {
        n: f.verdict for n, f in zip(judged.MEASURES, judged.findings_of(write_rows(path, names, found)), strict=True)
    }


def test_verdicts_of_made_up_rows(tmp_path):
    path = tmp_path / "m.csv"
    both = verdicts(path, lambda i, j: 10 * j + i)
    assert (both["lambda_1"], both["n_chaotic"], both["sharpness"]) == ("reproduced", "not reproduced", "undecided")
    assert verdicts(path, lambda i, j: -10 * j - i)["lambda_1"] == "reproduced"
    assert verdicts(path, lambda i, j: 10 * j + (7 * i) % 9)["lambda_1"] == "partly"  # only across rates
    assert verdicts(path, lambda i, j: i - 20 * j)["lambda_1"] == "partly"  # rises within, falls across
    assert both["batch_size"] == "undecided"  # there is one
    assert set(verdicts(path, lambda i, j: i, runs=3).values()) == {"undecided"}


def test_rho_is_scipys_and_its_permutations_are_all_of_them():
    stats = pytest.importorskip("scipy.stats")
    g = torch.Generator().manual_seed(0)
    a, noise = torch.randn(2, 6, generator=g, dtype=torch.float64)
    for b in (a + noise, noise, -a, noise.round()):
        rho, p = significance.permuted_rho(a, b)
        assert rho == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
        all_ = [abs(stats.spearmanr(a, b[list(order)]).statistic) for order in itertools.permutations(range(6))]
        assert p == pytest.approx(sum(v >= abs(rho) - 1e-12 for v in all_) / len(all_), abs=0.02)  # 4 sd of 9999 draws


def test_within_groups_only_what_happens_there_counts():
    g = torch.Generator().manual_seed(2)
    groups = torch.arange(30) % 3
    noise, other = torch.randn(2, 30, generator=g, dtype=torch.float64)
    a, b = noise + 10 * groups, other + 10 * groups
    assert significance.permuted_rho(a, b)[1] < 0.001  # the groups differ
    rho, p = significance.permuted_rho(a, b, groups)
    own = [significance.permuted_rho(a[groups == i], b[groups == i])[0] for i in range(3)]
    assert rho == pytest.approx(sum(own) / 3, abs=1e-12)
    assert p > 0.05
    rho, p = significance.permuted_rho(a, noise - 10 * groups, groups)
    assert rho == pytest.approx(1)
    assert p == 1e-4


def test_a_constant_has_no_rho():
    constant, varied = torch.ones(6), torch.arange(6.0)
    assert all(v != v for v in significance.permuted_rho(constant, varied))
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    assert significance.permuted_rho(torch.tensor([1.0, 1, 1, 1, 2, 3]), varied, groups)[0] == pytest.approx(1)
