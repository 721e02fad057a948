"""The native operators with arguments to check them with (small, odd) and to time them with (beyond the caches).

A large case comes with the bytes that it must read and write at least once, and its floating point operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from problems import CASES, Problem
from torch import Tensor

import chaos_ext as ce
from chaos_ext import _ops

Args = tuple
Large = tuple[str, Callable[[torch.device], Args], float, float]


@dataclass(frozen=True)
class Operator:
    """Its name in ``_ops`` and ``reference``, and the indices of the arguments that it writes to."""

    name: str
    written: tuple[int, ...] = ()


OPERATORS = (
    Operator("activation"),
    Operator("cross_entropy"),
    Operator("cross_entropy_tangent"),
    Operator("bce_with_logits"),
    Operator("mse"),
    Operator("hessian_block_", written=(0,)),
    Operator("projected_sgd_", written=(0, 4)),
    Operator("tangent_product"),
    Operator("tangent_update_", written=(0,)),
)

# kind, alpha, beta
ACTIVATIONS = {
    "relu": (_ops.RELU, 0.0, 0.0),
    "leaky_relu": (_ops.LEAKY_RELU, 0.2, 0.0),
    "elu": (_ops.ELU, 0.7, 0.0),
    "selu": (_ops.SELU, 0.0, 0.0),
    "celu": (_ops.CELU, 0.5, 0.0),
    "sigmoid": (_ops.SIGMOID, 0.0, 0.0),
    "tanh": (_ops.TANH, 0.0, 0.0),
    "softplus": (_ops.SOFTPLUS, 2.0, 3.0),
    "silu": (_ops.SILU, 0.0, 0.0),
    "gelu": (_ops.GELU_ERF, 0.0, 0.0),
    "gelu_tanh": (_ops.GELU_TANH, 0.0, 0.0),
    "hardtanh": (_ops.HARDTANH, -0.5, 1.0),
}
SHAPES = [(1, 2), (3, 5), (37, 10), (8, 1025)]
# N, O_s, I_s, O_t, I_t
BLOCKS = [(1, 1, 1, 1, 1), (3, 2, 5, 4, 3), (8, 7, 33, 5, 17), (17, 3, 65, 9, 21), (40, 20, 50, 10, 20)]
LARGE_BLOCKS = {"N = 8": (8, 20, 784, 10, 20), "N = 128": (128, 20, 784, 10, 20), "wide": (8, 100, 256, 100, 100)}


def _targets(n: int, c: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Smoothed class probabilities."""
    return torch.rand(n, c, device=device, dtype=dtype).softmax(1) / n


def small_cases(op: Operator, dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    """Label and arguments, on the CPU, drawn in the dtype under test: the twin sees the very same numbers."""
    torch.manual_seed(0)
    yield from _SMALL[op.name](dtype)


def _activation(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for name, case in ACTIVATIONS.items():
        for shape in SHAPES:
            yield f"{name} {shape}", (torch.randn(shape, dtype=dtype) * 3, *case)


def _cross_entropy(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for n, c in SHAPES:
        yield f"{n, c}", (torch.randn(n, c, dtype=dtype), _targets(n, c, dtype))


def _cross_entropy_tangent(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for n, c in SHAPES:
        p, s = torch.randn(n, c, dtype=dtype).softmax(1), torch.rand(n, dtype=dtype)
        yield f"{n, c}", (p, s, torch.randn(n, c, 6, dtype=dtype))


def _bce(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for shape in SHAPES:
        z, y, w, pw = torch.randn(shape, dtype=dtype), *(torch.rand(shape, dtype=dtype) for _ in range(3))
        yield f"{shape} weights", (z, y, w, pw, 0.3)
        yield f"{shape} plain", (z, y, z.new_empty(0), z.new_empty(0), 0.3)


def _mse(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for shape in SHAPES:
        yield f"{shape}", (torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype), 0.3)


def two_layers(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> Args:
    """The block of a layer's weight and bias with a later layer's, in a matrix that holds just these."""
    n, o_s, i_s, o_t, i_t = sizes
    own, other = o_s * (i_s + 1), o_t * (i_t + 1)

    def r(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    H = torch.zeros(own + other, own + other, dtype=dtype, device=device)
    tensors = (r(n, i_s), r(o_s, n, o_t), r(n, i_t), r(n, o_t), r(o_s, n, i_t))
    return (H, *tensors, 0, o_s * i_s, own, own + o_t * i_t, False)


def one_layer(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> Args:
    """The block of a layer's weight and bias with themselves."""
    n, o, i = sizes[:3]
    H = torch.zeros(o * (i + 1), o * (i + 1), dtype=dtype, device=device)
    a, K = (torch.randn(s, dtype=dtype, device=device) for s in ((n, i), (o, n, o)))
    K = K + K.permute(2, 1, 0)
    return (H, a, K.contiguous(), a, None, None, 0, o * i, 0, o * i, True)


def _hessian_block(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for sizes in BLOCKS:
        yield f"two layers {sizes}", two_layers(sizes, dtype)
        yield f"one layer {sizes[:3]}", one_layer(sizes, dtype)


def _projected_sgd(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for o, i in SHAPES:
        param, grad, buf = (torch.randn(o, i, dtype=dtype) for _ in range(3))
        L, R = torch.randn(o, 4, dtype=dtype), torch.randn(4, i, dtype=dtype)
        yield f"{o, i} plain", (param, grad, L, R, None, True, 0.1, 0.0, 0.0, 0.0, False, False)
        yield f"{o, i} momentum", (param, grad, L, R, buf, False, 0.1, 0.9, 0.1, 0.01, False, True)
        yield f"{o, i} nesterov", (param, grad, L, R, buf.clone(), False, 0.1, 0.9, 0.0, 0.01, True, False)


def sweep(problem: Problem, dtype: torch.dtype, device: torch.device | None = None) -> tuple[int, Args]:
    """P and the lists of the native sweep of an MLP."""
    model, loss_fn, x, y = problem.build(dtype)
    op = ce.HessianOperator(model, loss_fn, x, y)
    native = op.native_sweep()
    assert native is not None
    operands = [t.to(device) for t in native.operands]
    return problem.P, (operands, native.values, native.nodes, native.factors)


def momentum_slots(problem: Problem) -> Args:
    """The last lists of an update, for momentum: its rows lie behind theta."""
    places, first = [], 0
    for i, o in zip(problem.sizes, problem.sizes[1:], strict=False):
        for size in (o * i, o):
            places += [_ops.MOMENTUM, first, size, problem.P + first, 0]
            first += size
    return [], places, [0.01, 0.9, 1e-3, 0.0, 1.0, 0.0, 1.0] * (len(places) // 5)


SWEEPS = [Problem((3, 2), 1), Problem((9, 7, 5), 4), Problem((33, 12, 10, 4), 17)]


def _tangent_product(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for problem in SWEEPS:
        P, lists = sweep(problem, dtype)
        for k in (1, 37):
            yield f"{problem.title}, {k} columns", (torch.randn(P, k, dtype=dtype), *lists)


def _tangent_update(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for problem in SWEEPS:
        P, lists = sweep(problem, dtype)
        last, Y, HY = momentum_slots(problem), torch.randn(2 * P, 37, dtype=dtype), torch.randn(P, 37, dtype=dtype)
        yield f"{problem.title}, swept", (Y, None, *lists, *last)
        yield f"{problem.title}, given", (Y.clone(), HY, [], [], [], [], *last)


_SMALL: dict[str, Callable[[torch.dtype], Iterator[tuple[str, Args]]]] = {
    "activation": _activation,
    "cross_entropy": _cross_entropy,
    "cross_entropy_tangent": _cross_entropy_tangent,
    "bce_with_logits": _bce,
    "mse": _mse,
    "hessian_block_": _hessian_block,
    "projected_sgd_": _projected_sgd,
    "tangent_product": _tangent_product,
    "tangent_update_": _tangent_update,
}


def large_cases(op: Operator, dtype: torch.dtype) -> Iterator[Large]:
    """Label, a function that makes the arguments on a device, bytes moved, flops."""
    yield from _LARGE[op.name](dtype, dtype.itemsize)


def _large_activation(dtype: torch.dtype, item: int) -> Iterator[Large]:
    n = 1 << 26
    for name in ("relu", "tanh", "softplus", "gelu"):
        kind = ACTIVATIONS[name]
        passes = 3 if kind[0] in _ops.PIECEWISE_LINEAR else 4
        yield name, lambda d, k=kind: (torch.randn(n, dtype=dtype, device=d), *k), passes * n * item, 0.0


def _large_cross_entropy(dtype: torch.dtype, item: int) -> Iterator[Large]:
    for n, c in ((1 << 22, 10), (1 << 16, 1000)):

        def make(d: torch.device, n: int = n, c: int = c) -> Args:
            return torch.randn(n, c, dtype=dtype, device=d), _targets(n, c, dtype, d)

        yield f"{n} x {c}", make, 4 * n * c * item, 0.0


def _large_tangent(dtype: torch.dtype, item: int) -> Iterator[Large]:
    n, c, k = 4096, 10, 1024

    def make(d: torch.device) -> Args:
        p, s = _targets(n, c, dtype, d) * n, torch.rand(n, dtype=dtype, device=d)
        return p, s, torch.randn(n, c, k, dtype=dtype, device=d)

    yield f"{n} x {c} x {k}", make, (2 * k + 1) * n * c * item, 4.0 * k * n * c


def _large_bce(dtype: torch.dtype, item: int) -> Iterator[Large]:
    n = 1 << 25

    def make(d: torch.device) -> Args:
        return (*(torch.rand(n // 16, 16, dtype=dtype, device=d) for _ in range(4)), 0.3)

    yield f"{n}, weights", make, 6 * n * item, 0.0


def _large_mse(dtype: torch.dtype, item: int) -> Iterator[Large]:
    n = 1 << 26
    yield f"{n}", lambda d: (*(torch.randn(n, dtype=dtype, device=d) for _ in range(2)), 0.3), 3 * n * item, 0.0


def _large_block(dtype: torch.dtype, item: int) -> Iterator[Large]:
    """Written: every entry of the block, and of its transpose. Flops: each value once, by symmetry."""
    for label, sizes in LARGE_BLOCKS.items():
        n, own, other = sizes[0], sizes[1] * (sizes[2] + 1), sizes[3] * (sizes[4] + 1)
        yield f"one layer, {label}", lambda d, s=sizes: one_layer(s, dtype, d), own * own * item, n * own * own
        written, flops = 2 * own * other * item, 4 * n * own * other
        yield f"two layers, {label}", lambda d, s=sizes: two_layers(s, dtype, d), written, flops


def _large_sgd(dtype: torch.dtype, item: int) -> Iterator[Large]:
    o, i, q = 8192, 8192, 16

    def make(d: torch.device, momentum: float) -> Args:
        param, grad, buf = (torch.randn(o, i, dtype=dtype, device=d) for _ in range(3))
        L, R = torch.randn(o, q, dtype=dtype, device=d), torch.randn(q, i, dtype=dtype, device=d)
        return param, grad, L, R, buf if momentum else None, False, 1e-6, momentum, 0.0, 0.0, False, False

    yield "plain, rank 16", lambda d: make(d, 0.0), 3 * o * i * item, 2 * q * o * i
    yield "momentum, rank 16", lambda d: make(d, 0.9), 5 * o * i * item, 2 * q * o * i


def _sweep_flops(problem: Problem) -> float:
    """Of one column: 4 N |W| of a first layer, 12 N |W| of the others."""
    sizes = problem.sizes
    return sum((4 if n == 0 else 12) * problem.batch * sizes[n] * sizes[n + 1] for n in range(len(sizes) - 1))


def _large_product(dtype: torch.dtype, item: int) -> Iterator[Large]:
    for case in ("a", "b"):
        problem = CASES[case]
        P = problem.P

        def make(d: torch.device, problem: Problem = problem) -> Args:
            return torch.randn(problem.P, problem.P, dtype=dtype, device=d), *sweep(problem, dtype, d)[1]

        yield f"({case}) {problem.title}", make, 2 * P * P * item, P * _sweep_flops(problem)


def _large_update(dtype: torch.dtype, item: int) -> Iterator[Large]:
    for case in ("a", "b"):
        problem = CASES[case]
        P = problem.P

        def make(d: torch.device, problem: Problem = problem) -> Args:
            Y = torch.randn(2 * problem.P, problem.P, dtype=dtype, device=d) / problem.P
            return Y, None, *sweep(problem, dtype, d)[1], *momentum_slots(problem)

        yield f"({case}) {problem.title}, momentum", make, 4 * P * P * item, P * _sweep_flops(problem)


_LARGE: dict[str, Callable[[torch.dtype, int], Iterator[Large]]] = {
    "activation": _large_activation,
    "cross_entropy": _large_cross_entropy,
    "cross_entropy_tangent": _large_tangent,
    "bce_with_logits": _large_bce,
    "mse": _large_mse,
    "hessian_block_": _large_block,
    "projected_sgd_": _large_sgd,
    "tangent_product": _large_product,
    "tangent_update_": _large_update,
}
