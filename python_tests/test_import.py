"""``import chaos_ext`` is quick, and everything is there as soon as it is asked for, in whatever way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import chaos_ext

USES = {
    "attribute": "import chaos_ext as ce; ce.HessianOperator",
    "from": "from chaos_ext import CGD, chaos, spectrum; assert callable(spectrum) and chaos.select",
    "star": "from chaos_ext import *; CGD, systems.henon, __version__",
    "all": "import chaos_ext; assert len(chaos_ext.__all__) > 50",
    "dir": "import chaos_ext; assert {'CGD', 'metrics', '__version__'} <= set(dir(chaos_ext))",
    "submodule": "import chaos_ext.dynamics.maps; chaos_ext.lyapunov_spectrum",
    "pickle": "import chaos_ext, pickle; pickle.loads(pickle.dumps(chaos_ext.CGD))",
    "threads": (
        "import chaos_ext\nfrom concurrent.futures import ThreadPoolExecutor as Pool\n"
        "with Pool(4) as pool:\n    found = list(pool.map(lambda n: getattr(chaos_ext, n), ['CGD', 'Spectrum'] * 8))\n"
        "assert len(set(found)) == 2"
    ),
}
PARTS = {
    "import": "import chaos_ext",
    "version": "import chaos_ext; assert chaos_ext.__version__",
    "command": "from chaos_ext import cli",
    "module": "import chaos_ext as ce; ce.metrics.batch_sharpness",
    "folder": "import chaos_ext as ce; from chaos_ext import curvature; assert ce.curvature is curvature",
    "absent dunder": "import chaos_ext; assert not hasattr(chaos_ext, '__wrapped__')",
}


FIRST = ("data", "figures", "dynamics.maps", "optim.cgd", "rules.table", "curvature.engine", "experiments.unit")


def _run(code, tmp_path):
    """Whether the whole package is imported afterwards."""
    code += "\nimport sys; print('chaos_ext._contents' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout.split() == ["True", "True"]


@pytest.mark.parametrize("name", USES)
def test_the_first_use_imports_everything(name, tmp_path):
    assert _run(USES[name], tmp_path)


@pytest.mark.parametrize("name", PARTS)
def test_what_is_not_used_is_not_imported(name, tmp_path):
    assert not _run(PARTS[name], tmp_path)


@pytest.mark.parametrize("name", FIRST)
def test_any_module_can_be_the_first(name, tmp_path):
    """None relies on another's having been imported before."""
    _run(f"import chaos_ext.{name}; chaos_ext.CGD", tmp_path)


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'chaos_ext' has no attribute 'hesian'"):
        _ = chaos_ext.hesian
    with pytest.raises(ImportError, match="hesian"):
        from chaos_ext import hesian  # noqa: F401


def test_the_native_libraries_are_no_modules():
    assert not hasattr(chaos_ext, "_C")


def test_every_public_name_is_that_of_the_contents():
    for name in chaos_ext.__all__:
        assert getattr(chaos_ext, name) is getattr(chaos_ext._contents, name)


TYPED = """
import chaos_ext as ce
import torch
from chaos_ext import CGD, spectrum

def use(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    op = ce.HessianOperator(model, torch.nn.CrossEntropyLoss(), x, y)
    reveal_type(ce.spectrum(op).eigenvalues)
    reveal_type(ce.__version__)
    reveal_type(ce.metrics.batch_sharpness)
    ce.spectrum(op, 1, 2, 3)
    ce.hesian
    opt = CGD(model.parameters(), lr=0.1)
    return float(spectrum(op).eigenvalues[-1]) + opt.steps
"""


def test_the_names_are_typed(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(TYPED)
    source = chaos_ext.__path__[0]
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "user.py"]
    home = Path(source).parent  # mypy looks into site-packages itself, and refuses it in MYPYPATH
    env = {**os.environ, "MYPYPATH": "" if home.name == "site-packages" else str(home)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path, env=env)
    lines = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    revealed = [line.partition("Revealed type is ")[2] for line in lines if "Revealed" in line]
    assert revealed[:2] == ['"torch._tensor.Tensor"', '"str"'], done.stdout
    assert revealed[2] == '"def (op: chaos_ext.curvature.hessian.HessianOperator) -> float"'
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 3, done.stdout
    assert 'Too many positional arguments for "spectrum"' in errors[0]
    assert 'Module has no attribute "hesian"' in errors[-1]
