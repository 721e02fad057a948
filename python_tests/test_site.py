"""The pages of docs/: their code runs, every public name is in the reference, every page is reached from the menu."""

import inspect
import re
import textwrap
import types
from pathlib import Path

import pytest
import torch

import chaos_ext as ce

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "```python" in p.read_text())
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def _callables(module):
    """Public classes and functions of the package that a module hands out."""
    for name, value in vars(module).items():
        own = getattr(value, "__module__", "").startswith("chaos_ext")
        if not name.startswith("_") and own and (inspect.isclass(value) or inspect.isfunction(value)):
            yield name, value


@pytest.fixture
def as_before():
    """Pages register rules and set the default dtype, the seed and the number of threads."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    names = {}
    yield names
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    for value in names.values():
        if inspect.isclass(value) and issubclass(value, torch.nn.Module) and value.__module__ == "page":
            ce.unregister_rule(value)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_the_code_of_a_page_runs_in_order(page, tmp_path, monkeypatch, as_before):
    """Every block of it, in one namespace, in an empty folder; what it asserts holds."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    as_before["__name__"] = "page"
    text = page.read_text()
    for block in BLOCK.finditer(text):
        code = "\n" * text[: block.start(2)].count("\n") + textwrap.dedent(block[2])  # errors name the page's lines
        exec(compile(code, str(page), "exec"), as_before)


def test_no_block_is_missed():
    text = "\n".join(p.read_text() for p in PAGES)
    assert len(BLOCK.findall(text)) == len(re.findall(r"``` *(?:python|py|pycon)\b", text))


def test_every_public_name_is_in_the_reference():
    listed = re.findall(
        r"(?m)^::: chaos_ext\.(\S+)$", "\n".join(p.read_text() for p in (DOCS / "reference").glob("*.md"))
    )
    assert len(listed) == len(set(listed))
    public = {name: getattr(ce, name) for name in ce.__all__}
    modules = [m for m in public.values() if isinstance(m, types.ModuleType)]
    wanted = {name for name, v in public.items() if callable(v)}
    homes = {id(v) for v in public.values()}
    for module in modules:
        leaf = module.__name__.rpartition(".")[2]
        wanted |= {f"{leaf}.{name}" for name, v in _callables(module) if id(v) not in homes and _public(module, name)}
    assert set(listed) == wanted


def _public(module, name):
    """By ``__all__`` where a module has one, else what it defines itself."""
    names = getattr(module, "__all__", None)
    return name in names if names is not None else getattr(module, name).__module__ == module.__name__
