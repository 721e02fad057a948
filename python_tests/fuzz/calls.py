"""A valid call of every operator, of random sizes: GENERATORS has all names of csrc/registration.cpp."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from sweeps import KINDS, PROGRAMS, parameters, program, slots
from torch import Tensor

from chaos_ext import _ops

Arguments = list[Any]
DTYPES = (torch.float64, torch.float32)


class Source:
    """Random sizes and tensors of one dtype."""

    def __init__(self, rng: Random) -> None:
        self.rng, self.dtype = rng, rng.choice(DTYPES)

    def size(self, most: int = 7) -> int:
        """Seldom 0."""
        return 0 if self.rng.random() < 0.03 else self.rng.randint(1, most)

    def sizes(self, count: int, most: int = 7) -> list[int]:
        return [self.size(most) for _ in range(count)]

    def columns(self) -> int:
        return self.rng.choice((0, 1, 1, 2, 3, 5, 8, 16, 17, 33))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(self.dtype)

    def positive(self, *shape: int) -> Tensor:
        return (torch.rand(shape, dtype=torch.float64) + 0.1).to(self.dtype)

    def maybe(self, make: Callable[..., Tensor], *shape: int) -> Tensor | None:
        return None if self.rng.random() < 0.3 else make(*shape)

    def flag(self) -> bool:
        return self.rng.random() < 0.5

    def number(self) -> float:
        return self.rng.choice((0.0, 0.5, 1.0, self.rng.uniform(-2, 2)))


def use_huge_pages_(s: Source) -> Arguments:
    return [s.normal(*s.sizes(s.rng.randint(0, 4)))]


def activation(s: Source) -> Arguments:
    # Of CELU 1 / alpha has to be exact in float32, to which torch rounds it.
    kind = s.rng.randrange(12)
    alpha = s.rng.choice((0.5, 1.0, 2.0)) if kind == _ops.CELU else s.rng.uniform(0.1, 1.5)
    return [s.normal(*s.sizes(s.rng.randint(0, 4))), kind, alpha, s.rng.uniform(2.1, 3.0)]


def conv_lanes_(s: Source) -> Arguments:
    k, groups = s.columns(), s.rng.choice((1, 1, 2, 3))
    N, c, o, H, W = s.size(3), s.rng.randint(1, 3), s.rng.randint(1, 4), s.rng.randint(1, 7), s.rng.randint(1, 7)
    kernel, movement = [s.rng.randint(1, 3) for _ in range(2)], [[s.rng.randint(1, 2) for _ in range(2)] for _ in "sd"]
    stride, dilation = movement
    padding = [s.rng.randint(0, 2) for _ in range(2)]
    reach = [n + 2 * p - d * (q - 1) - 1 for n, p, d, q in zip((H, W), padding, dilation, kernel)]
    if min(reach) < 0:
        return conv_lanes_(s)
    out = [r // m + 1 for r, m in zip(reach, stride)]
    shapes = {"X": (N, c * groups, H, W), "W": (o * groups, c, *kernel), "Z": (N, o * groups, *out)}
    kind = s.rng.randrange(6)
    to, lanes, scalars = (shapes[role] for role in _ops.CONV_ROLES[kind])
    operands = s.normal(*to, k), s.normal(*scalars), s.normal(*lanes, k)
    return [*operands, kind, stride, padding, dilation, groups, s.flag()]


def _normalised(s: Source, B: int, G: int, M: int) -> Tensor:
    x = torch.randn(B, G, M, dtype=torch.float64)
    x = x - x.mean((0, 2), keepdim=True) if B * M > 1 else x
    return (x / x.square().mean((0, 2), keepdim=True).sqrt()).to(s.dtype)


def norm_tangent_(s: Source) -> Arguments:
    (B, G, M), k = s.sizes(3, 5), s.columns()
    wide = s.maybe(s.normal, B, G, M, k)
    plain = _normalised(s, B, G, M), s.positive(G)
    return [s.normal(B, G, M, k), *plain, wide, s.maybe(s.normal, G), s.maybe(s.normal, G, k), s.maybe(s.normal, G, k)]


def norm_tangent_backward_(s: Source) -> Arguments:
    (B, G, M), k = s.sizes(3, 5), s.columns()
    outs = s.normal(B, G, M, k), s.normal(G, k), s.normal(G, k)
    plain, wide = (_normalised(s, B, G, M), s.positive(G), s.normal(B, G, M)), (B, G, M, k)
    given = s.maybe(s.normal, *wide), s.maybe(s.normal, *wide), s.maybe(s.normal, G), s.maybe(s.normal, G, k)
    return [*outs, *plain, *given]


def cross_entropy(s: Source) -> Arguments:
    N, C = s.size(), s.rng.randint(1, 12)
    return [s.normal(N, C), s.positive(N, C)]


def cross_entropy_labels(s: Source) -> Arguments:
    N, C = s.size(), s.rng.randint(1, 12)
    return [s.normal(N, C), torch.randint(-1, C + 1, (N,)), s.rng.uniform(0, 1), s.rng.choice((0.0, 0.1))]


def cross_entropy_tangent(s: Source) -> Arguments:
    N, C = s.size(), s.rng.randint(1, 12)
    return [s.normal(N, C).softmax(1), s.positive(N), s.normal(N, C, s.columns())]


def bce_with_logits(s: Source) -> Arguments:
    shape = s.sizes(s.rng.randint(1, 3))
    weights = [s.positive(*shape) if s.flag() else s.normal(0) for _ in "ab"]
    return [s.normal(*shape), torch.rand(shape).to(s.dtype), *weights, s.rng.uniform(0.1, 1)]


def mse(s: Source) -> Arguments:
    shape = s.sizes(s.rng.randint(0, 4))
    return [s.normal(*shape), s.normal(*shape), s.rng.uniform(0.1, 1)]


def _place(s: Source, first: int, O: int, I: int) -> tuple[int, int, int]:
    """Rows of a weight and a bias from ``first`` on, in any order or absent, and where they end."""
    if s.rng.random() < 0.15:
        return -1, first, first + O
    if s.rng.random() < 0.2:
        return first, -1, first + O * I
    return (first, first + O * I, first + O * I + O) if s.flag() else (first + O, first, first + O * I + O)


def hessian_block_(s: Source) -> Arguments:
    N, O, I, O_t, I_t = (s.rng.randint(1, n) for n in (20, 4, 6, 4, 6))
    row_w, row_b, end = _place(s, s.rng.randint(0, 3), O, I)
    if s.rng.random() < 0.4:
        places = row_w, row_b, row_w, row_b
        tensors = s.normal(N, I), s.normal(O, N, O), s.maybe(s.normal, N, I), None, None
    else:
        col_w, col_b, end = _place(s, end, O_t, I_t)
        places = row_w, row_b, col_w, col_b
        both, first = s.rng.random() < 0.4, s.flag()
        one = (s.normal(O, N, O_t), s.normal(N, I_t)) if both or first else (None, None)
        two = (s.normal(N, O_t), s.normal(O, N, I_t)) if both or not first else (None, None)
        tensors = s.normal(N, I), *one, *two
    P = end + s.rng.randint(0, 2)
    H = s.normal(P, P + s.rng.randint(0, 3))[:, :P]
    return [H, *tensors, *places, places[:2] == places[2:]]


def tridiagonalise(s: Source) -> Arguments:
    n = s.rng.choice((0, 1, 2, 3, 8, 16, 17, 33))
    A = s.normal(n, n)
    return [A + A.T]


def tridiagonal_ql(s: Source) -> Arguments:
    n = s.rng.choice((0, 1, 2, 3, 8, 20))
    d, e = torch.randn(n, dtype=torch.float64), torch.randn(max(n - 1, 0), dtype=torch.float64)
    return [d, e, s.rng.choice((0.0, 1e-16, 1e-8))]


def tridiagonal_apply(s: Source) -> Arguments:
    n, k = s.rng.choice((0, 1, 2, 3, 8, 17)), s.rng.choice((0, 1, 2, 3, 4, 5, 9))
    A = s.normal(n, n)
    reflectors, d, e = _ops.tridiagonalise(A + A.T)
    _, order, sweeps, rotations = _ops.tridiagonal_ql(d, e, 1e-16)
    x = torch.randn(k, n, dtype=torch.float64)
    return [reflectors, order, sweeps, rotations.contiguous(), x, s.flag()]


def tangent_product(s: Source) -> Arguments:
    P, lists = program(s.rng.choice(PROGRAMS), s.dtype)
    return [_rows(s, P, s.columns()), *lists]


def tangent_update_(s: Source) -> Arguments:
    P, lists = program(s.rng.choice(PROGRAMS), s.dtype)
    S, last = slots(s.rng.choice(list(KINDS)), P, parameters(lists[2], lists[0]), s.dtype)
    k = s.columns()
    HY, given = (_rows(s, P, k), ([], [], [], [])) if s.flag() else (None, lists)
    return [_rows(s, S, k), HY, *given, *last]


def _rows(s: Source, rows: int, k: int) -> Tensor:
    """Contiguous, or columns of a wider matrix."""
    return s.normal(rows, k) if s.flag() else s.normal(rows, k + 3)[:, 2 : 2 + k]


def projected_sgd_(s: Source) -> Arguments:
    O, q, I = s.size(), s.rng.randint(0, 3), s.size(300)
    buf = s.maybe(s.normal, O, I)
    numbers = s.number(), 0.0 if buf is None else s.number(), s.number(), s.number()
    options = (s.flag() and buf is not None, s.flag())
    return [s.normal(O, I), s.normal(O, I), s.normal(O, q), s.normal(q, I), buf, s.flag(), *numbers, *options]


GENERATORS: dict[str, Callable[[Source], Arguments]] = {
    make.__name__: make
    for make in (
        use_huge_pages_,
        activation,
        conv_lanes_,
        norm_tangent_,
        norm_tangent_backward_,
        cross_entropy,
        cross_entropy_labels,
        cross_entropy_tangent,
        bce_with_logits,
        mse,
        hessian_block_,
        tridiagonalise,
        tridiagonal_ql,
        tridiagonal_apply,
        tangent_product,
        tangent_update_,
        projected_sgd_,
    )
}


def registered() -> list[str]:
    """The operators that the loaded library has registered."""
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.split("::")[1].split(".")[0] for name in names if name.startswith("chaos_ext::"))


def valid_call(name: str, rng: Random) -> Arguments:
    """A call that the operator must carry out; all numbers come from ``rng``."""
    torch.manual_seed(rng.getrandbits(40))
    return GENERATORS[name](Source(rng))
