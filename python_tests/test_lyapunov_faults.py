"""Numbers that overflow and objects that do not belong together: a LyapunovAnalyzer keeps what it had."""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD
from training import CE, analyse, setting

import chaos_ext as ce
from chaos_ext import _ops


def test_overflow_mid_run_names_the_step_and_keeps_the_results(monkeypatch):
    model, batches = setting()
    opt = SGD(model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, k=3, qr_every=2)
    analyse(model, opt, batches, 7, an)
    closed = an.history.exponents[-1]

    def overflow(Y, *args):
        return Y.fill_(math.inf)[:1]

    monkeypatch.setattr(_ops, "tangent_update_", overflow)
    with pytest.raises(ce.NonFiniteError, match="step 7"):
        analyse(model, opt, batches, 1, an)
    assert an.steps == 7
    assert torch.equal(an.exponents(), closed)  # the deviations are lost, the closed blocks remain
    with pytest.raises(ce.NonFiniteError, match="stopped at step 7"):
        analyse(model, opt, batches, 1, an)


def test_diverging_training_keeps_the_results():
    model, batches = setting()
    opt = SGD(model.parameters(), lr=1e20, maximize=True, weight_decay=1.0)
    an = ce.LyapunovAnalyzer(model, opt, k=2)
    with pytest.raises(ce.NonFiniteError):
        analyse(model, opt, batches, 50, an)
    assert an.steps >= 1
    assert float(an.exponents()[0]) > 40


def test_mismatches_are_refused_and_change_nothing():
    model, batches = setting()
    other, _ = setting()
    x, y = batches[0]
    opt = SGD(model.parameters(), lr=0.1, momentum=0.9)
    an = ce.LyapunovAnalyzer(model, opt, k=3)
    Q = an.directions()
    stale = ce.HessianOperator(model, CE, x, y)
    with pytest.raises(TypeError, match="op"):
        an.update(model)
    with pytest.raises(ValueError, match="op: its model"):
        an.update(ce.HessianOperator(other, CE, x, y))
    CE(model(x), y).backward()
    opt.step()
    with pytest.raises(ce.StaleOperatorError):
        an.update(stale)
    assert an.steps == 0
    assert torch.equal(an.directions(), Q)
    new = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    for error, match, call in (
        (ValueError, "1.weight", lambda: ce.LyapunovAnalyzer(other, opt)),
        (ValueError, r"\(2,\)", lambda: ce.LyapunovAnalyzer(model, SGD([*model.parameters(), new], lr=0.1))),
        (ValueError, "method", lambda: ce.LyapunovAnalyzer(model, opt, method="gram")),
        (ce.UnsupportedError, "cocycle", lambda: ce.LyapunovAnalyzer(model, opt, state="theta")),
        (ce.UnsupportedError, "RMSprop", lambda: ce.LyapunovAnalyzer(model, torch.optim.RMSprop(model.parameters()))),
        (ValueError, "k", lambda: ce.LyapunovAnalyzer(model, opt, k=10**6)),
        (ValueError, "k", lambda: ce.LyapunovAnalyzer(model, opt, k=0)),
        (ValueError, "transient", lambda: ce.LyapunovAnalyzer(model, opt, transient=-1)),
        (ValueError, "qr_every", lambda: ce.LyapunovAnalyzer(model, opt, qr_every=0)),
        (ce.MemoryBudgetError, "fewer exponents", lambda: ce.LyapunovAnalyzer(model, opt, memory_budget=1000)),
    ):
        with pytest.raises(error, match=match):
            call()
    model[3].weight = nn.Parameter(model[3].weight.detach().clone())
    with pytest.raises(ValueError, match=r"3\.weight"):
        an.update(ce.HessianOperator(model, CE, x, y))
    assert torch.equal(an.directions(), Q)
