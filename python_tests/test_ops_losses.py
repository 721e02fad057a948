"""cross_entropy, bce_with_logits, mse: torch's losses and derivatives, and full accuracy on fitted batches."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from chaos_ext import _ops, reference

EMPTY: list[float] = []


def _close(actual: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    tol = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(actual.cpu().double(), wanted.cpu().double(), **tol)


def _gradient(loss: Tensor, z: Tensor) -> Tensor:
    return torch.autograd.grad(loss, z, create_graph=True)[0]


@pytest.mark.parametrize(("N", "C"), [(1, 1), (1, 7), (8, 10), (33, 3), (3, 1000)])
def test_cross_entropy_matches_twin_and_autograd(N: int, C: int, device: torch.device, dtype: torch.dtype) -> None:
    z, t = (2 * torch.randn(N, C)).to(device, dtype), torch.rand(N, C).to(device, dtype)
    loss, delta, p = _ops.cross_entropy(z, t)
    for actual, wanted in zip((loss, delta, p), reference.cross_entropy(z.double(), t.double()), strict=True):
        _close(actual, wanted, dtype)
    x = z.double().requires_grad_()
    value = F.cross_entropy(x, t.double(), reduction="sum")
    _close(loss, value.detach(), dtype)
    _close(delta, _gradient(value, x).detach(), dtype)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(("N", "C"), [(1, 1), (8, 10), (33, 3), (3, 1000)])
def test_cross_entropy_of_labels_is_torchs(
    N: int, C: int, smoothing: float, device: torch.device, dtype: torch.dtype
) -> None:
    z, y = (2 * torch.randn(N, C)).to(device, dtype), torch.randint(C, (N,)).to(device)
    others = smoothing / C / N
    loss, delta, p = _ops.cross_entropy_labels(z, y, (1 - smoothing) / N + others, others)
    x = z.double().requires_grad_()
    value = F.cross_entropy(x, y, label_smoothing=smoothing)
    _close(loss, value.detach(), dtype)
    _close(delta, _gradient(value, x).detach(), dtype)
    _close(p, x.detach().softmax(1), dtype)


def test_cross_entropy_of_labels_keeps_its_digits(device: torch.device, dtype: torch.dtype) -> None:
    """Bit for bit what ``cross_entropy`` gives for the same target weights; a label that is no class has none."""
    z = torch.zeros(3, 4).index_fill(1, torch.tensor([2]), 27.0).to(device, dtype)
    y = torch.tensor([2, 0, 9], device=device)
    t = torch.full((3, 4), 0.125, dtype=dtype, device=device)
    t[0, 2] = t[1, 0] = 0.5
    for actual, wanted in zip(_ops.cross_entropy_labels(z, y, 0.5, 0.125), _ops.cross_entropy(z, t), strict=True):
        assert torch.equal(actual, wanted)
    empty = _ops.cross_entropy_labels(z[:0], y[:0], 0.5, 0.125)
    assert empty[0].item() == 0
    assert empty[1].shape == (0, 4)


@pytest.mark.parametrize(("k", "N", "C"), [(1, 1, 1), (3, 8, 10), (2, 5, 300), (0, 3, 4), (2, 0, 4)])
def test_cross_entropy_tangent_is_the_hessian(k: int, N: int, C: int, device: torch.device, dtype: torch.dtype) -> None:
    z, t, dz = (torch.randn(s).abs().to(device, dtype) for s in [(N, C), (N, C), (N, C, k)])
    p, s = torch.softmax(z, 1), t.sum(1)
    out = _ops.cross_entropy_tangent(p, s, dz)
    _close(out, reference.cross_entropy_tangent(p.double(), s.double(), dz.double()), dtype)
    x = z.double().requires_grad_()
    g = _gradient(F.cross_entropy(x, t.double(), reduction="sum"), x)
    for column, tangent in zip(
        out.unbind(2), dz.double().unbind(2), strict=True
    ):  # the Hessian is symmetric: vjp = jvp
        _close(column, torch.autograd.grad(g, x, tangent, retain_graph=True)[0], dtype)


def test_cross_entropy_keeps_its_digits_on_fitted_batches(device: torch.device, dtype: torch.dtype) -> None:
    """Loss 8e-12 and below: with q = sum of the other probabilities, everything follows from q to rounding."""
    gap, C = 27.0, 4
    z = torch.zeros(2, C).index_fill(1, torch.tensor([2]), gap).to(device, dtype)
    t = torch.zeros(2, C).index_fill(1, torch.tensor([2]), 0.5).to(device, dtype)
    loss, delta, p = (x.cpu().double() for x in _ops.cross_entropy(z, t))
    small = math.exp(-gap) / (1 + (C - 1) * math.exp(-gap))
    rtol = 32 * torch.finfo(dtype).eps
    torch.testing.assert_close(loss.item(), math.log1p((C - 1) * math.exp(-gap)), rtol=rtol, atol=0)
    wanted = torch.full((2, C), 0.5 * small, dtype=torch.float64)
    wanted[:, 2] = -0.5 * (C - 1) * small
    torch.testing.assert_close(delta, wanted, rtol=rtol, atol=0)
    # Against the exact Hessian of the same p: the diagonal entry of the target class is p_y q, not p_y (1 - p_y).
    e = torch.zeros(2, C, 1).index_fill(1, torch.tensor([2]), 1.0).to(device, dtype)
    out = _ops.cross_entropy_tangent(p.to(device, dtype), t.sum(1), e).cpu().double()
    torch.testing.assert_close(out[:, 2, 0], (0.5 * p[:, 2] * (C - 1) * small), rtol=rtol, atol=0)
    torch.testing.assert_close(out[:, 0, 0], (-0.5 * p[:, 2] * small), rtol=rtol, atol=0)


def test_cross_entropy_skips_absent_classes_and_ignored_rows(device: torch.device) -> None:
    z = torch.tensor([[0.0, -math.inf, 1.0], [2.0, 3.0, 4.0]], dtype=torch.float64, device=device)
    t = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64, device=device)
    loss, delta, p = _ops.cross_entropy(z, t)
    assert loss.item() == pytest.approx(math.log1p(math.e), rel=1e-14)
    assert p[0, 1] == 0
    assert delta[0, 1] == 0
    assert (delta[1] == 0).all()
    loss, _, _ = _ops.cross_entropy(z, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64).to(device))
    assert loss.item() == math.inf


def test_cross_entropy_of_an_empty_batch_is_zero(device: torch.device) -> None:
    z = torch.empty(0, 5, device=device)
    loss, delta, p = _ops.cross_entropy(z, z.clone())
    assert loss.item() == 0
    assert delta.shape == p.shape == (0, 5)


@pytest.mark.parametrize("weighted", [(False, False), (True, False), (False, True), (True, True)])
def test_bce_matches_twin_and_double_backward(
    weighted: tuple[bool, bool], device: torch.device, dtype: torch.dtype
) -> None:
    z, y = (3 * torch.randn(9, 5)).to(device, dtype), torch.rand(9, 5).to(device, dtype)
    w, pw = ((torch.rand(9, 5) if on else torch.tensor(EMPTY)).to(device, dtype) for on in weighted)
    outputs = _ops.bce_with_logits(z, y, w, pw, 0.25)
    wide = [x.double() for x in (z, y, w, pw)]
    for actual, wanted in zip(outputs, reference.bce_with_logits(*wide, 0.25), strict=True):
        _close(actual, wanted, dtype)
    x = wide[0].requires_grad_()
    weight, pos_weight = (v if v.numel() else None for v in wide[2:])
    value = 0.25 * F.binary_cross_entropy_with_logits(x, wide[1], weight, pos_weight=pos_weight, reduction="sum")
    g = _gradient(value, x)
    _close(outputs[0], value.detach(), dtype)
    _close(outputs[1], g.detach(), dtype)
    _close(outputs[2], torch.autograd.grad(g.sum(), x)[0], dtype)


def test_bce_keeps_its_digits_for_large_logits(device: torch.device, dtype: torch.dtype) -> None:
    z = torch.tensor([[25.0, -25.0, 1e4, -1e4]], dtype=dtype, device=device)
    y = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=dtype, device=device)
    none = z.new_empty(0)
    loss, delta, curvature = (x.cpu().double() for x in _ops.bce_with_logits(z, y, none, none, 1.0))
    e = math.exp(-25.0)
    rtol = 32 * torch.finfo(dtype).eps
    assert loss.item() == pytest.approx(2 * math.log1p(e), rel=rtol)
    wanted = torch.tensor([[-e / (1 + e), e / (1 + e), 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(delta, wanted, rtol=rtol, atol=0)
    torch.testing.assert_close(curvature, wanted.abs() / (1 + e), rtol=rtol, atol=0)


@pytest.mark.parametrize("shape", [(0, 3), (1,), (7, 3), (100, 101)])
def test_mse_matches_twin_and_autograd(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> None:
    z, y = torch.randn(shape).to(device, dtype), torch.randn(shape).to(device, dtype)
    outputs = _ops.mse(z, y, 0.125)
    for actual, wanted in zip(outputs, reference.mse(z.double(), y.double(), 0.125), strict=True):
        _close(actual, wanted, dtype)
    x = z.double().requires_grad_()
    value = 0.125 * F.mse_loss(x, y.double(), reduction="sum")
    _close(outputs[1], torch.autograd.grad(value, x)[0], dtype)


def test_losses_do_not_depend_on_the_thread_count(dtype: torch.dtype) -> None:
    z, y = torch.randn(3000, 11, dtype=dtype), torch.rand(3000, 11, dtype=dtype)
    none, threads = z.new_empty(0), torch.get_num_threads()

    def losses() -> list[Tensor]:
        return [_ops.cross_entropy(z, y)[0], _ops.bce_with_logits(z, y, none, none, 1.0)[0], _ops.mse(z, y, 1.0)[0]]

    try:
        torch.set_num_threads(1)
        one = losses()
        torch.set_num_threads(2)
        assert all(torch.equal(a, b) for a, b in zip(one, losses(), strict=True))
    finally:
        torch.set_num_threads(threads)
