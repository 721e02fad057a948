"""What all operators promise: a consistent schema and meta kernel, and errors that name the argument and the remedy."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeps import parameters, program, slots
from torch import Tensor

from chaos_ext import _ops

OPS = torch.ops.chaos_ext


CPU_ONLY = {"tridiagonalise", "tridiagonal_ql", "tridiagonal_apply"}


def _rotations(device: torch.device) -> tuple[Tensor, ...]:
    """Two sweeps of a matrix [5, 5]: order, sweeps, rotations."""
    sweeps = torch.tensor([[0, 4, 0], [1, 3, 4]], device=device)
    return torch.arange(5, device=device), sweeps, torch.rand(6, 2, dtype=torch.float64, device=device)


def _samples(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """One valid call of every operator."""

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, device=device, dtype=dtype)

    block = (rand(4, 3), rand(2, 4, 5), rand(4, 6), rand(4, 5), rand(2, 4, 6), 0, 6, 8, 38, False)
    own = (rand(4, 3), rand(2, 4, 2), rand(4, 3), None, None, 0, 6, 0, 6, True)
    P, (operands, *rest) = program("residual", dtype)
    lists = ([t.to(device) for t in operands], *rest)
    S, (vectors, *numbers) = slots("mixed", P, parameters(rest[1], operands), dtype)
    last = ([v.to(device) for v in vectors], *numbers)
    outs, norm = (rand(2, 3, 4, 5), rand(3, 5), rand(3, 5)), (rand(3), rand(3, 5))
    options, plain = (0.1, 0.9, 0.0, 0.01, True, False), (0.1, 0.0, 0.0, 0.0, False, False)
    return {
        "use_huge_pages_": (rand(3, 4),),
        "activation": (rand(3, 4), _ops.TANH, 0.0, 0.0),
        "activation (piecewise linear)": (rand(3, 4), _ops.RELU, 0.0, 0.0),
        "norm_tangent_": (rand(2, 3, 4, 5), rand(2, 3, 4), rand(3), rand(2, 3, 4, 5), *norm, rand(3, 5)),
        "norm_tangent_ (parameters only)": (rand(2, 3, 4, 5), rand(2, 3, 4), rand(3), None, *norm, None),
        "norm_tangent_backward_": (*outs, rand(2, 3, 4), rand(3), rand(2, 3, 4), *(rand(2, 3, 4, 5),) * 2, *norm),
        "cross_entropy": (rand(3, 4), rand(3, 4)),
        "cross_entropy_labels": (rand(3, 4), torch.tensor([3, 0, 1], device=device), 0.75, 0.0625),
        "cross_entropy_tangent": (rand(3, 4), rand(3), rand(3, 4, 2)),
        "bce_with_logits": (rand(3, 4), rand(3, 4), rand(3, 4), rand(0), 0.5),
        "mse": (rand(3, 4), rand(3, 4), 0.5),
        "hessian_block_": (rand(43, 43), *block),
        "hessian_block_ (same)": (rand(43, 43), *own),
        "tridiagonalise": (rand(5, 5),),
        "tridiagonal_ql": (rand(5).double(), rand(4).double(), 1e-16),
        "tridiagonal_apply": (rand(16, 16), *_rotations(device), rand(2, 5).double(), True),
        "tangent_product": (rand(P, 3), *lists),
        "tangent_update_": (rand(S, 3), None, *lists, *last),
        "tangent_update_ (given)": (rand(S, 3), rand(P, 3), [], [], [], [], *last),
        "projected_sgd_": (rand(3, 4), rand(3, 4), rand(3, 2), rand(2, 4), rand(3, 4), False, *options),
        "projected_sgd_ (no buf)": (rand(3, 4), rand(3, 4), rand(3, 0), rand(0, 4), None, False, *plain),
    }


NAMES = list(_samples(torch.device("cpu"), torch.float32))


def _skip_missing(name: str, device: torch.device) -> None:
    if name in CPU_ONLY and device.type != "cpu":
        pytest.skip("a CPU operator")


def _packet(name: str) -> Any:
    return getattr(OPS, name.split(" ")[0]).default


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, device: torch.device) -> None:
    """Schema (mutation, aliasing), autograd registration, meta kernel, and all of it under torch.compile's tracing."""
    _skip_missing(name, device)
    torch.library.opcheck(_packet(name), _samples(device, torch.float64)[name])


@pytest.mark.parametrize("name", NAMES)
def test_python_wrapper_is_the_operator(name: str, device: torch.device, dtype: torch.dtype) -> None:
    _skip_missing(name, device)
    args = _samples(device, dtype)[name]
    twin = [x.clone() if isinstance(x, Tensor) else x for x in args]
    results = getattr(_ops, name.split(" ")[0])(*args), _packet(name)(*twin)
    for a, b in zip([results[0], *args], [results[1], *twin], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_other_dtypes_are_refused(name: str, device: torch.device) -> None:
    _skip_missing(name, device)
    args = [x.to(torch.float16) if isinstance(x, Tensor) else x for x in _samples(device, torch.float32)[name]]
    with pytest.raises(RuntimeError, match=rf"{name.split(' ')[0]}: expected \w+ of dtype float(32|64).*, got Half"):
        _packet(name)(*args)


def _replaced(args: tuple[Any, ...], index: int, value: Any) -> list[Any]:
    return [value if i == index else x for i, x in enumerate(args)]


def _transposed(x: Tensor) -> Tensor:
    return x.T.contiguous().T


# operator, index of the argument, what it becomes, the message
BAD: list[tuple[str, int, Callable[[Any], Any], str]] = [
    ("use_huge_pages_", 0, _transposed, r"expected t contiguous"),
    ("activation", 0, _transposed, r"expected z contiguous .* strides \[1, 3\]"),
    ("activation", 1, lambda _: 12, r"expected kind in \[0, 12\), got 12"),
    ("norm_tangent_", 0, lambda x: x[0], r"expected out with 4 dimensions, got \[3, 4, 5\]"),
    ("norm_tangent_", 1, lambda x: x[:1], r"expected xh of shape \[2, 3, 4\], got \[1, 3, 4\]"),
    ("norm_tangent_", 3, lambda x: x.double(), r"expected d of the dtype of out \(Float\), got Double"),
    ("norm_tangent_", 6, lambda x: x[:2], r"expected dbeta of shape \[3, 5\], got \[2, 5\]"),
    ("norm_tangent_backward_", 2, _transposed, r"expected dbias contiguous .* strides \[1, 3\]"),
    ("norm_tangent_backward_", 5, lambda x: x[..., :1], r"expected delta of shape \[2, 3, 4\], got \[2, 3, 1\]"),
    ("norm_tangent_backward_", 7, lambda x: x[:, :2], r"expected ddelta of shape \[2, 3, 4, 5\]"),
    ("norm_tangent_backward_", 8, lambda x: x[:2], r"expected gamma of shape \[3\], got \[2\]"),
    ("cross_entropy", 0, lambda x: x[0], r"expected z with 2 dimensions, got \[4\]"),
    ("cross_entropy", 0, lambda x: x[:, :0], r"expected z with at least one class, got \[3, 0\]"),
    ("cross_entropy", 1, lambda x: x[:2], r"expected t of shape \[3, 4\], got \[2, 4\]"),
    ("cross_entropy", 1, lambda x: x.double(), r"expected t of the dtype of z \(Float\), got Double"),
    ("cross_entropy_labels", 0, lambda x: x[:, :0], r"expected z with at least one class, got \[3, 0\]"),
    ("cross_entropy_labels", 1, lambda x: x[:2], r"expected y of shape \[3\], got \[2\]"),
    ("cross_entropy_labels", 1, lambda x: x.int(), r"expected y of dtype int64, got Int"),
    ("cross_entropy_labels", 1, lambda x: x.repeat(2)[::2], r"expected y contiguous"),
    ("cross_entropy_tangent", 1, lambda x: x[:2], r"expected s of shape \[3\], got \[2\]"),
    ("cross_entropy_tangent", 2, lambda x: x[0], r"expected dz with 3 dimensions"),
    ("bce_with_logits", 1, lambda x: x.T, r"expected y of the shape of z \[3, 4\], got \[4, 3\]"),
    ("bce_with_logits", 2, lambda x: x[0], r"expected w of the shape of z \[3, 4\], got \[4\]"),
    ("mse", 1, _transposed, r"expected y contiguous"),
    ("hessian_block_", 0, lambda x: x[:, :40], r"expected H square, got \[43, 40\]"),
    ("hessian_block_", 0, _transposed, r"expected H with contiguous rows .* got strides \[1, 43\]"),
    ("hessian_block_", 1, lambda x: x[:2], r"expected K of shape \[2, 2, 5\], got \[2, 4, 5\]"),
    ("hessian_block_", 2, lambda _: None, r"expected K and a_t together, got only a_t"),
    ("hessian_block_", 5, lambda _: None, r"expected J and delta_t together, got only delta_t"),
    ("hessian_block_", 6, lambda _: 40, r"expected row_w \+ O I <= P = 43, got 40 \+ 2 \* 3"),
    ("hessian_block_", 7, lambda _: 5, r"expected disjoint row_w and row_b ranges, got 0 and 5"),
    ("hessian_block_", 8, lambda _: 7, r"expected disjoint row and column ranges unless same"),
    ("hessian_block_ (same)", 2, lambda _: None, r"expected K and no J, delta_t for same|expected K with a_t"),
    ("hessian_block_ (same)", 8, lambda _: 9, r"expected equal row and column offsets for same"),
    ("tridiagonalise", 0, lambda x: x[:3], r"expected S square, got \[3, 5\]"),
    ("tridiagonalise", 0, _transposed, r"expected S contiguous"),
    ("tridiagonal_ql", 1, lambda x: x[:3], r"expected e of shape \[4\], got \[3\]"),
    ("tridiagonal_ql", 2, lambda _: 1.0, r"expected 0 <= tol < 1, got 1"),
    ("tridiagonal_apply", 0, lambda x: x[:8], r"expected reflectors of shape \[16, 16\], got \[8, 16\]"),
    ("tridiagonal_apply", 1, lambda x: x.int(), r"expected order of dtype int64, got Int"),
    ("tridiagonal_apply", 2, lambda x: x[:, :2], r"expected sweeps of shape \[2, 3\], got \[2, 2\]"),
    ("tridiagonal_apply", 1, lambda x: x + 1, r"expected order within \[0, 5\), got 5"),
    ("tridiagonal_apply", 2, lambda x: x + 1, r"expected sweeps \(l, m, first\) .* got \(1, 5, 1\)"),
    ("tridiagonal_apply", 3, lambda x: x[:3], r"expected sweeps .* m - l of the 3 rotations .* got \(0, 4, 0\)"),
    ("tridiagonal_apply", 4, lambda x: x[0], r"expected x with 2 dimensions, got \[5\]"),
    ("tangent_product", 0, _transposed, r"expected Y with contiguous rows .* got strides \[1, 34\]"),
    ("tangent_product", 0, lambda x: x[0], r"expected Y with 2 dimensions, got \[3\]"),
    ("tangent_update_", 0, lambda x: x[:20], r"expected slots within Y's 20 rows"),
    ("tangent_update_ (given)", 1, lambda x: x[:, :2], r"expected HY with 3 columns like Y"),
    ("projected_sgd_", 2, lambda x: x[:2], r"expected L \[O, q\] and R .* O I = 12, got \[2, 2\] and \[2, 4\]"),
    ("projected_sgd_", 4, lambda _: None, r"expected buf with momentum or nesterov, got none with momentum 0.9"),
    ("projected_sgd_", 1, lambda x: x[0], r"expected grad of the shape of param \[3, 4\], got \[4\]"),
]


@pytest.mark.parametrize(("name", "index", "change", "message"), BAD)
def test_errors_name_the_argument(
    name: str, index: int, change: Callable[[Any], Any], message: str, device: torch.device
) -> None:
    _skip_missing(name, device)
    args = _samples(device, torch.float32)[name]
    with pytest.raises(RuntimeError, match=rf"{name.split(' ')[0]}: ({message})"):
        _packet(name)(*_replaced(args, index, change(args[index])))


@pytest.mark.cuda
def test_mixed_devices_are_refused() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    with pytest.raises(RuntimeError, match=r"mse: expected y on the device of z \(cuda:0\), got cpu"):
        _ops.mse(torch.rand(3, device="cuda"), torch.rand(3), 1.0)


def test_runs_under_compile_and_fake_tensors() -> None:
    """The meta kernels know shapes without running anything."""
    with torch._subclasses.FakeTensorMode():
        a, _, d2 = _ops.activation(torch.empty(5, 6), _ops.RELU)
        assert a.shape == (5, 6)
        assert d2.shape == (0,)
        loss, delta, _ = _ops.cross_entropy(*(torch.empty(5, 6, dtype=torch.float64) for _ in range(2)))
        assert loss.shape == ()
        assert delta.dtype == torch.float64


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_every_instruction_set(capability: str) -> None:
    """The other compiled variants, chosen as torch chooses its own: by ATEN_CPU_CAPABILITY, read once a process."""
    folder = Path(__file__).parent
    names = ("activation", "conv", "hessian_block", "norm", "projected_sgd", "tridiagonal", "tangent_sweep")
    files = [str(folder / f"test_ops_{name}.py") for name in names]
    selection = "cpu and not layer and not sgd or KJ and cpu or itself and both and cpu or caches and float32 or twin"
    selection += " or stride and cpu or absent and native or neighbours"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", selection, *files]
    env = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
