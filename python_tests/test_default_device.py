"""``torch.set_default_device`` is the user's: what the package makes says itself where it goes."""

import ast
import copy
from pathlib import Path

import cases
import pytest
import torch
from training import RUNS

import chaos_ext as ce

CE = torch.nn.CrossEntropyLoss()
FACTORIES = {"arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "randperm", "tensor", "zeros"}
PACKAGE = Path(ce.__file__).parent


def _made_anywhere(path):
    """Lines of calls such as torch.zeros(n) without a device."""
    for node in ast.walk(ast.parse(path.read_text())):
        called = node.func if isinstance(node, ast.Call) else None
        made = isinstance(called, ast.Attribute) and ast.unparse(called) in {f"torch.{f}" for f in FACTORIES}
        if made and not any(k.arg == "device" for k in node.keywords):
            yield node.lineno


@pytest.mark.parametrize(
    "path",
    sorted(p for p in PACKAGE.rglob("*.py") if p.parent.name != "reference"),
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_every_tensor_is_made_on_a_named_device(path):
    assert not list(_made_anywhere(path))


@pytest.fixture
def elsewhere():
    torch.set_default_device("meta")  # a device whose tensors have no values: whoever uses one by accident fails
    yield
    torch.set_default_device(None)  # "cpu" would be a mode of its own, for all tests that follow


def _results(model, name, loss, x, y):
    make, options = RUNS[name]
    opt = make(model.parameters(), **options)
    op = ce.HessianOperator(model, loss, x, y, verify=True)
    an = ce.LyapunovAnalyzer(model, opt, k=2)
    an.update(op)
    spectra = ce.spectrum(op), ce.spectrum(op, k=3), ce.directions(op)
    return [op.dense(), an.exponents(), *(s.eigenvalues for s in spectra)]


@pytest.mark.parametrize("loss", [CE, lambda z, y: CE(z, y) + 0.0], ids=["rules", "torch"])
@pytest.mark.parametrize("name", RUNS)
def test_results_do_not_depend_on_the_default_device(name, loss, request):
    x, y = cases.batch(5, cases.LOSSES["ce"][1])
    model = cases.mlp(2, "tanh").double()
    twin = copy.deepcopy(model)
    expected = _results(model, name, loss, x, y)
    request.getfixturevalue("elsewhere")
    for ours, theirs in zip(_results(twin, name, loss, x, y), expected):
        assert ours.device.type == "cpu"
        assert torch.equal(ours, theirs)


def test_systems_and_maps(elsewhere):
    henon = ce.systems.henon()
    exponents = ce.lyapunov_spectrum(henon.step, henon.tangent, henon.x0, steps=50)
    assert exponents.device.type == "cpu"
    assert float(exponents.sum()) == pytest.approx(-1.2039728, abs=1e-6)


def test_data(elsewhere):
    pytest.importorskip("sklearn")
    digits = ce.data.load("digits")
    order = ce.data.BatchOrder(len(digits.x_train), 8, seed=0).epoch(0)
    assert digits.x_train.device.type == order[0].device.type == "cpu"
