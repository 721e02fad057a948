"""Checkpoints of a LyapunovAnalyzer: the same bits after a restart, and files that are damaged or of other runs."""

import copy

import pytest
import torch
from torch.optim import SGD, Adam
from training import CE, RUNS, analyse, setting

import chaos_ext as ce


@pytest.mark.parametrize("name", ["sgd", "heavy_ball", "adam", "cgd"])
def test_resume_is_bit_identical(name, tmp_path):
    cls, options = RUNS[name]
    model, batches = setting()
    opt = cls(model.parameters(), **options)
    kwargs = {"k": 5, "transient": 4, "gali": True, "qr_every": 5}
    an = ce.LyapunovAnalyzer(model, opt, csv=tmp_path / "run.csv", **kwargs)
    analyse(model, opt, batches, 23, an)
    an.save(tmp_path / "an.pt")
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, tmp_path / "run.pt")
    analyse(model, opt, batches, 30, an, first=23)
    csv = (tmp_path / "run.csv").read_text()
    with (tmp_path / "run.csv").open("a") as f:
        f.write("60,0.1,")  # the process was killed in the middle of a row

    twin, _ = setting()
    other = cls(twin.parameters(), **options)
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    twin.load_state_dict(saved["model"])
    other.load_state_dict(saved["opt"])
    again = ce.LyapunovAnalyzer(twin, other, csv=tmp_path / "run.csv", **kwargs)
    again.load(tmp_path / "an.pt")
    assert again.steps == 23
    analyse(twin, other, batches, 30, again, first=23)
    assert torch.equal(again.exponents(), an.exponents())
    assert torch.equal(again.directions(), an.directions())
    assert torch.equal(again.history.exponents, an.history.exponents)
    assert torch.equal(again.errors(), an.errors())
    assert torch.equal(again.log_gali(), an.log_gali())
    assert (tmp_path / "run.csv").read_text() == csv


def test_checkpoints_of_other_runs_are_refused():
    model, batches = setting()
    opt = SGD(model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, k=3)
    analyse(model, opt, batches, 6, an)
    state, theta = an.state_dict(), copy.deepcopy(model.state_dict())
    before = an.exponents()
    wide, _ = setting(width=4)
    single, _ = setting(torch.float32)
    others = {
        "k": ce.LyapunovAnalyzer(model, opt, k=2),
        "transient": ce.LyapunovAnalyzer(model, opt, k=3, transient=1),
        "qr_every": ce.LyapunovAnalyzer(model, opt, k=3, qr_every=2),
        "optimizer": ce.LyapunovAnalyzer(model, Adam(model.parameters()), k=3),
        "S": ce.LyapunovAnalyzer(model, SGD(model.parameters(), lr=0.1, momentum=0.9), k=3),
        "parameters": ce.LyapunovAnalyzer(wide, SGD(wide.parameters(), lr=0.1), k=3),
        "dtype": ce.LyapunovAnalyzer(single, SGD(single.parameters(), lr=0.1), k=3),
        "gali": ce.LyapunovAnalyzer(model, opt, k=3, gali=True),
    }
    for name, other in others.items():
        with pytest.raises(ce.CheckpointError, match=name):
            other.load_state_dict(state)
        assert other.steps == 0
    for damaged in ({}, [], {**state, "run": {}}, {**state, "run": {**state["run"], "Y": state["run"]["Y"][:-1]}}):
        with pytest.raises(ce.CheckpointError):
            an.load_state_dict(damaged)
    assert torch.equal(an.exponents(), before)
    # Same kind of run, but other parameters: noticed at the first update.
    analyse(model, opt, batches, 1, an, first=6)
    an.load_state_dict(state)
    x, y = batches[0]
    with pytest.raises(ce.CheckpointError, match="parameters"):
        an.update(ce.HessianOperator(model, CE, x, y))
    model.load_state_dict(theta)
    an.update(ce.HessianOperator(model, CE, x, y))
    assert an.steps == 7


def test_a_truncated_checkpoint_is_detected_and_the_previous_one_used(tmp_path, caplog):
    model, batches = setting()
    opt = SGD(model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, k=3)
    path = tmp_path / "an.pt"
    with pytest.raises(FileNotFoundError):
        an.load(path)
    for t in (3, 4):
        analyse(model, opt, batches, t, an)
        an.save(path)
    whole = path.read_bytes()
    fresh = ce.LyapunovAnalyzer(model, opt, k=3)
    fresh.load(path)
    assert fresh.steps == 7
    for cut in (whole[: len(whole) // 2], b""):
        path.write_bytes(cut)
        fresh.load(path)
        assert fresh.steps == 3
    assert "previous" in caplog.text
    path.unlink()
    fresh.load(path)
    assert fresh.steps == 3
    path.write_bytes(whole[:-1])
    (tmp_path / "an.pt.previous").write_bytes(b"x")
    with pytest.raises(ce.CheckpointError):
        fresh.load(path)
