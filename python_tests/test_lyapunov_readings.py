"""What a LyapunovAnalyzer tells of a run: readings that agree and change nothing, a progress bar, a CSV file."""

import sys

import pytest
import torch
from terminal import Terminal
from torch.optim import SGD
from training import analyse, setting

import chaos_ext as ce
from chaos_ext import systems


def test_reading_changes_nothing():
    runs = []
    for looks in (False, True):
        model, batches = setting()
        opt = SGD(model.parameters(), lr=0.1)
        an = ce.LyapunovAnalyzer(model, opt, k=5, gali=True)
        for t in range(25):
            analyse(model, opt, batches, 1, an, first=t)
            if looks:
                an.exponents(), an.directions(), an.errors(), an.history, an.log_gali(), an.state_dict()
        runs.append(an)
    assert torch.equal(runs[0].exponents(), runs[1].exponents())
    assert torch.equal(runs[0].directions(), runs[1].directions())


def test_readings_agree_with_one_another():
    model, batches = setting()
    opt = SGD(model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, k=4, transient=5, qr_every=3)
    with pytest.raises(ValueError, match="transient"):
        an.exponents()
    analyse(model, opt, batches, 5, an)
    with pytest.raises(ValueError, match="transient"):
        an.exponents()
    with pytest.raises(ValueError, match="block"):
        _ = an.local_exponents
    analyse(model, opt, batches, 60, an, first=5)
    steps, running = an.history
    assert int(steps[-1]) == 65 == an.steps
    assert torch.allclose(running[-1], an.exponents(), atol=1e-14)
    before = running[-2] * (int(steps[-2]) - 5)
    assert torch.allclose((running[-1] * 60 - before) / int(steps[-1] - steps[-2]), an.local_exponents, atol=1e-12)
    assert (an.errors() > 0).all()
    assert an.sum_of_positive_exponents() == float(an.exponents().clamp_min(0).sum())
    assert ce.LyapunovAnalyzer(model, opt).kaplan_yorke_dimension.__doc__
    with pytest.raises(ValueError, match="gali"):
        an.log_gali()
    Q = an.directions()
    assert torch.allclose(Q.T @ Q, torch.eye(4, dtype=torch.float64), atol=1e-12)


def test_a_bar_shows_steps_and_the_largest_exponent(monkeypatch):
    pytest.importorskip("tqdm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    model, batches = setting()
    opt = SGD(model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, k=2, qr_every=1, progress=8)
    analyse(model, opt, batches, 8, an)
    an._bar.close()
    last = terminal.text.split("\r")[-1]
    assert "8/8" in last
    assert f"largest exponent {float(an.exponents()[0]):+.3g}" in last
    terminal.text = ""
    s = systems.henon()
    ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=20, transient=5, progress=True)
    assert "25/25" in terminal.text
    terminal.text = ""
    ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=20)
    ce.LyapunovAnalyzer(model, opt, k=2)
    assert not terminal.text


def test_csv_streams_what_exponents_returned(tmp_path):
    model, batches = setting()
    opt = SGD(model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, k=2, qr_every=5, csv=tmp_path / "e.csv")
    analyse(model, opt, batches, 10, an)
    header, *rows = (tmp_path / "e.csv").read_text().splitlines()
    assert header == "step,exponent_1,exponent_2"
    assert [float(v) for v in rows[-1].split(",")] == [10.0, *an.exponents().tolist()]
    with pytest.raises(ValueError, match="csv"):
        ce.LyapunovAnalyzer(model, opt, csv=tmp_path / "nowhere" / "e.csv")
