"""Other ways to products H V of a few columns.

Each takes model, loss, x, y, V and returns a callable that computes H V. What a user would prepare once is prepared
once; what depends on theta or the batch is computed at every call. A compiled way is compiled at its first call, for
the shapes at hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

Run = Callable[[], Tensor]
Way = Callable[[nn.Module, nn.Module, Tensor, Tensor, Tensor], Run]


def _mapped(product: Callable[[Tensor], Tensor], V: Tensor) -> Run:
    """The product of each column, vmapped where there are several."""
    rows = V.T.contiguous()
    many = vmap(product)
    return lambda: (many(rows) if len(rows) > 1 else product(rows[0])[None]).T


class _Loss:
    """The loss as a function of named parameters, and a flat vector as parts of their shapes."""

    def __init__(self, model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor) -> None:
        self.named = {n: p.detach() for n, p in model.named_parameters()}
        self._sizes = [p.numel() for p in self.named.values()]
        self._model, self._loss_fn, self._x, self._y = model, loss_fn, x, y

    def __call__(self, params: dict[str, Tensor]) -> Tensor:
        return self._loss_fn(functional_call(self._model, params, (self._x,)), self._y)

    def parts(self, v: Tensor) -> dict[str, Tensor]:
        pieces = v.split(self._sizes)
        return {n: t.view_as(p) for (n, p), t in zip(self.named.items(), pieces, strict=True)}


def _flat(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in parts.values()])


def jvp_of_grad(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor, V: Tensor) -> Run:
    """Forward over reverse."""
    loss = _Loss(model, loss_fn, x, y)
    return _mapped(lambda v: _flat(jvp(grad(loss), (loss.named,), (loss.parts(v),))[1]), V)


def grad_of_grad(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor, V: Tensor) -> Run:
    """Reverse over reverse by torch.func: double backward in a form that torch.compile takes."""
    loss = _Loss(model, loss_fn, x, y)

    def product(v: Tensor) -> Tensor:
        parts = loss.parts(v)

        def along(params: dict[str, Tensor]) -> Tensor:
            gradient = grad(loss)(params)
            return torch.stack([(gradient[n] * parts[n]).sum() for n in parts]).sum()

        return _flat(grad(along)(loss.named))

    return _mapped(product, V)


def _double_backward(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor, V: Tensor, batched: bool) -> Run:
    params, rows = list(model.parameters()), V.T.contiguous()

    def run() -> Tensor:
        gradient = torch.autograd.grad(loss_fn(model(x), y), params, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradient])
        if batched:
            parts = torch.autograd.grad(flat, params, rows, is_grads_batched=True)
            return torch.cat([p.reshape(len(rows), -1) for p in parts], 1).T
        each = (torch.autograd.grad(flat, params, v, retain_graph=True) for v in rows)
        return torch.stack([torch.cat([p.reshape(-1) for p in parts]) for parts in each], 1)

    return run


def double_backward(*problem: Any) -> Run:
    return _double_backward(*problem, batched=False)


def double_backward_batched(*problem: Any) -> Run:
    return _double_backward(*problem, batched=True)


EAGER: dict[str, Way] = {
    "jvp(grad)": jvp_of_grad,
    "double backward": double_backward,
    "double backward, batched": double_backward_batched,
}
COMPILED: dict[str, Way] = {"jvp(grad), compiled": jvp_of_grad, "double backward, compiled": grad_of_grad}


def compiled(way: Way, *problem: Any) -> tuple[Run, float]:
    """A way after torch.compile, and the seconds (wall time) that its first call took."""
    torch.compiler.reset()
    run = torch.compile(way(*problem))
    began = time.perf_counter()
    run()
    return run, time.perf_counter() - began
