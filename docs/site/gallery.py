"""The gallery: every file of examples/gallery, run as a reader would, becomes a page with what it drew and printed.

A file that fails, draws nothing or takes longer than a minute fails the build. What a file gave is kept in
build/gallery until its code changes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "examples" / "gallery"
CACHE = ROOT / "build" / "gallery"
LONGEST = 60.0  # seconds of processor time: of the clock it would depend on what else the machine does

_HEAD = """# Gallery

Each is a file of `examples/gallery` that was run when this site was built: `python examples/gallery/NAME.py` writes the
same figure.

<div class="gallery" markdown>

"""


def pages() -> dict[str, str | bytes]:
    """Path in the site -> content: a page and a figure for every example, and the index."""
    made: dict[str, str | bytes] = {}
    cards = []
    for source in sorted(SOURCES.glob("*.py")):
        title, text, code = _parts(source)
        result = _result(source)
        name = source.stem
        made[f"gallery/{name}.png"] = (CACHE / name / f"{name}.png").read_bytes()
        printed = f"It prints:\n\n```text\n{result['printed']}\n```\n\n" if result["printed"] else ""
        made[f"gallery/{name}.md"] = (
            f"# {title}\n\n{text}\n\n![{title}]({name}.png)\n\n{printed}## The code\n\n"
            f"[`examples/gallery/{name}.py`](../examples/gallery/{name}.py)\n\n```py\n{code}\n```\n"
        )
        made[f"examples/gallery/{source.name}"] = source.read_text()
        cards.append(f"[![{title}]({name}.png)<br>{title}]({name}.md)\n{{ .card }}\n")
    made["gallery/index.md"] = _HEAD + "\n".join(cards) + "\n</div>\n"
    return made


def _parts(source: Path) -> tuple[str, str, str]:
    """Title, text and code of a file."""
    whole = source.read_text()
    doc = ast.get_docstring(ast.parse(whole), clean=False) or ""
    title, _, text = doc.partition("\n\n")
    code = re.sub(r'\A""".*?"""\n+', "", whole, count=1, flags=re.DOTALL)
    return title.strip(), text.strip(), code.strip()


def _result(source: Path) -> dict[str, Any]:
    folder = CACHE / source.stem
    code = ast.dump(ast.parse(_parts(source)[2]))  # what is written about it, and how it is laid out, changes nothing
    record, digest = folder / "result.json", hashlib.sha256(code.encode()).hexdigest()
    if record.exists() and (known := json.loads(record.read_text()))["digest"] == digest:
        return dict(known)
    folder.mkdir(parents=True, exist_ok=True)
    result = {"digest": digest, **_run(source, folder)}
    record.write_text(json.dumps(result))
    return result


def _run(source: Path, folder: Path) -> dict[str, Any]:
    start = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-c", _MEASURED, str(source)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / f"{source.stem}.png").exists():
        raise PluginError(f"{source.name} failed or drew no {source.stem}.png:\n{done.stdout}{done.stderr}")
    *printed, seconds = done.stdout.splitlines()
    if float(seconds) > LONGEST:
        raise PluginError(f"{source.name}: {seconds} s of processor time, more than {LONGEST:.0f}")
    print(
        f"gallery: {source.name}, {float(seconds):.0f} s of processor, {time.monotonic() - start:.0f} s",
        file=sys.stderr,
    )
    return {"printed": "\n".join(printed)}


_MEASURED = """
import resource, runpy, sys
runpy.run_path(sys.argv[1], run_name="__main__")
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
"""
