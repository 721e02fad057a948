"""``chaos-ext reproduce exponents``: readings against products of dense Jacobians of a plain loop, and its verdicts."""

import pytest
import torch
from reading_studies import hessian_at, interrupted, killed, manifest, reproduce, rows, trajectory, write_rows

from chaos_ext.data.batches import derive_seed
from chaos_ext.dynamics.start import start_block
from chaos_ext.experiments import exponents, exponents_findings
from chaos_ext.experiments.settings import Settings

pytestmark = pytest.mark.usefixtures("digits_cache")

STEPS, EVERY, K, LR = 30, 4, 3, 0.3
OPTIONS = ("--seeds", "3,4", "--k", str(K), "--every", str(EVERY), "--lr", str(LR))
READ = [*range(EVERY, STEPS, EVERY), STEPS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits_cache):
    out = tmp_path_factory.mktemp("exponents") / "out"
    assert reproduce(exponents.Exponents, out, *OPTIONS) == 0
    return out


@pytest.fixture(scope="module")
def with_momentum(tmp_path_factory, digits_cache):
    out = tmp_path_factory.mktemp("exponents") / "out"
    assert reproduce(exponents.Exponents, out, *OPTIONS, "--momentum", "0.9") == 0
    return out


def test_there_is_a_row_for_every_exponent_at_every_reading(finished):
    keys = [(r["seed"], r["run"], int(r["step"]), int(r["index"])) for r in rows(finished)]
    assert keys == [(s, run, t, i + 1) for s in "34" for run in exponents.RUNS for t in READ for i in range(K)]
    assert list(rows(finished)[0]) == list(manifest(finished)["columns"])
    assert all(float(r["epoch"]) == int(r["step"]) / 10 for r in rows(finished))
    assert len(manifest(finished)["findings"]) == 4


def test_exponents_are_those_of_dense_jacobians(finished):
    model, path = trajectory(3, STEPS, LR)
    losses = []
    seeds = {"qr": 3, "restart": derive_seed("restart", 3), "svd": 3}
    products = {r: start_block(277, K, torch.float64, torch.device("cpu"), s) for r, s in seeds.items()}
    expected = {r: {} for r in seeds}
    for t, (state, x, y) in enumerate(path[:STEPS], 1):
        model.load_state_dict(state)
        losses.append(torch.nn.functional.cross_entropy(model(x), y).item())
        H = hessian_at(model, state, x, y)
        products = {r: Y - LR * H @ Y for r, Y in products.items()}
        for r, Y in products.items():
            logs = torch.linalg.svdvals(Y).log() if r == "svd" else torch.linalg.qr(Y).R.diagonal().abs().log()
            expected[r][t] = logs.sort(descending=True).values / t
    for r in rows(finished):
        if r["seed"] != "3":
            continue
        run, t, i = r["run"], int(r["step"]), int(r["index"]) - 1
        before = max((s for s in READ if s < t), default=0)
        grown = expected[run][before][i] * before if before else 0.0
        assert float(r["exponent"]) == pytest.approx(float(expected[run][t][i]), abs=1e-11)
        assert float(r["local"]) == pytest.approx(float(expected[run][t][i] * t - grown) / (t - before), abs=1e-10)
        assert float(r["loss"]) == pytest.approx(sum(losses[before:t]) / (t - before), rel=1e-9)
        assert r["error"] == "" or run != "svd"


def test_the_largest_singular_value_is_that_of_the_whole_map_where_all_deviations_are_followed(tmp_path):
    """The first column of QR is a lower bound of what svd says with k = P, and its gap is what alignment costs."""
    assert reproduce(exponents.Exponents, tmp_path, "--k", "277", "--every", "10", "--lr", str(LR), "--seeds", "3") == 0
    last = {
        r["run"]: float(r["exponent"]) * STEPS for r in rows(tmp_path) if r["step"] == str(STEPS) and r["index"] == "1"
    }
    assert 0 <= last["svd"] - last["qr"] <= torch.tensor(277.0).log()
    assert {f["verdict"] for f in manifest(tmp_path)["findings"][2:]} <= {"reproduced", "undecided"}


def test_both_methods_measure_one_volume_also_of_parameters_and_buffers(with_momentum):
    sums = {}
    for r in rows(with_momentum):
        key = r["run"], r["seed"], r["step"]
        sums[key] = sums.get(key, 0.0) + float(r["exponent"])
    for (run, seed, t), value in sums.items():
        if run == "svd":
            assert value == pytest.approx(sums["qr", seed, t], abs=1e-11)
    assert len({round(v, 9) for (run, _, _), v in sums.items() if run == "restart"} & set(sums.values())) == 0


@pytest.mark.parametrize("after", [1, 5, 17, 31, 47, 75])
def test_an_interrupted_study_goes_on_to_the_same_bytes(with_momentum, after, tmp_path):
    options = (*OPTIONS, "--momentum", "0.9")
    assert interrupted(exponents.Exponents, after, tmp_path / "out", *options) == 130
    assert reproduce(exponents.Exponents, tmp_path / "out", *options, "--resume") == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (with_momentum / "metrics.csv").read_bytes()
    assert manifest(tmp_path / "out")["findings"] == manifest(with_momentum)["findings"]


def test_a_killed_study_goes_on_to_the_same_bytes(with_momentum, tmp_path):
    options = (*OPTIONS, "--momentum", "0.9")
    killed(exponents.Exponents, 50, tmp_path / "out", *options)
    assert reproduce(exponents.Exponents, tmp_path / "out", *options, "--resume") == 0
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (with_momentum / "metrics.csv").read_bytes()


@pytest.mark.parametrize(("option", "value"), [("--k", "0"), ("--k", "278"), ("--every", "0"), ("--momentum", "1")])
def test_bad_options_are_refused_by_name(option, value, tmp_path, capsys):
    assert reproduce(exponents.Exponents, tmp_path / "out", option, value) == 2
    assert option in capsys.readouterr().err


def test_a_training_that_diverges_is_said(tmp_path, capsys):
    options = ("--lr", "1e308", "--momentum", "0.9", "--seeds", "3", "--k", "3")
    assert reproduce(exponents.Exponents, tmp_path / "out", *options) == 1
    assert "broke off at step" in capsys.readouterr().err


def settings():
    names = ("data", "data_fingerprint", "activation", "device", "chaos_ext", "torch")
    own = dict.fromkeys(names, "") | {"model": "mlp", "dtype": "float64", "seeds": (3,), "runs": exponents.RUNS}
    return Settings(**own, epochs=1, max_steps=None, lr=0.1, batch_size=8, momentum=0.0, threads=1)


def verdicts(path, local, other=0.0, svd=0.01):
    """Of one seed with 200 readings a step apart, k = 1: first exponents with these local ones, by t / 200."""
    found = []
    for run, more in (("qr", 0.0), ("restart", other), ("svd", svd)):
        growth = 0.0
        for t in range(1, 201):
            growth += local(t / 200)
            found.append((run, 3, t, t / 50, 1.0, 1, (growth + more * (t == 200)) / t, 1e-4, local(t / 200)))
    names = ("run", "seed", "step", "epoch", "loss", "index", "exponent", "error", "local")
    return [f.verdict for f in exponents_findings.findings_of(write_rows(path, names, found), settings())]


def test_verdicts_of_made_up_rows(tmp_path):
    good, bad, path = "reproduced", "not reproduced", tmp_path / "m.csv"
    assert verdicts(path, lambda s: 1 - s) == [good, good, good, bad]  # of k = 1 svd has the same sum: off by 0.01
    assert verdicts(path, lambda s: 1 - s, svd=1e-9) == [good] * 4
    assert verdicts(path, lambda s: s, svd=0.0)[:2] == [bad, bad]
    assert verdicts(path, lambda s: -1 + 0.5 * s, svd=0.0)[:2] == [bad, bad]
    assert verdicts(path, lambda s: 1 - s, other=20.0, svd=0.0) == [good, good, bad, good]
    assert verdicts(path, lambda s: 0.1 if s > 0.9 or s < 0.1 else 0.05, svd=0.0)[1] == bad


def test_of_few_readings_nothing_is_said(finished):
    found = manifest(finished)["findings"]
    assert [f["verdict"] for f in found[:2]] == ["undecided", "undecided"]
