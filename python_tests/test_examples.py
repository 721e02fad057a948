"""What the README and the examples show runs as shown."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_train_with_cgd_learns():
    assert _example("train_with_cgd").main(epochs=3) < 1.0


def test_lle_spectrum():
    pytest.importorskip("sklearn")
    chaotic = _example("lle_spectrum").main(steps=3)
    assert len(chaotic) == 3
    assert all(0 < n < 344 for n in chaotic)


def test_readme_examples_run_in_order(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "pruned" in printed
    assert "chaotic" in printed
