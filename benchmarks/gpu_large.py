"""The native operators with arguments to time them with, beyond the caches.

A case comes with the bytes that it must read and write at least once, and its floating point operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from gpu_operators import (
    ACTIVATIONS,
    Args,
    Operator,
    momentum_slots,
    normalisation,
    one_layer,
    sweep,
    targets,
    two_layers,
)
from problems import CASES, Problem

from chaos_ext import _ops

Large = tuple[str, Callable[[torch.device], Args], float, float]
LARGE_BLOCKS = {"N = 8": (8, 20, 784, 10, 20), "N = 128": (128, 20, 784, 10, 20), "wide": (8, 100, 256, 100, 100)}


def large_cases(op: Operator, dtype: torch.dtype) -> Iterator[Large]:
    """Label, a function that makes the arguments on a device, bytes moved, flops."""
    yield from _LARGE[op.name](dtype, dtype.itemsize)


def is_timed(op: Operator) -> bool:
    return op.name in _LARGE


def _large_activation(dtype: torch.dtype, item: int) -> Iterator[Large]:
    n = 1 << 26
    for name in ("relu", "tanh", "softplus", "gelu"):
        kind = ACTIVATIONS[name]
        passes = 3 if kind[0] in _ops.PIECEWISE_LINEAR else 4
        yield name, lambda d, k=kind: (torch.randn(n, dtype=dtype, device=d), *k), passes * n * item, 0.0


def _large_cross_entropy(dtype: torch.dtype, item: int) -> Iterator[Large]:
    for n, c in ((1 << 22, 10), (1 << 16, 1000)):

        def make(d: torch.device, n: int = n, c: int = c) -> Args:
            return torch.randn(n, c, dtype=dtype, device=d), targets(n, c, dtype, d)

        yield f"{n} x {c}", make, 4 * n * c * item, 0.0


def _large_labels(dtype: torch.dtype, item: int) -> Iterator[Large]:
    n, c = 1 << 22, 10

    def make(d: torch.device) -> Args:
        return torch.randn(n, c, dtype=dtype, device=d), torch.randint(c, (n,), device=d), 1.0 / n, 0.0

    yield f"{n} x {c}", make, 3 * n * c * item, 0.0


def _large_conv(dtype: torch.dtype, item: int) -> Iterator[Large]:
    """A 3 x 3 convolution of 16 to 32 channels on 28 x 28 pixels; the weight or its tangent is small."""
    n, c, o, size, k = 32, 16, 32, 28, 64
    shapes = {"X": (n, c, size, size), "W": (o, c, 3, 3), "Z": (n, o, size, size)}
    flops = 2.0 * n * o * size**2 * c * 9 * k
    for kind, roles in enumerate(_ops.CONV_ROLES):

        def make(d: torch.device, kind: int = kind, roles: str = roles) -> Args:
            out, lanes = (torch.randn(*shapes[r], k, dtype=dtype, device=d) for r in roles[:2])
            scalars = torch.randn(shapes[roles[2]], dtype=dtype, device=d)
            return out, scalars, lanes, kind, [1, 1], [1, 1], [1, 1], 1, False

        moved = sum(torch.Size(shapes[r]).numel() * (k if i < 2 else 1) for i, r in enumerate(roles)) * item
        yield f"{roles[0]} from {roles[1]}, {k} columns", make, moved, flops


_NORM = (64, 32, 196, 64)


def _large_norm(dtype: torch.dtype, item: int) -> Iterator[Large]:
    moved, numbers = 2 * torch.Size(_NORM).numel() * item, torch.Size(_NORM).numel()
    yield f"{_NORM}", lambda d: normalisation(_NORM, dtype, d)[0], moved, 6.0 * numbers


def _large_norm_backward(dtype: torch.dtype, item: int) -> Iterator[Large]:
    moved, numbers = 3 * torch.Size(_NORM).numel() * item, torch.Size(_NORM).numel()
    yield f"{_NORM}", lambda d: normalisation(_NORM, dtype, d)[1], moved, 16.0 * numbers


def _large_tangent(dtype: torch.dtype, item: int) -> Iterator[Large]:
    n, c, k = 4096, 10, 1024

    def make(d: torch.device) -> Args:
        p, s = targets(n, c, dtype, d) * n, torch.rand(n, dtype=dtype, device=d)
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
    "conv_lanes_": _large_conv,
    "norm_tangent_": _large_norm,
    "norm_tangent_backward_": _large_norm_backward,
    "cross_entropy": _large_cross_entropy,
    "cross_entropy_labels": _large_labels,
    "cross_entropy_tangent": _large_tangent,
    "bce_with_logits": _large_bce,
    "mse": _large_mse,
    "hessian_block_": _large_block,
    "projected_sgd_": _large_sgd,
    "tangent_product": _large_product,
    "tangent_update_": _large_update,
}
