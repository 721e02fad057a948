"""``chaos-ext reproduce global-prune``: directions against singular vectors by Jacobi, steps, controls, verdicts."""

import csv

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import chaos_ext as ce
from chaos_ext import cli
from chaos_ext.data import BatchOrder, load
from chaos_ext.experiments import global_directions, global_prune
from chaos_ext.experiments.settings import Unit
from chaos_ext.experiments.training import build_model

pytestmark = pytest.mark.usefixtures("digits_cache")

FIRST = 40
SETTINGS = global_directions.GlobalPruneSettings(
    data="digits", data_fingerprint="", model="mlp", activation="tanh", epochs=1, max_steps=50, lr=0.05, batch_size=8,
    momentum=0.0, seeds=(3,), runs=global_prune.RUNS, dtype="float64", device="cpu", threads=1, chaos_ext="", torch="",
    first=FIRST, hidden=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(digits_cache):
    return load("digits")


def first_steps(data, count=FIRST):
    """Model, loss and batches of the first steps."""
    model, order = build_model(SETTINGS, 3), BatchOrder(len(data.y_train), 8, 3)
    d = data.to(torch.float64, "cpu")
    return model, [(d.x_train[i], d.y_train[i]) for i in order.epoch(0)[:count]]


def test_directions_are_the_singular_vectors_of_a_finite_time_analysis(data):
    pytest.importorskip("scipy")
    model, batches = first_steps(data)
    opt = ce.CGD(model.parameters(), lr=0.05, prune=None)
    an = ce.LyapunovAnalyzer(model, opt, method="svd")
    gradients = []
    for x, y in batches:
        op = ce.HessianOperator(model, torch.nn.CrossEntropyLoss(), x, y)
        gradients.append(op.gradient)
        an.update(op)
        opt.step(op)
    exponents, V, G = an.exponents(), an.singular_vectors("right"), torch.stack(gradients, 1)
    found = global_directions.first_directions(SETTINGS, 3, data)
    beyond = (2 * FIRST * exponents).expm1()
    for sign, mask in (("stretched", beyond > 1e-9), ("shrunk", beyond < -1e-9)):
        assert 10 < found.counts[sign] == int(mask.sum())
        of = found.spectrum.eigenvalues
        own = found.spectrum.eigenvectors(of > 0 if sign == "stretched" else of < 0)
        assert float((own - V[:, mask] @ (V[:, mask].T @ own)).norm()) < 1e-5
        share = ((V[:, mask].T @ G).square().sum(0) / G.square().sum(0)).mean()
        assert found.shares[sign] == pytest.approx(float(share), rel=1e-6)
    assert sum(found.counts.values()) < len(V)  # what a softmax does not see is neither


@pytest.mark.parametrize("sign", ["stretched", "shrunk"])
def test_steps_leave_out_what_is_pruned(data, sign):
    work = global_prune.GlobalPruneTraining(SETTINGS, Unit(3, sign), data)
    found = global_directions.first_directions(SETTINGS, 3, data)
    of = found.spectrum.eigenvalues
    V = found.spectrum.eigenvectors(of > 0 if sign == "stretched" else of < 0)
    model, ((x, y), *_) = first_steps(data, 1)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    g = torch.cat([p.grad.flatten() for p in model.parameters()])
    before = torch.nn.utils.parameters_to_vector(work.model.parameters()).detach().clone()
    row = work.advance().decode().split(",")
    step = (before - torch.nn.utils.parameters_to_vector(work.model.parameters()).detach()) / 0.05
    assert float((step - (g - V @ (V.T @ g))).norm()) < 1e-9 * float(g.norm())
    assert float((V.T @ step).norm()) < 1e-9 * float(g.norm())
    assert int(row[-2]) == V.shape[1]
    assert float(row[-1]) == pytest.approx(float((V.T @ g).square().sum() / g.square().sum()), rel=1e-9)


@pytest.mark.parametrize("run", [r for r in global_prune.RUNS if "-" in r])
def test_controls_leave_out_a_random_subspace_of_their_rank(data, run):
    """All gradients of a run lose the same subspace: what was left out has no more dimensions than it."""
    work, (sign, _, control) = global_prune.GlobalPruneTraining(SETTINGS, Unit(3, run), data), run.partition("-")
    found, size = global_directions.first_directions(SETTINGS, 3, data), 0
    size = found.spectrum.size
    expected = found.counts[sign] if control == "rank" else round(found.shares[sign] * size)
    assert work.count == expected
    kept = torch.stack([work._kept(e) for e in torch.eye(size, dtype=torch.float64)])
    assert torch.allclose(kept, kept.T, atol=1e-12)
    assert torch.allclose(kept @ kept, kept, atol=1e-12)
    assert float(kept.trace()) == pytest.approx(size - expected, abs=1e-9)


def verdicts(path, ends, seeds=(1, 2, 3)):
    lines = ["run,seed,step,loss,val_loss"]
    for run in global_prune.RUNS:
        for i, seed in enumerate(seeds):
            lines += [f"{run},{seed},0,9,", f"{run},{seed},1,{ends.get(run, 1.0) + 0.01 * i},1"]
    path.write_text("\n".join(lines) + "\n")
    return [f.verdict for f in global_prune.GlobalPrune().findings(path, None)]


def test_verdicts_on_rows_that_are_made_up(tmp_path):
    path, both = tmp_path / "m.csv", {"stretched": 2.0, "shrunk": 2.0}
    assert verdicts(path, both) == ["reproduced"] * 6
    assert verdicts(path, {**both, "shrunk-rank": 1.99})[4] == "not reproduced"
    assert (
        verdicts(path, {**both, "shrunk": 0.5})[1:] == ["not reproduced"] + ["reproduced"] * 2 + ["not reproduced"] * 2
    )
    assert verdicts(path, both, seeds=(1,)) == ["undecided"] * 6


@pytest.mark.parametrize("option", [("--first", "0"), ("--hidden", "x"), ("--epochs", "0")])
def test_bad_options_are_refused_by_name(option, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["reproduce", "global-prune", *option])
    assert end.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_runs_have_their_rows(tmp_path):
    out = tmp_path / "out"
    options = ["--quick", "--hidden", "1", "--first", "5", "--seeds", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(global_prune.GlobalPrune, "quick_steps", 6)
        assert cli.main(["reproduce", "global-prune", *options, "--out", str(out)]) == 0
    with (out / "metrics.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert list(dict.fromkeys(r["run"] for r in rows)) == list(global_prune.RUNS)
    first = {r["run"]: r for r in rows if r["step"] == "0"}
    assert len({r["loss"] for r in first.values()}) == 1  # all begin at theta(0)
    assert float(first["sgd"]["share_removed"]) == 0 < float(first["shrunk"]["share_removed"])
