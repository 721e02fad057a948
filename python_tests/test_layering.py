"""The plan of the house: what a module may import and touch, how long a file is, who names the native operators."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import chaos_ext

PACKAGE = Path(chaos_ext.__file__).parent

# What stands on the landing, floor by floor: a module imports from lower floors and from its own folder only.
FLOORS = [
    {"errors", "_version"},
    {"_ops"},
    {"base", "_build_info"},
    {"distributed"},
    {"rules"},
    {"graph"},
    {"curvature"},
    {"spectra"},
    {"chaos"},
    {"dynamics", "optim", "systems", "models", "data"},
    {"metrics", "ensemble"},
    {"figures", "recorder"},
    {"experiments"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}
# Outside of the floors: the table of contents, and the slow twins that only tests and benchmarks may use.
ASIDE = {"__init__", "_contents", "reference"}
LONGEST = 300  # lines


def _modules() -> dict[str, Path]:
    """Dotted name inside the package -> file; a folder's __init__ goes by the folder's name."""
    named = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return named


MODULES = _modules()
FOLDERS = {name for name, path in MODULES.items() if path.name == "__init__.py" and path.parent != PACKAGE}


def _resolved(name: str, node: ast.ImportFrom | ast.Import) -> set[str]:
    """The modules of the package that one import statement of module ``name`` reads, whatever its form."""
    if isinstance(node, ast.Import):
        return {a.name.partition(".")[2] for a in node.names if a.name.partition(".")[0] == "chaos_ext"} - {""}
    if node.level == 0:
        if (node.module or "").partition(".")[0] != "chaos_ext":
            return set()
        base = node.module.split(".")[1:]
    else:
        here = name.split(".")
        package = here if name in FOLDERS else here[:-1]
        base = package[: len(package) - (node.level - 1)] + (node.module.split(".") if node.module else [])
    own = {".".join([*base, a.name]) for a in node.names}
    # A name that is no module is something that its package's __init__ defines.
    return {m if m in MODULES else ".".join(base) or "__init__" for m in own}


def _imports(name: str) -> set[str]:
    nodes = ast.walk(ast.parse(MODULES[name].read_text()))
    found = (_resolved(name, n) for n in nodes if isinstance(n, (ast.ImportFrom, ast.Import)))
    return set().union(*found) - {name}


def _place(module: str) -> str:
    return module.split(".")[0]


def test_every_module_has_a_floor():
    assert {_place(m) for m in MODULES} == set(FLOOR) | ASIDE


@pytest.mark.parametrize("name", sorted(m for m in MODULES if _place(m) not in ASIDE))
def test_imports_descend(name):
    own = _place(name)
    for target in _imports(name):
        if own == "experiments" and target == "__init__":
            continue  # studies use the public API
        if own in ("cli", "__main__") and target == "__init__":
            continue  # a program on top of it
        assert _place(target) == own or FLOOR[_place(target)] < FLOOR[own], (
            f"{name} imports {target}, not a lower floor"
        )


@pytest.mark.parametrize("folder", sorted({_place(m) for m in MODULES if "." in m}))
def test_no_circle_inside_a_folder(folder):
    inside = [m for m in MODULES if _place(m) == folder]
    graph = {m: {t for t in _imports(m) if t in inside and not m.startswith(f"{t}.")} for m in inside}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        pytest.fail(f"{folder}: {' -> '.join(e.args[1])}")


def test_the_resolution_of_imports_sees_every_form():
    def targets(line, name):
        return _resolved(name, ast.parse(line).body[0])

    assert targets("from .tape import Tape", "curvature.sweep") == {"curvature.tape"}
    assert targets("from ..base import memory", "curvature.sweep") == {"base.memory"}
    assert targets("from .. import _ops", "curvature.sweep") == {"_ops"}
    assert targets("from .. import hessian", "curvature.sweep") == {"__init__"}
    assert targets("from . import chaos, CGD", "__init__") == {"chaos", "__init__"}
    assert targets("from .base.files import read_sealed", "__init__") == {"base.files"}
    assert targets("from ..base.files import read_sealed", "reference.layers") == {"base.files"}
    assert targets("import chaos_ext.curvature.tape", "cli") == {"curvature.tape"}
    assert targets("from chaos_ext.base.memory import require", "cli") == {"base.memory"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_file_is_long(name):
    assert len(MODULES[name].read_text().splitlines()) <= LONGEST


def _private(name: str) -> set[str]:
    """Private attributes of something else than self or cls, such as ``tensor._version``."""
    nodes = [n for n in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(n, ast.Attribute)]
    own = [n for n in nodes if isinstance(n.value, ast.Name) and n.value.id in ("self", "cls")]
    private = [n for n in nodes if n.attr.startswith("_") and not n.attr.startswith("__") and n not in own]
    return {
        ast.unparse(n) for n in private if n.attr not in ("_fields", "_check", "_is_owned")
    }  # namedtuple, torch, locks


@pytest.mark.parametrize("name", sorted(MODULES))
def test_private_attributes_are_their_owners(name):
    """Of torch's, ``base.torch_internals`` alone knows: the file to review for a new torch."""
    assert name == "base.torch_internals" or not _private(name)


def test_only_ops_names_the_compiled_namespace():
    for name, path in MODULES.items():
        if _place(name) != "_ops":
            assert "torch.ops.chaos_ext" not in path.read_text(), path


def test_the_package_never_uses_its_slow_twins():
    for name in MODULES:
        if _place(name) != "reference":
            assert all(_place(t) != "reference" for t in _imports(name)), name
