"""projected_sgd_: torch.optim.SGD along grad - L R, for all its options, over several steps."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from chaos_ext import _ops, reference

# shape of the parameter, O, I, q
SHAPES = [
    ((4, 6), 4, 6, 3),
    ((5,), 5, 1, 2),
    ((5,), 1, 5, 2),
    ((3, 2, 2, 2), 3, 8, 4),
    ((2, 700), 2, 700, 5),
    ((6, 7), 6, 7, 0),
]
OPTIONS = [
    {"momentum": m, "dampening": d, "weight_decay": w, "nesterov": n, "maximize": x}
    for m, d, w, n, x in itertools.product([0.0, 0.9], [0.0, 0.3], [0.0, 0.1], [False, True], [False, True])
    if not n or (m > 0 and d == 0)
]


def _tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}


def _rand(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{v}" for v in o.values()))
def test_is_torchs_sgd(options: dict[str, float | bool], device: torch.device, dtype: torch.dtype) -> None:
    theta = nn.Parameter(_rand(4, 6, dtype=torch.float64))
    sgd = torch.optim.SGD([theta], lr=0.05, foreach=False, fused=False, **options)
    param = theta.detach().clone().to(device, dtype)
    buf = torch.full_like(param, torch.nan) if options["momentum"] else None
    for step in range(3):
        grad, L, R = _rand(4, 6, dtype=dtype), _rand(4, 3, dtype=dtype), _rand(3, 6, dtype=dtype)
        theta.grad = grad.double() - L.double() @ R.double()
        sgd.step()
        _ops.projected_sgd_(param, *(x.to(device) for x in (grad, L, R)), buf, step == 0, 0.05, **options)
        torch.testing.assert_close(param.cpu().double(), theta.detach(), **_tolerance(dtype))


@pytest.mark.parametrize(("shape", "O", "I", "q"), SHAPES)
@pytest.mark.parametrize("first", [True, False])
def test_matches_twin(
    shape: tuple[int, ...], O: int, I: int, q: int, first: bool, device: torch.device, dtype: torch.dtype
) -> None:
    param, grad, buf = (_rand(*shape, dtype=dtype).to(device) for _ in range(3))
    L, R = _rand(O, q, dtype=dtype).to(device), _rand(q, I, dtype=dtype).to(device)
    wanted, wanted_buf = param.double(), buf.double()
    options = (0.1, 0.8, 0.2, 0.05, True, True)
    reference.projected_sgd_(wanted, grad.double(), L.double(), R.double(), wanted_buf, first, *options)
    _ops.projected_sgd_(param, grad, L, R, buf, first, *options)
    torch.testing.assert_close(param.double(), wanted, **_tolerance(dtype))
    torch.testing.assert_close(buf.double(), wanted_buf, **_tolerance(dtype))


def test_bits_do_not_depend_on_the_thread_count(dtype: torch.dtype) -> None:
    start, grad, L, R = (_rand(*s, dtype=dtype) for s in [(300, 400), (300, 400), (300, 9), (9, 400)])
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(start.clone())
            _ops.projected_sgd_(results[-1], grad, L, R, None, False, 0.1, 0.0, 0.0, 0.01, False, False)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_empty_parameter(device: torch.device) -> None:
    x = torch.empty(0, 3, device=device)
    _ops.projected_sgd_(x, x.clone(), x.new_empty(0, 2), x.new_empty(2, 3), None, False, 0.1, 0, 0, 0, False, False)
