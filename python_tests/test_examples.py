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


def test_dominant_and_bulk(tmp_path):
    """Bulk-SGD follows SGD, Dom-SGD does not, with directions of the training set."""
    pytest.importorskip("sklearn")
    figure = tmp_path / "figure.png"
    loss = _example("dominant_and_bulk").main(samples=200, steps=120, out=str(figure))
    sgd, dominant, bulk = (loss["training set", run] for run in ("sgd", "dominant", "bulk"))
    assert dominant - sgd < 0.25 * (bulk - sgd)
    assert figure.stat().st_size > 10_000


def test_lyapunov_exponents(capsys):
    exponents = _example("lyapunov_exponents").main(steps=40)
    assert len(exponents) == 8
    assert (exponents.diff() <= 0).all()
    assert "exponent 8" in capsys.readouterr().out


def test_readme_examples_run_in_order(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "pruned" in printed
    assert "chaotic" in printed


@pytest.fixture
def custom_layer():
    import chaos_ext as ce

    module = _example("custom_layer")
    yield module
    ce.unregister_rule(module.Wave)


def test_custom_layer(custom_layer, capsys):
    """The rule is used, and gives what double backward gives (verify=True in the example)."""
    assert {r.path for r in custom_layer.op.explain()} == {"enter at units", "enter at parameters"}
    import torch
    from oracles import double_backward, relative

    m = custom_layer
    assert relative(m.H, double_backward(m.model, torch.nn.CrossEntropyLoss(), m.x, m.y)) < 1e-10


def test_a_wrong_registered_rule_is_an_error(custom_layer):
    import torch

    import chaos_ext as ce

    class Wrong(custom_layer.WaveRule):
        def tangent_forward(self, saved, dinputs, dtheta):
            dz = super().tangent_forward(saved, dinputs, dtheta)
            return None if dz is None else 1.01 * dz

    ce.register_rule(custom_layer.Wave, lambda module, leaf, shape: Wrong(leaf("w")))
    with pytest.raises(ce.ChaosExtError, match="H v differs from torch's; check the rule registered for Wave"):
        ce.HessianOperator(custom_layer.model, torch.nn.CrossEntropyLoss(), custom_layer.x, custom_layer.y)


def test_register_rule_refuses_what_it_cannot_use():
    import torch

    import chaos_ext as ce

    with pytest.raises(TypeError, match="module_class: expected a subclass"):
        ce.register_rule(torch.relu, lambda module, leaf, shape: None)
    with pytest.raises(ValueError, match="Linear has a rule already"):
        ce.register_rule(torch.nn.Linear, lambda module, leaf, shape: None)
    with pytest.raises(TypeError, match="make: expected a callable"):
        ce.register_rule(torch.nn.Bilinear, None)
