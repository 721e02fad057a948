"""The emulated kernels with the arguments and results of the operators (``chaos_ext.reference``), on torch tensors.

What the .cu launchers do, for any grid and block: reductions over blocks take a second launch, outputs are allocated
(here full of NaN, so that an element that is not written shows).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from chaos_ext import _ops


def _array(x: Tensor | None) -> np.ndarray | None:
    """The same memory."""
    return None if x is None else x.numpy()


def _arrays(lists: tuple) -> list[list]:
    return [[_array(x) if isinstance(x, Tensor) else x for x in items] for items in lists]


def _unwritten(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, math.nan, dtype=dtype)


def _or_none(x: Tensor) -> Tensor | None:
    return x if x.numel() else None


@contextmanager
def thread_order(kernels: ModuleType, backwards: bool) -> Iterator[None]:
    """In which order the threads of a block, and the blocks, take turns."""
    kernels.run_backwards(backwards)
    try:
        yield
    finally:
        kernels.run_backwards(False)


class EmulatedOps(NamedTuple):
    """The operators on the emulator, with this many blocks and threads."""

    kernels: ModuleType
    grid: int = 2
    threads: int = 64

    def _run(self, name: str, *args: object) -> None:
        arrays = [_array(x) if isinstance(x, Tensor) else x for x in args]
        getattr(self.kernels, f"{name}_kernel")(*arrays, self.grid, self.threads)

    def _sum(self, partial: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        total = _unwritten(1, dtype=dtype)
        self._replace(grid=1)._run("sum_partials", partial, scale, total)
        return total[0]

    def activation(self, z: Tensor, kind: int, alpha: float, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        a, d1 = (_unwritten(*z.shape, dtype=z.dtype) for _ in range(2))
        d2 = z.new_empty(0) if kind in _ops.PIECEWISE_LINEAR else torch.full_like(z, math.nan)
        self._run("activation", z, kind, alpha, beta, a, d1, _or_none(d2))
        return a, d1, d2

    def conv_lanes_(
        self, out: Tensor, scalars: Tensor, lanes: Tensor, kind: int, stride, padding, dilation, groups, accumulate
    ) -> None:
        roles = ("ZXW", "ZWX", "XZW", "XWZ", "WZX", "WXZ")[kind]
        shapes = {role: t.shape[:4] for role, t in zip(roles, (out, lanes, scalars), strict=True)}
        sizes = [*shapes["X"], *shapes["W"], *shapes["Z"][2:], *stride, *padding, *dilation, groups, out.shape[4]]
        self._run("conv_lanes", scalars, lanes, sizes, kind, accumulate, out)

    def norm_tangent_(self, out: Tensor, xh: Tensor, r: Tensor, d, gamma, dgamma, dbeta) -> None:
        given = [_array(x) for x in (out, None, None, xh, r, None, d, None, gamma, dgamma, dbeta)]
        self.kernels.norm_tangent_kernel(*given, self.grid)

    def norm_tangent_backward_(self, out: Tensor, dweight: Tensor, dbias: Tensor, *plain: Tensor | None) -> None:
        given = [_array(x) for x in (out, dweight, dbias, *plain, None)]
        self.kernels.norm_tangent_kernel(*given, self.grid)

    def cross_entropy(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        delta, p = (_unwritten(*z.shape, dtype=z.dtype) for _ in range(2))
        row_loss = _unwritten(z.shape[0], dtype=torch.float64)
        self._run("cross_entropy", z, t, delta, p, row_loss)
        return self._sum(row_loss, 1.0, z.dtype), delta, p

    def cross_entropy_labels(self, z: Tensor, y: Tensor, own: float, others: float) -> tuple[Tensor, Tensor, Tensor]:
        delta, p = (_unwritten(*z.shape, dtype=z.dtype) for _ in range(2))
        row_loss = _unwritten(z.shape[0], dtype=torch.float64)
        self._run("cross_entropy_labels", z, y, own, others, delta, p, row_loss)
        return self._sum(row_loss, 1.0, z.dtype), delta, p

    def cross_entropy_tangent(self, p: Tensor, s: Tensor, dz: Tensor) -> Tensor:
        out = _unwritten(*dz.shape, dtype=dz.dtype)
        self._run("cross_entropy_tangent", p, s, dz, out)
        return out

    def bce_with_logits(self, z: Tensor, y: Tensor, w: Tensor, pw: Tensor, scale: float) -> tuple[Tensor, ...]:
        delta, curvature = (_unwritten(*z.shape, dtype=z.dtype) for _ in range(2))
        partial = _unwritten(self.grid, dtype=torch.float64)
        self._run("bce", z, y, _or_none(w), _or_none(pw), scale, delta, curvature, partial)
        return self._sum(partial, 1.0, z.dtype), delta, curvature

    def mse(self, z: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        delta, partial = _unwritten(*z.shape, dtype=z.dtype), _unwritten(self.grid, dtype=torch.float64)
        self._run("mse", z, y, scale, delta, partial)
        return self._sum(partial, scale, z.dtype), delta

    def projected_sgd_(self, param: Tensor, grad: Tensor, L: Tensor, R: Tensor, buf: Tensor | None, *options) -> None:
        self._run("projected_sgd", param, grad, L, R, buf, *options)

    def tangent_product(self, Y: Tensor, *lists, w=4, in_shared=True, keeps_theta=True) -> Tensor:
        out = _unwritten(*Y.shape, dtype=Y.dtype)
        empty: tuple[list, list, list] = ([], [], [])
        arguments = (*_arrays(lists), *empty, len(Y), w, in_shared, keeps_theta)
        self.kernels.tangent_sweep_kernel(Y.numpy(), *arguments, out.numpy(), None, self.threads)
        return out

    def tangent_update_(
        self, Y: Tensor, HY: Tensor | None, *lists, P: int = 0, w=4, in_shared=True, keeps_theta=True
    ) -> Tensor:
        if HY is None:
            squares = _unwritten(1, Y.shape[1], dtype=Y.dtype)
            arguments = (*_arrays(lists), P, w, in_shared, keeps_theta)
            self.kernels.tangent_sweep_kernel(Y.numpy(), *arguments, None, squares.numpy(), self.threads)
            return squares
        squares = _unwritten(self.grid, Y.shape[1], dtype=Y.dtype)
        last = _arrays(lists[4:])
        self.kernels.tangent_update_kernel(Y.numpy(), HY.numpy(), *last, w, squares.numpy(), self.threads)
        return squares

    def hessian_block_(self, H: Tensor, *args: Tensor | int | bool | None) -> None:
        arrays = [_array(x) if isinstance(x, Tensor) else x for x in args]
        self.kernels.hessian_block_kernel(H.numpy(), *arrays, self.grid)
