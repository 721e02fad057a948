"""The published results: the report is that of the folders beside it, and thinned tables are rows of the whole ones."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from chaos_ext.experiments import page
from chaos_ext.experiments.output import digest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "benchmarks" / "publish.py"
if not SOURCE.exists():
    pytest.skip("benchmarks/ is not beside the tests", allow_module_level=True)
publish = importlib.util.module_from_spec(importlib.util.spec_from_file_location("publish", SOURCE))
publish.__spec__.loader.exec_module(publish)


def study(folder, name="exponents", rows=5):
    folder.mkdir()
    settings = {"data": "digits", "model": "mlp", "seeds": [1]}
    manifest = {"experiment": name, "status": "complete", "settings": settings, "machine": {"cpu": "one"}}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest(manifest)}))
    table = "".join(f"{seed},{t},{t * seed}\n" for seed in (1, 2) for t in range(rows))
    (folder / "metrics.csv").write_text("seed,step,value\n" + table)
    (folder / "figure.png").write_bytes(b"a figure")
    (folder / "figure.pdf").write_bytes(b"not published")
    return folder


def test_the_report_is_that_of_the_folders_beside_it():
    sections = page.collect([publish.KEPT])
    assert page.as_markdown(sections) == (publish.KEPT / "report.md").read_text()
    assert page.as_html(sections) == (publish.KEPT / "report.html").read_text()


def test_what_the_readme_shows_is_there():
    names = re.findall(r"\((benchmarks/results/[^)]+)\)", (ROOT / "README.md").read_text())
    assert names
    assert [n for n in names if not (ROOT / n).exists()] == []


def test_small_tables_are_kept_whole(tmp_path):
    publish.publish(study(tmp_path / "a"), tmp_path / "kept")
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["figure.png", "manifest.json", "metrics.csv"]
    assert (tmp_path / "kept" / "metrics.csv").read_bytes() == (tmp_path / "a" / "metrics.csv").read_bytes()


@pytest.mark.parametrize("rows", [20_000, 100])
def test_large_tables_are_thinned(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(publish, "LIMIT", 500)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "old.csv").write_text("of another run")
    publish.publish(study(tmp_path / "a", rows=rows), tmp_path / "kept")
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == [
        "figure.png",
        "manifest.json",
        "metrics-thinned.csv",
    ]
    whole = (tmp_path / "a" / "metrics.csv").read_text().splitlines()
    kept = (tmp_path / "kept" / "metrics-thinned.csv").read_text().splitlines()
    assert kept[0] == whole[0]
    assert [line for line in whole if line in set(kept)] == kept
    steps = {int(line.split(",")[1]) for line in kept[1:]}
    assert len(kept) == 1 + 2 * len(steps)
    assert min(steps) == 0
    assert max(steps) == rows - 1
    assert len(steps) > 4
