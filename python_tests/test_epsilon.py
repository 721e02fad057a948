"""``chaos-ext reproduce epsilon``: distances against torch's own training, the tangent map, and verdicts."""

import csv

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from chaos_ext import cli, models
from chaos_ext.data import BatchOrder, load
from chaos_ext.data.batches import derive_seed
from chaos_ext.experiments import epsilon, epsilon_findings

pytestmark = pytest.mark.usefixtures("digits_cache")

STEPS, EVERY = 40, 13


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits_cache):
    out = tmp_path_factory.mktemp("epsilon") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epsilon.Epsilon, "quick_steps", STEPS)
        options = ["--seeds", "5", "--every", str(EVERY), "--lr", "0.02", "--activation", "tanh"]
        assert cli.main(["reproduce", "epsilon", "--quick", *options, "--out", str(out)]) == 0
    with (out / "metrics.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def trained(dtype, eps, steps, backwards=False):
    """What torch's own SGD makes of theta(0) + eps u in so many steps, [P]."""
    d = load("digits").to(dtype, "cpu")
    model = models.paper_mlp(activation="tanh", seed=derive_seed("init", 5), dtype=dtype)
    start = nn.utils.parameters_to_vector(model.parameters()).detach().double()
    generator = torch.Generator().manual_seed(derive_seed("epsilon", 5))
    u = torch.randn(len(start), generator=generator, dtype=torch.float64)
    nn.utils.vector_to_parameters((start + eps * u / u.norm()).to(dtype), model.parameters())
    opt = torch.optim.SGD(model.parameters(), lr=0.02)
    for index in BatchOrder(len(d.y_train), 8, 5).epoch(0)[:steps]:
        index = index.flip(0) if backwards else index
        opt.zero_grad()
        nn.functional.cross_entropy(model(d.x_train[index]), d.y_train[index]).backward()
        opt.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach().double()


def test_there_is_a_reading_every_so_many_steps_and_at_the_end(finished):
    for run in ("float64", "float32"):
        own = [r for r in finished if r["run"] == run]
        assert [int(r["step"]) for r in own] == list(range(STEPS))
        assert [int(r["step"]) for r in own if r["linear"]] == [0, 13, 26, 39]
        assert all(bool(r["floor"]) == bool(r["d_1e-03"]) == bool(r["linear"]) for r in own)


@pytest.mark.parametrize("eps", [1.0, 1e-3, 1e-6])
def test_distances_are_those_of_torchs_own_training(finished, eps):
    (row,) = (r for r in finished if r["run"] == "float64" and int(r["step"]) == 39)
    distance = float((trained(torch.float64, eps, 39) - trained(torch.float64, 0, 39)).norm())
    assert float(row[f"d_{eps:.0e}"]) == pytest.approx(distance, rel=1e-8)


def test_the_tangent_map_is_the_limit_of_small_displacements(finished):
    (row,) = (r for r in finished if r["run"] == "float64" and int(r["step"]) == 39)
    limit = float((trained(torch.float64, 1e-6, 39) - trained(torch.float64, -1e-6, 39)).norm()) / 2e-6
    assert float(row["linear"]) == pytest.approx(limit, rel=1e-8)
    assert float(row["linear"]) != pytest.approx(1, abs=1e-3)


def test_the_floor_is_rounding(finished):
    for run, unit in (("float64", 2.0**-53), ("float32", 2.0**-24)):
        (row,) = (r for r in finished if r["run"] == run and int(r["step"]) == 39)
        own = float((trained(getattr(torch, run), 0, 39, backwards=True) - trained(getattr(torch, run), 0, 39)).norm())
        assert 0.2 * own < float(row["floor"]) < 5 * own
        assert unit < float(row["floor"]) < 1e3 * unit


def verdicts(path, linear=2.0, floors=(1e-15, 5e-7), limit=1e-3, single=None):
    """Of rows in which twins obey linear theory up to ``limit``, and rounding adds in quadrature."""
    lines = [",".join(("run", "seed", "step", *epsilon_findings.COLUMNS))]
    for run, floor in zip(epsilon_findings.RUNS, floors, strict=True):
        d = [(((e * linear) ** 2 + floor**2) ** 0.5) * (1 if e <= limit else 1.1) for e in epsilon_findings.EPS]
        if run == "float32" and single:
            d = [single(e) for e in epsilon_findings.EPS]
        lines.append(",".join(map(repr, (run, 1, 9, linear, floor, *d))).replace("'", ""))
    path.write_text("\n".join(lines) + "\n")
    return [f.verdict for f in epsilon.Epsilon().findings(path, None)]


def test_verdicts_on_rows_that_are_made_up(tmp_path):
    path = tmp_path / "m.csv"
    assert verdicts(path) == ["reproduced"] * 3
    ends = epsilon_findings.read_ends(path)
    assert [min(ends[run][0].trusted) for run in epsilon_findings.RUNS] == [1e-14, 1e-5]
    assert verdicts(path, limit=1e-11) == ["reproduced", "undecided", "reproduced"]  # nothing is above the floor
    assert verdicts(path, limit=1e-12)[0] == "not reproduced"  # fewer than three decades
    assert verdicts(path, single=lambda e: 2 * e)[1] == "not reproduced"  # right where rounding is
    assert verdicts(path, single=lambda e: 2.5 * e)[1] == "not reproduced"  # wrong where it is not
    assert verdicts(path, single=lambda e: 2 * e + 4e-7)[1] == "reproduced"
    assert verdicts(path, single=lambda e: 2 * e + 6e-7)[1] == "not reproduced"
    assert verdicts(path, floors=(1e-15, 1e-14))[2] == "not reproduced"


def test_a_dtype_cannot_be_chosen(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["reproduce", "epsilon", "--dtype", "float32"])
    assert end.value.code == 2
    assert "--dtype" in capsys.readouterr().err
