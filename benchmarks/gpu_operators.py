"""The native operators with arguments to check them with: small and odd. Those to time them with: gpu_large.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from problems import Problem
from torch import Tensor

import chaos_ext as ce
from chaos_ext import _ops

Args = tuple


@dataclass(frozen=True)
class Operator:
    """One operator, and what of it is compared with its twin.

    Attributes:
        name: in ``_ops`` and ``reference``.
        written: indices of the arguments that it writes to.
        results: indices of the results that are compared; None: all.
        summed: results are partial sums over axis 0, as many as the device likes.
        cpu_only: has no CUDA kernel.
    """

    name: str
    written: tuple[int, ...] = ()
    results: tuple[int, ...] | None = None
    summed: bool = False
    cpu_only: bool = False


OPERATORS = (
    Operator("use_huge_pages_", written=(0,)),
    Operator("activation"),
    Operator("conv_lanes_", written=(0,)),
    Operator("norm_tangent_", written=(0,)),
    Operator("norm_tangent_backward_", written=(0, 1, 2)),
    Operator("cross_entropy"),
    Operator("cross_entropy_labels"),
    Operator("cross_entropy_tangent"),
    Operator("bce_with_logits"),
    Operator("mse"),
    Operator("hessian_block_", written=(0,)),
    Operator("tridiagonalise", results=(1, 2), cpu_only=True),  # reflectors have any length
    Operator("tridiagonal_ql", results=(0,), cpu_only=True),  # the twin's sweeps are others
    Operator("tridiagonal_apply", cpu_only=True),
    Operator("tangent_product"),
    Operator("tangent_update_", written=(0,), summed=True),
    Operator("projected_sgd_", written=(0, 4)),
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
# Sizes of X, W and Z, stride, padding, dilation, groups
CONVOLUTIONS = {
    "plain": ({"X": (2, 3, 5, 6), "W": (4, 3, 3, 2), "Z": (2, 4, 3, 5)}, [1, 1], [0, 0], [1, 1], 1),
    "groups": ({"X": (3, 4, 6, 5), "W": (6, 2, 3, 3), "Z": (3, 6, 3, 7)}, [2, 1], [1, 2], [1, 1], 2),
    "dilated": ({"X": (1, 3, 7, 7), "W": (3, 1, 2, 3), "Z": (1, 3, 9, 3)}, [1, 2], [2, 1], [2, 2], 3),
}
NORMS = [(3, 4, 5, 16), (2, 3, 7, 1), (1, 5, 6, 70)]
ORDERS = [1, 2, 5, 20]
# N, O_s, I_s, O_t, I_t
BLOCKS = [(1, 1, 1, 1, 1), (3, 2, 5, 4, 3), (8, 7, 33, 5, 17), (17, 3, 65, 9, 21), (40, 20, 50, 10, 20)]


def targets(n: int, c: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
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
        yield f"{n, c}", (torch.randn(n, c, dtype=dtype), targets(n, c, dtype))


def _cross_entropy_labels(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for n, c in SHAPES:
        yield f"{n, c}", (torch.randn(n, c, dtype=dtype), torch.randint(-1, c + 1, (n,)), 0.7, 0.1)


def _use_huge_pages(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for shape in SHAPES:
        yield f"{shape}", (torch.randn(shape, dtype=dtype),)


def _conv_lanes(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for name, (sizes, *options) in CONVOLUTIONS.items():
        for kind, roles in enumerate(_ops.CONV_ROLES):
            out, lanes = (torch.randn(*sizes[r], 5, dtype=dtype) for r in roles[:2])
            scalars = torch.randn(sizes[roles[2]], dtype=dtype)
            yield f"{name} kind {kind}", (out, scalars, lanes, kind, *options, kind % 2 == 1)


def normalisation(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> tuple[Args, Args]:
    """Arguments of norm_tangent_ and of norm_tangent_backward_ for entries [B, G, M] and k columns."""
    B, G, M, k = shape

    def r(*sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=dtype, device=device)

    x = r(B, G, M)
    inverse = x.var((0, 2), correction=0).rsqrt()
    xh = (x - x.mean((0, 2), keepdim=True)) * inverse[:, None]
    parameters = r(G), r(G, k)
    forward = (r(*shape), xh, inverse, r(*shape), *parameters, r(G, k))
    return forward, (r(*shape), r(G, k), r(G, k), xh, inverse, r(B, G, M), r(*shape), r(*shape), *parameters)


def _norm_tangent(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for shape in NORMS:
        args = normalisation(shape, dtype)[0]
        yield f"{shape}", args
        yield f"{shape} without parameters", (args[0].clone(), *args[1:4], None, None, None)


def _norm_tangent_backward(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for shape in NORMS:
        args = normalisation(shape, dtype)[1]
        yield f"{shape}", args
        yield f"{shape} without parameters", (*(t.clone() for t in args[:3]), *args[3:8], None, None)


def _symmetric(n: int, dtype: torch.dtype) -> Tensor:
    S = torch.randn(n, n, dtype=dtype)
    return S + S.T


def _tridiagonalise(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for n in ORDERS:
        yield f"{n}", (_symmetric(n, dtype),)


def _tridiagonal_ql(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for n in ORDERS:
        yield f"{n}", (*_ops.tridiagonalise(_symmetric(n, dtype))[1:], 1e-17)


def _tridiagonal_apply(dtype: torch.dtype) -> Iterator[tuple[str, Args]]:
    for n in ORDERS:
        reflectors, d, e = _ops.tridiagonalise(_symmetric(n, dtype))
        rotations = _ops.tridiagonal_ql(d, e, 1e-17)[1:]
        for transpose in (False, True):
            x = torch.randn(3, n, dtype=torch.float64)
            yield f"{n} {transpose}", (reflectors, *rotations, x, transpose)


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
    places: list[int] = []
    coefficients: list[float] = []
    first = 0
    for i, o in zip(problem.sizes, problem.sizes[1:], strict=False):
        for size in (o * i, o):
            places += _ops.SlotRecord(_ops.MOMENTUM, first, size, problem.P + first)
            coefficients += _ops.CoefficientRecord(decay=0.01, mu=0.9, c1=1e-3, e2=1.0)
            first += size
    return [], places, coefficients


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
    "use_huge_pages_": _use_huge_pages,
    "activation": _activation,
    "conv_lanes_": _conv_lanes,
    "norm_tangent_": _norm_tangent,
    "norm_tangent_backward_": _norm_tangent_backward,
    "cross_entropy": _cross_entropy,
    "cross_entropy_labels": _cross_entropy_labels,
    "cross_entropy_tangent": _cross_entropy_tangent,
    "bce_with_logits": _bce,
    "mse": _mse,
    "hessian_block_": _hessian_block,
    "tridiagonalise": _tridiagonalise,
    "tridiagonal_ql": _tridiagonal_ql,
    "tridiagonal_apply": _tridiagonal_apply,
    "projected_sgd_": _projected_sgd,
    "tangent_product": _tangent_product,
    "tangent_update_": _tangent_update,
}
