"""Public docstrings: every argument is explained, and every example runs as shown."""

import doctest
import inspect
import sys
import types

import pytest
import torch

import chaos_ext as ce


def _public():
    """(name, object) of every public class, function and method."""
    named = {name: getattr(ce, name) for name in ce.__all__}
    for module in [m for m in named.values() if isinstance(m, types.ModuleType)]:
        leaf = module.__name__.rpartition(".")[2]
        own = {k: v for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
        named |= {f"{leaf}.{k}": v for k, v in own.items() if not k.startswith("_") and callable(v)}
    for name, value in named.items():
        if inspect.isclass(value):
            yield name, value
            methods = {k: v for k, v in vars(value).items() if inspect.isfunction(v) and not k.startswith("_")}
            yield from ((f"{name}.{k}", v) for k, v in methods.items())
        elif inspect.isfunction(value):
            yield name, value


PUBLIC = dict(_public())


def _parameters(value):
    if inspect.isclass(value) and "__init__" not in vars(value):
        return []
    called = value.__init__ if inspect.isclass(value) else value
    return [p for p in inspect.signature(called).parameters if p not in ("self", "args", "kwargs")]


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_docstring_says_what_every_argument_is(name):
    value = PUBLIC[name]
    doc = inspect.getdoc(value)
    assert doc, f"{name} has no docstring"
    if len(doc.splitlines()) == 1 and len(_parameters(value)) <= 1:
        return  # one sentence says it all
    missing = [p for p in _parameters(value) if p not in doc]
    assert not missing, f"{name}: {missing} not in its docstring"


@pytest.fixture
def names():
    """What the examples take for granted."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    x, y = torch.randn(5, 6), torch.randn(5, 3)
    loss_fn = torch.nn.MSELoss()
    op = ce.HessianOperator(model, loss_fn, x, y)
    opt = ce.CGD(model.parameters(), lr=0.1)
    loader = [(x, y)] * 3
    return {**locals(), "ce": ce, "torch": torch, "spec": ce.spectrum(op)}


EXAMPLES = {
    test.name: test
    for name, value in PUBLIC.items()
    for test in doctest.DocTestFinder(recurse=False).find(value, name, module=False, globs={})
    if test.examples
}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_run(name, names):
    test = EXAMPLES[name]
    test.globs = {**vars(sys.modules[inspect.unwrap(PUBLIC[name]).__module__]), **names}
    out = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=out.append)
    assert not failed, "".join(out)


def test_the_main_entrances_have_examples():
    entrances = {"HessianOperator", "spectrum", "CGD", "TangentMap", "LyapunovAnalyzer", "lyapunov_spectrum"}
    assert entrances <= set(EXAMPLES)
