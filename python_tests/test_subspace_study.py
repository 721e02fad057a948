"""``chaos-ext reproduce subspace``: overlaps against dense eigenspaces of a plain loop, baselines, and its verdicts."""

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

from chaos_ext import models
from chaos_ext.experiments import structural, subspace, subspace_findings, subspace_run

pytestmark = pytest.mark.usefixtures("digits_cache")

STEPS, EVERY, LR, TAU = 30, 6, 0.3, (1, 7, 12)
OPTIONS = (
    "--seeds",
    "3,4",
    "--tau",
    "1,7,12",
    "--every",
    str(EVERY),
    "--lr",
    str(LR),
    "--vectors",
    "2",
    "--epochs",
    "3",
)
OPTIONS += ("--k", "277")
FIRST = range(0, STEPS, EVERY)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits_cache):
    out = tmp_path_factory.mktemp("subspace") / "out"
    assert reproduce(subspace.Subspace, out, *OPTIONS) == 0
    return out


@pytest.fixture(scope="module")
def hessians(digits_cache):
    """Of the mini-batches of seed 3, by torch.func, at every step and at the end."""
    model, path = trajectory(3, STEPS, LR)
    return [hessian_at(model, *moment) for moment in path]


@pytest.fixture(scope="module")
def zeros(digits_cache):
    return structural.structural_zeros(models.paper_mlp(hidden=1, seed=0), few_digits().x_train)


def spaces(H):
    values, vectors = torch.linalg.eigh(H)
    bound = 1e-10 * values.abs().max()
    return {"negative": vectors[:, values < -bound], "positive": vectors[:, values > bound]}


def overlap(A, B):
    least = min(A.shape[1], B.shape[1])
    return float((A.T @ B).square().sum()) / least if least else None


def agrees(row, expected):
    """A row's overlap; where a subspace has no dimension it is empty."""
    assert (row["overlap"] == "") == (expected is None)
    assert expected is None or float(row["overlap"]) == pytest.approx(expected, abs=1e-6)


def test_overlaps_are_those_of_dense_eigenspaces(finished, hessians, zeros):
    own = [r for r in rows(finished) if r["seed"] == "3" and r["run"] == "eigenspaces"]
    expected = [
        (str(t), f"{a}-{b}", str(tau))
        for t in range(STEPS + 1)
        for tau in TAU
        if t - tau in FIRST
        for a, b in (("negative", "negative"), ("positive", "positive"), ("negative", "positive"))
    ]
    assert [(r["step"], r["pair"], r["tau"]) for r in own] == expected
    for r in own:
        t, tau, (a, b) = int(r["step"]), int(r["tau"]), r["pair"].split("-")
        A, B = spaces(hessians[t - tau])[a], spaces(hessians[t])[b]
        assert (int(r["dim_a"]), int(r["dim_b"])) == (A.shape[1], B.shape[1])
        assert float(r["baseline"]) == max(A.shape[1], B.shape[1]) / (277 - zeros)
        agrees(r, overlap(A, B))
    assert sum(bool(r["overlap"]) for r in own) > 20


def test_expanding_directions_are_the_left_singular_vectors_of_the_product(finished, hessians, zeros):
    Y, expected = torch.eye(277, dtype=torch.float64), {}
    for t, H in enumerate(hessians):
        if t in (15, 30):
            U, S, _ = torch.linalg.svd(Y)
            grown = U[:, S > 1 + 1e-9]
            expected[t] = {name: (A.shape[1], grown.shape[1], overlap(A, grown)) for name, A in spaces(H).items()}
        Y = Y - LR * H @ Y
    own = [r for r in rows(finished) if r["seed"] == "3" and r["run"] == "expanding"]
    assert [int(r["step"]) for r in own] == [15, 15, 30, 30]
    for r in own:
        a, b, value = expected[int(r["step"])][r["pair"].partition("-")[0]]
        assert (int(r["dim_a"]), int(r["dim_b"]), r["tau"]) == (a, b, "")
        agrees(r, value)
        assert float(r["baseline"]) == max(a, b) / (277 - zeros)


def test_structural_zeros_are_the_kernel_of_every_hessian(hessians, zeros):
    """The kernel of the sum of H^2 over many steps and all samples cannot be smaller; here it is no larger."""
    d = few_digits().to(torch.float64, "cpu")
    total = sum(H @ H for H in hessians)
    g = torch.Generator().manual_seed(0)
    for seed in range(3):
        model = models.paper_mlp(hidden=1, activation="tanh", seed=seed, dtype=torch.float64)
        for index in torch.randperm(77, generator=g).split(11):
            H = hessian_at(model, model.state_dict(), d.x_train[index], d.y_train[index])
            total = total + H @ H
    values = torch.linalg.eigvalsh(total)
    assert int((values < 1e-12 * values[-1]).sum()) == zeros


def test_structural_zeros_of_networks_that_see_all_pixels():
    x = torch.randn(2000, 1, 16, 16)
    assert structural.structural_zeros(models.paper_mlp(seed=0), x) == 21  # of the paper's run on USPS, as in README
    cnn = models.paper_cnn(seed=0)
    last = [m for m in cnn.modules() if isinstance(m, torch.nn.Linear)][-1]
    assert structural.structural_zeros(cnn, x[:50]) == last.in_features + 1
    x[:, :, 3, 5:7] = 0.7  # two pixels that are the same in every image: 20 directions each
    assert structural.structural_zeros(models.paper_mlp(seed=0), x) == 21 + 40


def test_the_baseline_is_what_random_subspaces_give():
    g = torch.Generator().manual_seed(0)
    P, zeros, a, b = 60, 11, 7, 13
    hidden = torch.linalg.qr(torch.randn(P, P, generator=g, dtype=torch.float64)).Q
    seen = hidden[:, zeros:]
    A = seen @ torch.linalg.qr(torch.randn(P - zeros, a, generator=g, dtype=torch.float64)).Q
    found = []
    for _ in range(2000):
        B = seen @ torch.linalg.qr(torch.randn(P - zeros, b, generator=g, dtype=torch.float64)).Q
        found.append(subspace_run.compared(A, B, zeros)[2])
    baseline = subspace_run.compared(A, B, zeros)[3]
    values = torch.tensor(found)
    assert float(values.mean()) == pytest.approx(baseline, abs=4 * float(values.std()) / 2000**0.5)


def test_a_subspace_without_dimensions_has_no_overlap():
    empty, A = torch.zeros(9, 0, dtype=torch.float64), torch.eye(9, 2, dtype=torch.float64)
    assert subspace_run.compared(empty, A, 1) == (0, 2, None, 2 / 8)


@pytest.mark.parametrize("after", [1, 2, 13, 20, 30, 31, 40, 55, 60])
def test_an_interrupted_study_goes_on_to_the_same_bytes(finished, after, tmp_path):
    assert interrupted(subspace.Subspace, after, tmp_path / "out", *OPTIONS) == 130
    assert reproduce(subspace.Subspace, tmp_path / "out", *OPTIONS, "--resume") == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    assert manifest(tmp_path / "out")["findings"] == manifest(finished)["findings"]


def test_a_killed_study_goes_on_to_the_same_bytes(finished, tmp_path):
    killed(subspace.Subspace, 45, tmp_path / "out", *OPTIONS)
    assert reproduce(subspace.Subspace, tmp_path / "out", *OPTIONS, "--resume") == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_parts_may_be_asked_for_one_by_one(tmp_path, finished):
    for part in ("eigenspaces", "expanding"):
        options = ("--parts", part, "--momentum", "0.9", *OPTIONS[:-2], "--k", "20")
        assert reproduce(subspace.Subspace, tmp_path / part, *options) == 0
        assert {r["run"] for r in rows(tmp_path / part)} == {part}


@pytest.mark.parametrize(
    ("option", "value"),
    [("--parts", "none"), ("--parts", "all"), ("--tau", "0,1"), ("--tau", "5,1"), ("--vectors", "0")],
)
def test_bad_options_are_refused_by_name(option, value, tmp_path, capsys):
    assert reproduce(subspace.Subspace, tmp_path / "out", option, value) == 2
    assert option in capsys.readouterr().err


def verdicts(path, overlaps, restricted=False, readings=12):
    """Of one seed, tau = 5: (pair, tau) -> mean overlap; it alternates by 0.05 about it, baselines are 0.1."""
    found = []
    for t in range(readings):
        for pair in ("negative-negative", "positive-positive", "negative-positive"):
            found.append(("eigenspaces", 3, t, pair, 5, 4, 4, overlaps.get(pair, 0.4) + 0.05 * (-1) ** t, 0.1))
        for pair in ("negative-expanding", "positive-expanding"):
            found.append(("expanding", 3, t, pair, "", 4, 4, overlaps.get(pair, 0.4) + 0.05 * (-1) ** t, 0.1))
    names = ("run", "seed", "step", "pair", "tau", "dim_a", "dim_b", "overlap", "baseline")
    runs = ("eigenspaces", "expanding")
    return [f.verdict for f in subspace_findings.findings_of(write_rows(path, names, found), runs, (5,), restricted)]


def test_verdicts_of_made_up_rows(tmp_path):
    good, bad, unknown, path = "reproduced", "not reproduced", "undecided", tmp_path / "m.csv"
    assert verdicts(path, {"negative-positive": 0.45}) == [good, good, bad, good, good]
    # The gap to the cross pair has no spread where both alternate alike.
    assert verdicts(path, {"negative-positive": 0.2}) == [good] * 5
    assert verdicts(path, {"negative-negative": 0.15}) == [bad, good, bad, good, good]
    assert verdicts(path, {"positive-expanding": 0.05, "negative-expanding": 0.15})[3:] == [bad, bad]
    assert verdicts(path, {}, restricted=True)[3:] == [unknown, unknown]
    assert verdicts(path, {}, readings=4) == [unknown] * 3 + [good] * 2
