"""activation: value and two derivatives are torch's own, at kinks and far out too, and lose no digits anywhere."""

import math

import pytest
import torch

from chaos_ext import _ops, reference

# kind, alpha, beta
CASES = {
    "relu": (_ops.RELU, 0.0, 0.0),
    "leaky_relu": (_ops.LEAKY_RELU, 0.2, 0.0),
    "elu": (_ops.ELU, 1.0, 0.0),
    "elu_alpha": (_ops.ELU, 0.7, 0.0),
    "selu": (_ops.SELU, 0.0, 0.0),
    "celu": (_ops.CELU, 1.0, 0.0),
    "celu_alpha": (_ops.CELU, 2.5, 0.0),
    "sigmoid": (_ops.SIGMOID, 0.0, 0.0),
    "tanh": (_ops.TANH, 0.0, 0.0),
    "softplus": (_ops.SOFTPLUS, 1.0, 20.0),
    "softplus_beta": (_ops.SOFTPLUS, 2.0, 3.0),
    "silu": (_ops.SILU, 0.0, 0.0),
    "gelu": (_ops.GELU_ERF, 0.0, 0.0),
    "gelu_tanh": (_ops.GELU_TANH, 0.0, 0.0),
    "hardtanh": (_ops.HARDTANH, -1.0, 1.0),
    "relu6": (_ops.HARDTANH, 0.0, 6.0),
}
KINKS = [0.0, -0.0, 1.0, -1.0, 6.0, 1.5, 20.0, 1.4999999, 1.5000001, -1e-30, 1e-30]


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> tuple[int, float, float]:
    return request.param


def _points(dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([torch.tensor(KINKS), torch.linspace(-30, 30, 601), 3 * torch.randn(4000)]).to(dtype)


def test_is_torchs_double_backward(case: tuple[int, float, float], device: torch.device, dtype: torch.dtype) -> None:
    z = _points(dtype)
    expected = reference.activation(z.double(), *case)
    tol = {"rtol": 1e-10, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    for actual, wanted in zip(_ops.activation(z.to(device), *case), expected, strict=True):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.cpu().double(), wanted, **tol)


def test_kinks_follow_torch_in_its_own_dtype(case: tuple[int, float, float], dtype: torch.dtype) -> None:
    """Which side of a threshold a point is on depends on rounding: compare in the same dtype."""
    z = torch.tensor(KINKS, dtype=dtype)
    for actual, wanted in zip(_ops.activation(z, *case), reference.activation(z, *case), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)


def test_large_arguments_stay_finite(case: tuple[int, float, float], device: torch.device, dtype: torch.dtype) -> None:
    big = torch.tensor([50.0, 100.0, 1e3, 1e10, 1e30], dtype=dtype, device=device)
    z = torch.cat([-big, big])
    for value in _ops.activation(z, *case):
        assert value.isfinite().all()


def test_nan_propagates(case: tuple[int, float, float], device: torch.device) -> None:
    a, d1, d2 = _ops.activation(torch.tensor([math.nan, 1.0], device=device), *case)
    assert a[0].isnan()
    assert d1[0].isnan()
    assert d2.numel() == 0 or d2[0].isnan()
    assert not a[1].isnan()


@pytest.mark.parametrize("z", [-1.0, 1.0], ids=["negative", "positive"])
def test_own_exponential_is_as_good_as_libms(z: float, device: torch.device, dtype: torch.dtype) -> None:
    """Values of sigmoid, tanh, softplus and elu to a few ulp, from subnormal to saturated arguments."""
    at = (z * torch.logspace(-8, 1.9, 5000, dtype=torch.float64)).to(dtype)
    wide = at.double()
    cases = {
        (_ops.SIGMOID, 0.0, 0.0): torch.sigmoid(wide),
        (_ops.TANH, 0.0, 0.0): torch.tanh(wide),
        (_ops.SOFTPLUS, 1.0, 100.0): wide.clamp(min=0) + torch.log1p(torch.exp(-wide.abs())),
        (_ops.ELU, 1.0, 0.0): torch.where(wide > 0, wide, torch.expm1(wide)),
    }
    info = torch.finfo(dtype)
    for case, wanted in cases.items():
        actual = _ops.activation(at.to(device), *case)[0].cpu().double()
        torch.testing.assert_close(actual, wanted, rtol=8 * info.eps, atol=info.tiny * info.eps)


@pytest.mark.parametrize("z", [5.0, 12.0, 30.0, 80.0])
def test_sigmoid_and_tanh_keep_relative_accuracy(z: float, device: torch.device, dtype: torch.dtype) -> None:
    """sigma(1 - sigma) -> e^-z and sech^2 -> 4 e^-2z, where 1 - sigma and 1 - tanh^2 would be 0."""
    e = math.exp(-z)
    at = torch.tensor([z, -z], dtype=dtype, device=device)
    rtol = 64 * torch.finfo(dtype).eps
    d1 = _ops.activation(at, _ops.SIGMOID)[1].cpu().double()
    torch.testing.assert_close(d1, torch.full((2,), e / (1 + e) ** 2, dtype=torch.float64), rtol=rtol, atol=0)
    if z <= 30:
        d1 = _ops.activation(at, _ops.TANH)[1].cpu().double()
        wanted = 4 * e**2 / (1 + e**2) ** 2
        torch.testing.assert_close(d1, torch.full((2,), wanted, dtype=torch.float64), rtol=4 * z * rtol, atol=0)


def test_odd_second_derivatives_keep_relative_accuracy_at_zero(device: torch.device, dtype: torch.dtype) -> None:
    z = torch.tensor([1e-6, -1e-9], dtype=dtype, device=device)
    wanted = -z.cpu().double() / 8  # sigma'' = -z / 8 + O(z^3)
    torch.testing.assert_close(_ops.activation(z, _ops.SIGMOID)[2].cpu().double(), wanted, rtol=1e-6, atol=0)


def test_shapes(device: torch.device) -> None:
    for shape in [(), (0,), (2, 0, 3), (2, 3, 4)]:
        a, d1, d2 = _ops.activation(torch.randn(shape, device=device), _ops.TANH)
        assert a.shape == d1.shape == d2.shape == shape
    assert _ops.activation(torch.randn(2, 3, device=device), _ops.RELU)[2].shape == (0,)
