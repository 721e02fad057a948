"""One page about studies that were run: every figure, and every claim with its verdict. HTML without other files."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..base.files import atomic_write
from .findings import VERDICTS
from .output import MANIFEST, UsageError, digest

# As the paper has them: its figures, then its appendices.
_ORDER = (
    *("fig1", "fig2", "fig3", "finite-time", "init-distance", "random-walk", "spectrum", "axes"),
    *("exponents", "subspace", "magnitude", "epsilon", "bounds", "global-prune", "generalisation"),
)
# Told apart in print, too: every verdict has a sign of its own.
_SIGNS = dict(zip(VERDICTS, ("✓", "~", "✗", "?"), strict=True))
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; }
img { width: 100%; height: auto; } code { background: #f2f2f2; padding: .1em .3em; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4rem .5rem; overflow-wrap: anywhere; }
tr { border-bottom: 1px solid #ddd; } .verdict { white-space: nowrap; font-weight: 600; }
.contents { padding-left: 1.2rem; columns: 22rem; } .contents li { break-inside: avoid; }
.facts { color: #555; font-size: .9rem; overflow-wrap: anywhere; }
@media (max-width: 45rem) {
 thead { display: none; } tr, td { display: block; padding: .1rem 0; } tr { padding: .6rem 0; }
}
@media print { body { font-size: 10pt; } h2 { break-before: page; } img, tr { break-inside: avoid; } }
"""


class Section(NamedTuple):
    """A study.

    Attributes:
        folder: where it is.
        manifest: what its manifest.json says.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def title(self) -> str:
        """The study, and what it was run on."""
        s = self.manifest["settings"]
        on = ", ".join(str(s[n]) for n in ("data", "model") if s.get(n))
        return f"{self.manifest['experiment']}{f' ({on})' if on else ''}"

    @property
    def figures(self) -> list[Path]:
        """Its figures as PNG: the paper's first, others by name."""
        return sorted(self.folder.glob("*.png"), key=lambda p: (p.stem != "figure", p.stem))

    @property
    def findings(self) -> list[dict[str, str]]:
        """Its claims with their verdicts."""
        return list(self.manifest.get("findings", []))

    @property
    def facts(self) -> str:
        """What was done to what, by which version."""
        s, cpu = self.manifest["settings"], self.manifest["machine"]["cpu"]
        names = (
            *("data", "model", "hidden", "activation", "lr", "batch_size", "momentum", "epochs", "max_steps"),
            *("draws", "dtype"),
        )
        said = [f"{n.replace('_', ' ')} {s[n]}" for n in names if s.get(n) is not None]
        seeds = f"seeds {', '.join(map(str, s['seeds']))}"
        return f"{', '.join([*said, seeds])}; {cpu}; commit {self.manifest.get('commit') or 'unknown'}"


def collect(folders: Sequence[Path]) -> list[Section]:
    """The studies in these folders, or in the folders that lie in them, in the order of the paper.

    Raises:
        UsageError: a folder without a study, or one whose study has not ended.
    """
    sections: list[Section] = []
    for folder in folders:
        own = [folder] if (folder / MANIFEST).is_file() else sorted(p.parent for p in folder.glob(f"*/{MANIFEST}"))
        if not own:
            raise UsageError(f"{folder}: expected the --out of a study, or a folder with such folders; it has none")
        sections.extend(Section(path, _read(path / MANIFEST)) for path in own)
    return sorted(sections, key=lambda s: _place(s.manifest["experiment"]))


def _place(name: str) -> int:
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: expected the manifest of a study, got {error}") from error
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != digest(manifest):
        raise UsageError(f"{path}: damaged, edited, or of an older version")
    if manifest["status"] == "running":
        raise UsageError(f"{path.parent}: its study has not ended; continue it with --resume first")
    own: dict[str, Any] = manifest
    return own


def write_page(folders: Sequence[Path], path: Path) -> None:
    """The page on the studies in these folders, and beside it the same as Markdown; raises as ``collect``."""
    sections = collect(folders)
    atomic_write(path, as_html(sections))
    atomic_write(path.with_suffix(".md"), as_markdown(sections))
    print(f"written: {path}, {path.with_suffix('.md')} ({len(sections)} studies)")


def as_html(sections: Sequence[Section]) -> str:
    """The page."""
    body = "".join(f'<section id="study-{i}">\n{_html_of(s)}</section>\n' for i, s in enumerate(sections, 1))
    links = "".join(
        f'<li><a href="#study-{i}">{html.escape(s.title)}</a> {html.escape(_outcome(s))}</li>\n'
        for i, s in enumerate(sections, 1)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>chaos_ext: what was reproduced</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        "<h1>Chaotic dynamics in neural network training: what was reproduced</h1>\n"
        f"<p>{_counted(sections)}</p>\n<ul class='contents'>\n{links}</ul>\n{body}</body>\n</html>\n"
    )


def _html_of(s: Section) -> str:
    name, command = html.escape(s.title), html.escape(s.manifest.get("command", ""))
    figures = "".join(
        f'<img alt="{name}: {html.escape(p.stem)}" src="data:image/png;base64,'
        f'{base64.b64encode(p.read_bytes()).decode()}">\n'
        for p in s.figures
    )
    rows = "".join(
        f'<tr><td class="verdict">{_SIGNS[f["verdict"]]} {f["verdict"]}</td><td>{html.escape(f["claim"])} '
        f"<span class='facts'>({html.escape(f['where'])})</span></td><td>{html.escape(f['numbers'])}</td>"
        f"<td class='facts'>{html.escape(f['criterion'])}</td></tr>\n"
        for f in s.findings
    )
    head = "<thead><tr><th>Verdict</th><th>Claim</th><th>What came out</th><th>Criterion</th></tr></thead>"
    table = f"<table>{head}<tbody>\n{rows}</tbody></table>\n" if rows else "<p>No claim is decided by it.</p>\n"
    return (
        f"<h2>{name}</h2>\n<p><code>{command}</code></p>\n<p class='facts'>{html.escape(s.facts)}</p>\n{table}{figures}"
    )


def as_markdown(sections: Sequence[Section]) -> str:
    """The same without figures."""
    lines = ["# What was reproduced", "", _counted(sections), ""]
    lines += [*(f"- {s.title}: {_outcome(s)}" for s in sections), ""]
    for s in sections:
        lines += [f"## {s.title}", "", f"`{s.manifest.get('command', '')}`", "", s.facts, ""]
        if s.findings:
            lines += ["| verdict | claim | what came out | criterion |", "|---|---|---|---|"]
        for f in s.findings:
            verdict, claim = f"{_SIGNS[f['verdict']]} {f['verdict']}", f"{f['claim']} ({f['where']})"
            cells = verdict, claim, f["numbers"], f["criterion"]
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _outcome(s: Section) -> str:
    """The verdicts on its claims, counted."""
    verdicts = [f["verdict"] for f in s.findings]
    counts = [f"{_SIGNS[v]} {verdicts.count(v)} {v}" for v in VERDICTS if v in verdicts]
    return ", ".join(counts) or "decides no claim"


def _counted(sections: Sequence[Section]) -> str:
    verdicts = [f["verdict"] for s in sections for f in s.findings]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in VERDICTS)
    return f"{len(verdicts)} claims in {len(sections)} studies: {counts}."
