"""chaos-ext doctor: its numbers are right, a wrong one is found, and what is missing is named."""

import importlib.util
import time

import pytest
import torch

import chaos_ext as ce
from chaos_ext import cli
from chaos_ext.experiments import doctor


def test_a_sound_installation_passes(capsys):
    start, before = time.process_time(), torch.get_rng_state()
    assert cli.main(["doctor"]) == 0
    assert time.process_time() - start < 10  # seconds
    assert torch.equal(torch.get_rng_state(), before)
    text = capsys.readouterr().out
    assert text.count(" ok ") == len(list(doctor.checks()))
    assert "WRONG" not in text
    assert ce.build_info()["torch"] in text


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [
        (ce.HessianOperator, "dense", "linear regression"),
        (ce.HessianOperator, "__matmul__", "products"),
        (ce, "spectrum", "compressed: StaleOperatorError"),
        (ce, "lyapunov_spectrum", "cat map"),
    ],
)
def test_a_wrong_number_is_found(owner, name, expected, monkeypatch, capsys):
    """Off by 1e-3, whatever it is."""
    right = getattr(owner, name)

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return 1.001 * result
        result.eigenvalues = 1.001 * result.eigenvalues
        return result

    monkeypatch.setattr(owner, name, wrong)
    assert cli.main(["doctor"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("WRONG")]
    assert any(expected in line for line in failed)


def test_a_number_that_is_none_is_wrong():
    assert not doctor.Check("x", float("nan"), 1.0).passed


def test_what_is_missing_is_named_with_the_command(monkeypatch, capsys):
    found = importlib.util.find_spec
    gone = {"matplotlib", "sklearn"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in gone else found(name, *rest))
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "pip install matplotlib scikit-learn" in text
    assert "matplotlib is missing: figures" in text
