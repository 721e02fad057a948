"""Progress of a long run: a bar on a terminal, else a line now and then, and never a reason to fail."""

import io
import sys
import time

import pytest
import torch
from fig1_command import reproduce
from terminal import Terminal

import chaos_ext as ce
from chaos_ext.base import progress as module
from chaos_ext.base.progress import Progress

pytestmark = pytest.mark.usefixtures("digits_cache")


def test_a_short_run_is_silent_without_a_terminal(tmp_path, capsys, fake_figures):
    assert reproduce(tmp_path, "--prune", "none") == 0
    assert capsys.readouterr().err == ""


def test_progress_shows_speed_and_time_left_of_the_work_that_is_left(monkeypatch):
    pytest.importorskip("tqdm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(1000) as progress:
        progress.report(900, True)
        time.sleep(0.6)
        progress.report(10, False)
    last = terminal.text.split("\r")[-1]
    assert "910/1000" in last
    speed = float(last.split("step/s")[0].split(",")[-1])
    assert 1 < speed < 20  # 10 steps in 0.6 s; with the restored ones it would be 1500


class Clock:
    """A time that goes on when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def test_without_a_terminal_a_line_every_thirty_seconds(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with Progress(28800, lines="fig1") as progress:
        progress.report(800, True)
        for _ in range(100):
            clock.now += 0.9
            progress.report(90, False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0] == "fig1: 3860 of 28800 steps, 100 steps/s, 4 min 9 s left"
    assert lines[1].startswith("fig1: 6920 of 28800 steps, 100 steps/s")


def test_a_line_without_speed_or_total_makes_no_promises(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    for total in (100, None):
        progress = Progress(total, lines="x")
        clock.now += 31
        progress.report(50, True)
    assert capsys.readouterr().err.splitlines() == ["x: 50 of 100 steps, 0 steps/s", "x: 50 steps, 0 steps/s"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7300, "2 h 1 min")]
)
def test_durations_are_readable(seconds, text):
    assert module._duration(seconds) == text


def test_a_terminal_without_tqdm_gets_lines_where_they_are_wanted(monkeypatch):
    terminal, clock = Terminal(), Clock(monkeypatch)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", terminal)
    for lines in ("fig1", ""):
        progress = Progress(10, lines=lines)
        clock.now += 30
        progress.report(1, False)
    assert terminal.text.count("\n") == 1


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, closed(), object()], ids=["None", "closed", "object"])
def test_no_stream_is_no_obstacle(monkeypatch, stream):
    """A process without a console (a daemon, pythonw) has None."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(10, lines="fig1") as progress:
        clock.now += 60
        progress.report(5, False)
        progress.show("text")
    henon = ce.systems.henon()
    exponents = ce.lyapunov_spectrum(henon.step, henon.tangent, henon.x0, steps=50, progress=True)
    assert bool(torch.isfinite(exponents).all())


def test_a_study_runs_without_any_stream(tmp_path, monkeypatch, fake_figures):
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    assert reproduce(tmp_path / "a", "--prune", "none") == 0
    assert reproduce(tmp_path / "a", "--prune", "none") == 2
    assert reproduce(tmp_path / "b", "--lr", "1e200", "--prune", "none") == 1
