"""``chaos-ext report`` and ``chaos-ext reproduce all``: one page, self-contained, of studies that have ended."""

import argparse
import csv
import json
import re
import shlex
import statistics
from html.parser import HTMLParser

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import chaos_ext as ce
from chaos_ext import cli
from chaos_ext.experiments import (
    axes,
    exponents,
    fig1,
    fig2,
    fig2_options,
    finite_time_findings,
    generalisation,
    init_distance,
    page,
    spectrum,
    subspace,
)
from chaos_ext.experiments.command import command_of
from chaos_ext.experiments.output import UsageError

pytestmark = pytest.mark.usefixtures("digits_cache")


@pytest.fixture(scope="module")
def everything(tmp_path_factory, digits_cache):
    """The folder of ``reproduce all --quick``, with still fewer steps."""
    out = tmp_path_factory.mktemp("all") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for study in (
            fig1.Fig1,
            spectrum.SpectrumStudy,
            axes.Axes,
            exponents.Exponents,
            subspace.Subspace,
            generalisation.Generalisation,
        ):
            patch.setattr(study, "quick_steps", 3)
        patch.setattr(fig2.Fig2, "quick_steps", 160)
        assert cli.main(["reproduce", "all", "--quick", "--seeds", "3", "--out", str(out)]) == 0
    return out


def test_every_study_is_on_the_page(everything):
    text, markdown = (everything / "report.html").read_text(), (everything / "report.md").read_text()
    for name in (
        "fig1",
        "fig2",
        "spectrum",
        "axes",
        "exponents",
        "subspace",
        "generalisation",
        "finite-time",
        "init-distance",
    ):
        manifest = json.loads((everything / name / "manifest.json").read_text())
        assert re.search(f"<h2>{name}( \\(digits(, mlp)?\\)| \\(mlp\\))?</h2>", text)
        assert f"## {name}" in markdown
        assert manifest["findings"]
        for finding in manifest["findings"]:
            assert finding["verdict"] in text
            assert finding["claim"].split(":")[0] in markdown
    assert text.count("<img ") == len(list(everything.glob("*/*.png")))


def test_the_page_needs_nothing_from_elsewhere(everything):
    class Links(HTMLParser):
        open, found, ids = [], [], []

        def handle_starttag(self, tag, attrs):
            self.found.extend(v for k, v in attrs if k in ("src", "href"))
            self.ids.extend(v for k, v in attrs if k == "id")
            if tag not in ("meta", "img"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    links = Links()
    links.feed((everything / "report.html").read_text())
    assert links.open == []
    assert links.found
    inside = {v for v in links.found if not v.startswith("data:image/png;base64,")}
    assert inside == {f"#{i}" for i in links.ids}


def test_commands_can_be_given_again(everything):
    command = json.loads((everything / "fig1" / "manifest.json").read_text())["command"]
    words = ["chaos-ext", "reproduce", "fig1", "--seeds", "3", "--controls", "rank,energy", "--quick"]
    assert sorted(command.split()) == sorted(words)
    assert str(everything) not in command
    assert cli._parser().parse_args(shlex.split(command)[1:]).controls == ("rank", "energy")


def test_all_resumes_what_is_there(everything, capsys):
    before = {p: p.read_bytes() for p in everything.glob("*/metrics.csv")}
    with pytest.MonkeyPatch.context() as patch:
        for study in (
            fig1.Fig1,
            spectrum.SpectrumStudy,
            axes.Axes,
            exponents.Exponents,
            subspace.Subspace,
            generalisation.Generalisation,
        ):
            patch.setattr(study, "quick_steps", 3)
        patch.setattr(fig2.Fig2, "quick_steps", 160)
        assert cli.main(["reproduce", "all", "--quick", "--seeds", "3", "--out", str(everything), "--resume"]) == 0
    assert {p: p.read_bytes() for p in everything.glob("*/metrics.csv")} == before


def test_folders_that_are_none_are_refused(everything, tmp_path, capsys):
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "expected the --out of a study" in capsys.readouterr().err
    assert cli.main(["report", str(everything), "--out", str(tmp_path / "no" / "r.html")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["report", str(everything), "--out", str(tmp_path / "r.pdf")])
    damaged = tmp_path / "study"
    damaged.mkdir()
    (damaged / "manifest.json").write_text((everything / "fig1" / "manifest.json").read_text().replace("fig1", "fig9"))
    with pytest.raises(UsageError, match="damaged, edited, or of an older version"):
        page.collect([damaged])


def test_a_study_that_has_not_ended_is_refused(everything, tmp_path):
    text = (everything / "fig1" / "manifest.json").read_text()
    manifest = json.loads(text)
    del manifest["sha256"]
    manifest["status"] = "running"
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "sha256": page.digest(manifest)}))
    with pytest.raises(UsageError, match="has not ended; continue it with --resume"):
        page.collect([tmp_path])


def test_text_of_a_study_is_no_markup(everything):
    section = page.collect([everything / "fig1"])[0]
    section.manifest["findings"][0]["claim"] = "<b>a | b</b>"
    assert "<b>a" not in page.as_html([section])
    assert "&lt;b&gt;a | b" in page.as_html([section])
    assert re.search(r"\| <b>a \\\| b</b> \(Figure 1\) \|", page.as_markdown([section]))


def test_a_command_has_what_decides_numbers_and_nothing_of_the_machine():
    parser = argparse.ArgumentParser()
    fig2_options.add_arguments(parser)
    line = "--lr 0.01 --start 5,7 --prune none --root . --out x --jobs 3 --threads 2 --resume --quick"
    command = command_of("fig2", parser.parse_args(line.split()), parser)
    given = parser.parse_args(shlex.split(command)[3:])
    assert (given.lr, given.start, given.prune, given.quick, given.threads) == (0.01, (5, 7), (), True, 2)
    assert (given.root, given.out, given.jobs, given.resume) == (None, None, 1, False)


def test_verdicts_of_a_finite_time_spectrum():
    s = ce.systems.henon()
    found = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=100, method="svd", every=4, full_output=True)
    largest, smallest, signs = finite_time_findings.findings_of(found)
    assert smallest.verdict == "reproduced"
    assert "25 of 25" in smallest.numbers
    assert signs.verdict == "not reproduced"  # as many above 0 as below
    few = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=10, method="svd", every=4, full_output=True)
    assert {f.verdict for f in finite_time_findings.findings_of(few)[:2]} == {"undecided"}
    assert largest.verdict in ("reproduced", "not reproduced")
    assert isinstance(found.exponents, torch.Tensor)


def test_the_distance_of_initialisations_is_that_of_the_closed_form(tmp_path, capsys):
    assert cli.main(["reproduce", "init-distance", "--draws", "200", "--out", str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (finding,) = manifest["findings"]
    assert finding["verdict"] == "not reproduced"
    assert init_distance.expected(ce.models.paper_mlp(seed=0)) == pytest.approx(4.515, abs=5e-4)
    with (tmp_path / "out" / "distances.csv").open(newline="") as f:
        drawn = [float(r["distance"]) for r in csv.DictReader(f)]
    assert len(drawn) == 200
    assert statistics.fmean(drawn) == pytest.approx(4.515, abs=0.02)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "distances.csv",
        "figure.pdf",
        "figure.png",
        "manifest.json",
    ]
    assert cli.main(["reproduce", "init-distance", "--draws", "200", "--out", str(tmp_path / "out"), "--resume"]) == 0
    assert cli.main(["reproduce", "init-distance", "--draws", "9", "--out", str(tmp_path / "out"), "--resume"]) == 2
    assert "draws: 200 there, 9 here" in capsys.readouterr().err


def test_the_closed_form_is_right_for_convolutions_too():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 5), torch.nn.Flatten(), torch.nn.Linear(8, 4))
    variances = [(3 * 25, 2 * 3 * 25 + 2), (8, 4 * 8 + 4)]
    assert init_distance.expected(model) == pytest.approx(sum(2 * p / (3 * n) for n, p in variances) ** 0.5)
