"""``chaos-ext analyze``: models and data of the user's own module, and what cannot be."""

import csv
import json
import math

import pytest

pytest.importorskip("matplotlib")

from chaos_ext import cli

MODULE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.Conv2d(c, c, 3, padding=1)
    def forward(self, x):
        return torch.relu(x + self.b(torch.relu(self.n(self.a(x)))))

def resnet():
    return nn.Sequential(nn.Conv2d(1, 3, 3), Block(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).double()

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)
    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])

def lstm():
    return Recurrent().double()

def images():
    x, y = torch.randn(12, 1, 6, 6).double(), torch.randint(3, (12,))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4, shuffle=True)

sequences = [(torch.randn(5, 7, 2).double(), torch.tensor([0, 1, 2, 1, 0]))] * 2

def once():
    yield from sequences

class Net:
    @staticmethod
    def make():
        return resnet()

def mse():
    return nn.MSELoss()

def text():
    return "no model"

def fails():
    raise RuntimeError("no GPU here")

def empty():
    return []

numbers = [1, 2, 3]
nothing = 7

def exploding():
    return [(1e200 * torch.ones(5, 7, 2).double(), torch.tensor([0, 1, 2, 1, 0]))]

def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(14, 3)).double()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a module of the user's, in which the command is run."""
    (tmp_path / "users_own.py").write_text(MODULE)
    (tmp_path / "users_broken.py").write_text("import nothing_of_the_kind\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "users_own", raising=False)
    return tmp_path


def analyze(model, data, *options):
    named = ["--model", f"users_own:{model}", "--data", f"users_own:{data}"]
    return cli.main(["analyze", *named, "--steps", "6", "--out", "out", *options])


def rows(here):
    with (here / "out" / "metrics.csv").open(newline="") as f:
        return list(csv.DictReader(f))


@pytest.mark.parametrize(
    ("model", "data", "options"),
    [
        ("resnet", "images", ()),
        ("lstm", "sequences", ("--optimizer", "adam", "--k", "3")),
        ("Net.make", "images", ("--momentum", "0.9", "--every", "2")),
    ],
)
def test_a_model_of_ones_own(here, model, data, options):
    assert analyze(model, data, *options) == 0
    assert sorted(p.name for p in (here / "out").iterdir()) == [
        "figure.pdf",
        "figure.png",
        "manifest.json",
        "metrics.csv",
    ]
    every = 2 if "--every" in options else 1
    assert [int(r["step"]) for r in rows(here)] == list(range(0, 6, every))
    for r in rows(here):
        for name in ("loss", "lle/largest", "spectrum/largest", "stability/sharpness", "exponents/1"):
            assert math.isfinite(float(r[name]))
    manifest = json.loads((here / "out" / "manifest.json").read_text())
    assert (manifest["status"], manifest["failure"]) == ("complete", None)
    assert manifest["command"].startswith("chaos-ext analyze --model users_own:")


def test_the_same_seed_gives_the_same_records(here):
    assert analyze("resnet", "images", "--seed", "3") == 0
    first = (here / "out" / "metrics.csv").read_bytes()
    assert analyze("resnet", "images", "--seed", "3", "--out", "again") == 0
    assert (here / "again" / "metrics.csv").read_bytes() == first


def test_what_is_asked_for_alone(here):
    assert analyze("lstm", "sequences", "--what", "exponents", "--k", "2") == 0
    assert list(rows(here)[-1]) == ["step", "loss", "exponents/1", "exponents/2", "exponents/largest_error"]


@pytest.mark.parametrize(
    ("model", "data", "options", "message"),
    [
        ("no_such", "images", (), "--model users_own:no_such: cannot be imported"),
        ("text", "images", (), "expected it to return a torch.nn.Module, got str"),
        ("fails", "images", (), "calling it failed (RuntimeError: no GPU here)"),
        ("nothing", "images", (), "--model users_own:nothing: expected a function, got int"),
        ("lstm", "empty", (), "expected at least one batch, got none"),
        ("lstm", "numbers", (), "expected batches (x, y), got int"),
        ("lstm", "nothing", (), "expected a function, got int"),
        ("lstm", "once", (), "ran out after one epoch and cannot be walked again"),
        ("lstm", "sequences", ("--loss", "users_own:text"), "expected it to return loss_fn(output, y), got str"),
        ("lstm", "sequences", ("--loss", "users_broken:loss"), "cannot be imported (ModuleNotFoundError"),
        ("lstm", "sequences", ("--loss", "users_own"), "expected MODULE:NAME"),
    ],
)
def test_what_cannot_be_is_one_line(here, capsys, model, data, options, message):
    assert analyze(model, data, *options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_a_training_that_diverges_keeps_its_records(here, capsys):
    assert analyze("linear", "exploding", "--lr", "1e10", "--what", "exponents") == 1
    assert "training diverged at step" in capsys.readouterr().err
    manifest = json.loads((here / "out" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert len(rows(here)) == manifest["records"] == manifest["failure"]["step"]


def test_a_folder_that_is_not_empty_is_left_alone(here, capsys):
    (here / "out").mkdir()
    (here / "out" / "mine.txt").write_text("keep")
    assert analyze("lstm", "sequences") == 2
    assert [p.name for p in (here / "out").iterdir()] == ["mine.txt"]
