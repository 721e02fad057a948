"""Orthonormal frames: accurate for any condition, and renewed before the stretch spoils them."""

import math

import pytest
import torch
from torch.optim import SGD
from training import analyse, setting

import chaos_ext as ce
from chaos_ext import systems
from chaos_ext.dynamics import frames
from chaos_ext.dynamics.orthonormal import by_products, orthonormalise


@pytest.mark.parametrize("way", [orthonormalise, by_products])
@pytest.mark.parametrize("condition", [1e0, 1e2, 1e5, 1e12])
@pytest.mark.parametrize("shape", [(40, 1), (30, 5), (900, 30)])
def test_orthonormalise(shape, condition, way, dtype):
    S, k = shape
    U, V = torch.linalg.qr(torch.randn(S, k, dtype=torch.float64))[0], torch.linalg.qr(torch.randn(k, k).double())[0]
    Y = ((U * torch.logspace(0, -math.log10(condition), k, dtype=torch.float64)) @ V).to(dtype)
    before = Y.clone()
    Q, R = way(Y)
    eps = torch.finfo(dtype).eps
    assert torch.equal(Y, before)
    assert R.dtype == torch.float64
    assert (R.diagonal() >= 0).all()
    assert torch.equal(R, R.triu())
    assert (Q.T.double() @ Q.double() - torch.eye(k)).abs().max() < 30 * eps
    assert (Q.double() @ R - Y.double()).abs().max() < 30 * eps
    if condition * eps < 1e-2:
        exact = torch.linalg.qr(Y.double())[1].diagonal().abs()
        assert ((R.diagonal() / exact).log().abs().max()) < 30 * eps * condition


def test_frames_are_renewed_before_the_stretch_spoils_them(monkeypatch):
    """Between two QRs no column ratio passes e^12 in float64, e^5 in float32; a calm run has few QRs."""
    for dtype, limit in ((torch.float64, 12.0), (torch.float32, 5.0)):
        stretches, calls = [], []
        original = frames.orthonormalise

        def spy(Y, stretches=stretches, calls=calls, original=original):
            norms = Y.norm(dim=0).double().log()
            stretches.append(float(norms.max() - norms.min()))
            calls.append(1)
            return original(Y)

        monkeypatch.setattr(frames, "orthonormalise", spy)
        s = systems.ikeda()
        ce.lyapunov_spectrum(s.step, s.tangent, s.x0.to(dtype), steps=500)
        monkeypatch.setattr(frames, "orthonormalise", original)
        assert max(stretches) < limit
        assert len(calls) < 500
    calls = []
    monkeypatch.setattr(frames, "orthonormalise", lambda Y: calls.append(1) or original(Y))
    model, batches = setting()
    opt = SGD(model.parameters(), lr=1e-4)
    analyse(model, opt, batches, 64, ce.LyapunovAnalyzer(model, opt, k=4))
    assert len(calls) <= 1 + 4 + 3
