"""What the build adds to the pages: mathematics as MathML, tables and figures of measurements, the gallery.

Nothing of it is committed, and nothing asks a server: MathML is made here, figures are drawn here.
"""

from __future__ import annotations

import html
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))  # not the source tree, in which nothing need be built

import commands  # noqa: E402
import executed  # noqa: E402
import gallery  # noqa: E402
import links  # noqa: E402
import measurements  # noqa: E402

_MATH = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
_MEASURED = re.compile(r"<!-- (table|plot): (\w+)(?: \| (.*?))? -->")
_INTO_THE_REPOSITORY = re.compile(r"\]\((?:\.\./)+((?:benchmarks/results|examples)/[^)#]+|[A-Z]+\.md)\)")
_NAMES = {"CHANGELOG.md": "changelog.md"}  # of the repository -> of the site


def on_files(files: Files, config: Any) -> Files:
    """The pages that are made, and the files of the repository that pages refer to."""
    for folder in ("benchmarks/results", "examples"):
        for path in sorted(p for p in (ROOT / folder).rglob("*.*") if p.is_file()):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for name, content in {
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
        "reference/cli.md": commands.page(),
        **{f"assets/measured/{name}.png": executed.png(draw()) for name, draw in measurements.PLOTS.items()},
        **gallery.pages(),
        **executed.figures(ROOT / "docs", [f.src_uri for f in files.documentation_pages()]),
    }.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Measurements for their markers; paths that are right in the repository lead to the same files of the site."""
    here = posixpath.dirname(page.file.src_uri) or "."

    def measured(match: re.Match[str]) -> str:
        kind, name, caption = match.groups()
        if kind == "table":
            return measurements.TABLES[name]()
        return f"![{caption}]({posixpath.relpath(f'assets/measured/{name}.png', here)})"

    def within(match: re.Match[str]) -> str:
        return f"]({posixpath.relpath(_NAMES.get(match[1], match[1]), here)})"

    return _MEASURED.sub(measured, _INTO_THE_REPOSITORY.sub(within, markdown))


def on_page_content(content: str, page: Page, config: Any, files: Files) -> str:
    """Mathematics as MathML, which browsers set themselves; tables that scroll on their own on a narrow screen."""
    return _MATH.sub(lambda m: _mathml(m, page), content)


def on_post_build(config: Any) -> None:
    """Refuses a site with a link that leads nowhere, or a page that loads anything from elsewhere."""
    if found := links.faults(Path(config["site_dir"])):
        raise PluginError("\n".join(found))


def _mathml(match: re.Match[str], page: Page) -> str:
    block, text = match[1] == "div", html.unescape(match[2]).strip()[2:-2]
    result = convert(text, display="block" if block else "inline")
    if unknown := re.search(r"\\[A-Za-z]+", result):  # latex2mathml passes on what it does not know
        raise PluginError(f"{page.file.src_uri}: {unknown[0]} in ${text}$ is not known to latex2mathml")
    return f'<div class="math">{result}</div>' if block else result
