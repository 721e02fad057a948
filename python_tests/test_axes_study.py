"""``chaos-ext reproduce axes``: curvatures against dense Hessians of a plain loop, the replay, and its verdicts."""

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

from chaos_ext.data.batches import derive_seed
from chaos_ext.experiments import axes, axes_findings, significance

pytestmark = pytest.mark.usefixtures("digits_cache")

STEPS, EVERY, K, REFERENCE = 30, 4, 3, 40
OPTIONS = ("--seeds", "3,4", "--k", str(K), "--every", str(EVERY), "--reference", str(REFERENCE), "--lr", "0.3")
READ = [*range(0, STEPS, EVERY), STEPS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits_cache):
    out = tmp_path_factory.mktemp("axes") / "out"
    assert reproduce(axes.Axes, out, *OPTIONS) == 0
    return out


@pytest.fixture(scope="module")
def hessians(digits_cache):
    """Of the reference batch of seed 3 at every step that is read, by torch.func."""
    model, path = trajectory(3, STEPS, 0.3)
    d = few_digits().to(torch.float64, "cpu")
    generator = torch.Generator().manual_seed(derive_seed("reference", 3))
    index = torch.randperm(77, generator=generator)[:REFERENCE]
    return {t: hessian_at(model, path[t][0], d.x_train[index], d.y_train[index]) for t in READ}


def table(out, run, seed="3"):
    found = [r for r in rows(out) if r["run"] == run and r["seed"] == seed]
    return torch.tensor([float(r["curvature"]) for r in found], dtype=torch.float64).view(-1, K)


def test_there_is_a_row_for_every_axis_at_every_reading(finished):
    assert sorted(p.name for p in finished.iterdir()) == ["figure.pdf", "figure.png", "manifest.json", "metrics.csv"]
    keys = [(r["seed"], r["run"], int(r["step"]), int(r["axis"])) for r in rows(finished)]
    assert keys == [(s, run, t, i) for s in "34" for run in axes.RUNS for t in READ for i in range(K)]
    m = manifest(finished)
    assert list(rows(finished)[0]) == list(m["columns"])
    assert len(m["findings"]) == 6
    assert {f["verdict"] for f in m["findings"]} == {"undecided"}  # 9 readings


def test_curvatures_are_those_of_dense_hessians(finished, hessians):
    """Axes from torch.linalg.eigh of torch.func's Hessian where they are chosen, then along the whole training."""
    chosen = {
        "top-end": (STEPS, True),
        "top-start": (0, True),
        "negative-start": (0, False),
        "negative-end": (STEPS, False),
    }
    for run, (t, top) in chosen.items():
        values, vectors = torch.linalg.eigh(hessians[t])
        order = values.argsort(descending=top)[:K]
        V, gaps = vectors[:, order], values.sort().values.diff().abs()
        assert float((gaps[-K:] if top else gaps[:K]).min()) > 1e-5  # so that axes are determined
        expected = torch.stack([torch.einsum("pk,pq,qk->k", V, hessians[s], V) for s in READ])
        torch.testing.assert_close(table(finished, run), expected, rtol=1e-7, atol=1e-8)
    generator = torch.Generator().manual_seed(derive_seed("axes", 3))
    V = torch.linalg.qr(torch.randn(277, K, generator=generator, dtype=torch.float64)).Q
    expected = torch.stack([torch.einsum("pk,pq,qk->k", V, hessians[s], V) for s in READ])
    torch.testing.assert_close(table(finished, "random"), expected, rtol=1e-9, atol=1e-11)


def test_every_training_of_a_seed_ends_in_the_same_bits(finished):
    ends = {(r["seed"], r["end"]) for r in manifest(finished)["runs"]}
    assert len(ends) == 2


@pytest.mark.parametrize("after", [1, 2, 17, 31, 32, 47, 60, 75, 190])
def test_an_interrupted_study_goes_on_to_the_same_bytes(finished, after, tmp_path, monkeypatch):
    monkeypatch.setattr(axes.Axes, "findings", lambda *_: [])
    assert interrupted(axes.Axes, after, tmp_path / "out", *OPTIONS) == 130
    assert reproduce(axes.Axes, tmp_path / "out", *OPTIONS, "--resume") == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_a_killed_study_goes_on_to_the_same_bytes(finished, tmp_path):
    killed(axes.Axes, 50, tmp_path / "out", *OPTIONS)
    assert reproduce(axes.Axes, tmp_path / "out", *OPTIONS, "--resume") == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_a_replay_that_ends_elsewhere_is_refused(tmp_path, monkeypatch):
    step = axes.AxesTraining.take_step

    def differently(work, x, y):
        step(work, x, y)
        if work.passes and work.step == 9:
            with torch.no_grad():
                next(work.model.parameters()).view(-1)[0].mul_(1 + 1e-15)

    monkeypatch.setattr(axes.AxesTraining, "take_step", differently)
    with pytest.raises(RuntimeError, match="trained again it ended elsewhere"):
        reproduce(axes.Axes, tmp_path / "out", *OPTIONS)


def test_a_training_that_diverges_is_said(tmp_path, capsys):
    assert (
        reproduce(axes.Axes, tmp_path / "out", *OPTIONS[2:], "--lr", "1e308", "--momentum", "0.9", "--seeds", "3") == 1
    )
    assert "broke off at step" in capsys.readouterr().err
    assert manifest(tmp_path / "out")["findings"] == []


@pytest.mark.parametrize(
    ("option", "value"), [("--k", "0"), ("--k", "278"), ("--reference", "78"), ("--every", "0"), ("--every", "x")]
)
def test_bad_options_are_refused_by_name(option, value, tmp_path, capsys):
    assert reproduce(axes.Axes, tmp_path / "out", option, value) == 2
    assert option in capsys.readouterr().err


def made_up(path, ups):
    """20 axes and 40 readings of each set: so many go up in each, none down, the others stay."""
    found = []
    for run in axes.RUNS:
        for t in range(40):
            found += [(run, 3, t, i, -1 + t / 20 if i < ups.get(run, 0) else 1.0) for i in range(20)]
    return write_rows(path, ("run", "seed", "step", "axis", "curvature"), found)


def verdicts(path, ups):
    return [f.verdict for f in axes_findings.findings_of(made_up(path, ups))]


def test_verdicts_of_made_up_rows(tmp_path):
    good, bad = "reproduced", "not reproduced"
    path = tmp_path / "m.csv"
    assert verdicts(path, {"top-end": 20, "negative-start": 20}) == [good] * 6
    # 7 of 7: a sign test at 1.6 %; 7 of 20 against none of 20: Fisher at 0.8 %.
    assert verdicts(path, {"top-end": 20, "negative-start": 7}) == [good, bad, good, good, good, good]
    assert verdicts(path, {"top-end": 20, "negative-start": 20, "random": 20})[2:4] == [bad, bad]
    assert verdicts(path, {}) == [bad] * 6


def test_axes_that_fall_speak_against_it(tmp_path):
    found = [("top-end", 3, t, i, 1 - t / 20) for t in range(40) for i in range(20)]
    text = made_up(tmp_path / "m.csv", {"negative-start": 20}).read_text().splitlines()
    kept = [line for line in text[1:] if not line.startswith("top-end")]
    path = tmp_path / "n.csv"
    path.write_text("\n".join([text[0], *(",".join(map(str, r)) for r in found), *kept]) + "\n")
    first, second, *_ = axes_findings.findings_of(path)
    assert (first.verdict, second.verdict) == ("not reproduced", "reproduced")
    assert "0 up, 20 down" in first.numbers


def test_exact_tests_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    for up, down in ((0, 0), (5, 5), (9, 1), (1, 9), (20, 0), (13, 7)):
        expected = stats.binomtest(up, up + down).pvalue if up + down else 1.0
        assert significance.sign_test(up, down) == pytest.approx(expected, rel=1e-12)
    for a, n, b, m in ((0, 5, 0, 7), (5, 5, 0, 7), (3, 9, 6, 8), (7, 20, 0, 20), (20, 20, 20, 20), (1, 3, 2, 30)):
        expected = stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue
        assert significance.fisher_test(a, n, b, m) == pytest.approx(expected, rel=1e-9)
