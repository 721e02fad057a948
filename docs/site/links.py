"""Every link of the built site leads somewhere, and no page needs a server: checked in the HTML itself."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit


class _Page(HTMLParser):
    """Anchors of a page, where its links lead, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.anchors |= {found[n] for n in ("id", "name") if n in found}
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        if "src" in found or (tag == "link" and found.get("rel") in ("stylesheet", "icon")):
            self.loads.add(found.get("src") or found["href"])


def faults(site: Path) -> list[str]:
    """One line for every link that leads nowhere, and for everything that is loaded from elsewhere."""
    pages = {p: _Page(p.read_text()) for p in site.rglob("*.html") if p.name != "404.html"}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name}: loads {u}" for u in page.loads if urlsplit(u).netloc]
        local = {u for u in page.links | page.loads if not urlsplit(u).scheme and not urlsplit(u).netloc}
        found += [f"{name}: {u} leads nowhere" for u in local if not _leads(path, u, pages)]
    return sorted(found)


def _leads(path: Path, link: str, pages: dict[Path, _Page]) -> bool:
    target, anchor = urldefrag(unquote(link))
    there = (path.parent / target).resolve() if target else path
    if there.is_dir():
        there /= "index.html"
    if there not in pages:
        return there.exists()
    return not anchor or anchor in pages[there].anchors or anchor.startswith("__")
