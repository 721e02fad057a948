"""``chaos-ext reproduce all``: every study is in it, is given what was asked for, and is on the page."""

import importlib

import pytest

from chaos_ext import cli
from chaos_ext.experiments import everything, everything_options, page


@pytest.fixture
def told(monkeypatch):
    """What each study would run with, by name; none is run, and there is no page."""
    found = {}
    for options, _ in everything.STUDIES:
        module = importlib.import_module(f"chaos_ext.experiments.{options.NAME.replace('-', '_')}")
        monkeypatch.setattr(module, "run", lambda args, _, name=options.NAME: found.update({name: args}) or 0)
    monkeypatch.setattr(everything, "write_page", lambda folders, path: found.update(page=(folders, path)))
    return found


def test_no_study_is_missing():
    known = {e.NAME for e in cli._EXPERIMENTS} - {everything_options.NAME}
    assert known == {options.NAME for options, _ in everything.STUDIES} == set(page._ORDER)


def test_each_study_is_given_what_was_asked_for(tmp_path, told):
    words = ["--data", "usps", "--root", "here", "--epochs", "3", "--seeds", "5,6", "--jobs", "2", "--model", "cnn"]
    assert cli.main(["reproduce", "all", *words, "--resume", "--quick", "--out", str(tmp_path)]) == 0
    assert told.pop("page") == ([tmp_path], tmp_path / "report.html")
    asked = {"root": "here", "data": "usps", "epochs": 3, "seeds": (5, 6), "seed": 5, "jobs": 2, "model": "cnn"}
    for name, args in told.items():
        expected = {**asked, "resume": True, "quick": True, "out": tmp_path / name}
        if name == "subspace":  # each of its readings takes minutes
            expected["epochs"] = 2
        given = vars(args)
        assert {n: given[n] for n in expected if n in given} == {n: v for n, v in expected.items() if n in given}
    shared = {str(args.baselines) for args in told.values() if "baselines" in args}
    assert shared == {str(tmp_path / "baselines")}


def test_the_status_is_that_of_the_worst(tmp_path, told, monkeypatch):
    monkeypatch.setattr(importlib.import_module("chaos_ext.experiments.fig2"), "run", lambda *_: 1)
    assert cli.main(["reproduce", "all", "--out", str(tmp_path)]) == 1


def test_tables_that_are_lost_or_edited_are_computed_anew(tmp_path, caplog):
    command = ["reproduce", "random-walk", "--quick", "--resume", "--out", str(tmp_path)]
    assert cli.main(command) == 0
    tables = {p: p.read_bytes() for p in tmp_path.glob("*.csv")}
    assert len(tables) == 2
    for path, content in tables.items():
        for damage in (path.unlink, lambda path=path, content=content: path.write_bytes(content[:-1])):
            damage()
            caplog.clear()
            assert cli.main(command) == 0
            assert path.name in caplog.text
            assert {p: p.read_bytes() for p in tmp_path.glob("*.csv")} == tables
    caplog.clear()
    assert cli.main(command) == 0
    assert not caplog.text
