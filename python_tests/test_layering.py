"""Data flows one way: a module imports only from earlier stages."""

import ast
from pathlib import Path

import chaos_ext

STAGES = [
    {"errors", "_ops", "rule", "workspace"},
    {"matrix"},
    {"_build_info", "_files", "memory", "params", "progress"},
    {"csv_stream", "exponents", "orthonormal", "systems"},
    {"benettin"},
    {"lyapunov"},
    {"guards", "layers", "conv", "pooling", "norm", "graph_rules", "losses", "program"},
    {"layer_table", "autorule", "region"},
    {"build"},
    {"capture", "tape"},
    {"sweep", "native"},
    {"plan", "compressed", "functional"},
    {"compress"},
    {"layerwise"},
    {"engine"},
    {"hessian", "eigen", "tridiagonal"},
    {"eigenpairs", "perturb"},
    {"spectrum", "chaos", "sgd", "pruning"},
    {"cgd", "metrics", "tangent_rules", "projected"},
    {"tangent"},
    {"analyzer"},
]
# Outside the pipeline: what the studies need, and the slow twins that only tests and benchmarks may use.
APPLICATION = {"data", "models", "figures", "experiments", "cli", "__main__"}


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= {node.module.split(".")[0]} if node.module else {a.name for a in node.names}
    return names


def _package() -> Path:
    return Path(chaos_ext.__file__).parent


def test_imports_follow_the_pipeline():
    earlier: set[str] = set()
    for stage in STAGES:
        for name in stage:
            imported = _imports(_package() / f"{name}.py") - earlier
            assert not imported, f"{name} imports {sorted(imported)}, which is not an earlier stage"
        earlier |= stage


def test_every_module_has_a_stage():
    modules = {p.stem for p in _package().glob("*.py")} | {
        p.name for p in _package().iterdir() if (p / "__init__.py").exists()
    }
    assert modules == set().union(*STAGES) | APPLICATION | {"__init__", "reference"}


def test_only_ops_names_the_compiled_namespace():
    for path in _package().rglob("*.py"):
        if path.name != "_ops.py":
            assert "torch.ops.chaos_ext" not in path.read_text(), path


def test_the_package_never_uses_its_slow_twins():
    for path in _package().rglob("*.py"):
        if path.name != "reference.py":
            assert "reference" not in _imports(path), path
