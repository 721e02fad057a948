"""Other ways to the dense Hessian. Each function takes model, loss, x, y and returns a callable that computes H [P, P].

What a user of a method would prepare once (the functional model, the rows of the identity, buffers for the result) is
prepared once and reused; everything that depends on theta or the batch is computed at every call. The chunks are those
with which each method is fastest on the problems of this folder.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

Run = Callable[[], Tensor]


class _FlatLoss:
    """The loss as a function of theta [P]."""

    def __init__(self, model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.loss_fn, self.x, self.y = model, loss_fn, x, y
        named = {n: p.detach() for n, p in model.named_parameters()}
        self.shapes = {n: p.shape for n, p in named.items()}
        self.theta = torch.cat([p.reshape(-1) for p in named.values()])

    def __call__(self, theta: Tensor) -> Tensor:
        parts = theta.split([s.numel() for s in self.shapes.values()])
        named = {n: p.view(s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}
        return self.loss_fn(functional_call(self.model, named, (self.x,)), self.y)


class _Identity:
    """Rows of the identity [P, P], chunk by chunk in one reused buffer: no P x P matrix is written to make them."""

    def __init__(self, P: int, chunk: int, like: Tensor) -> None:
        self._buffer, self._ones, self.P = like.new_zeros(min(chunk, P), P), None, P

    def __call__(self, start: int) -> Tensor:
        if self._ones is not None:
            self._ones.zero_()
        rows = self._buffer[: self.P - start]
        self._ones = rows[:, start : start + len(rows)].diagonal()
        self._ones.fill_(1)
        return rows


def jvp_grad(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor, chunk: int = 1024) -> Run:
    """Forward over reverse, vmapped over rows of the identity, into a reused buffer."""
    loss = _FlatLoss(model, loss_fn, x, y)
    P = loss.theta.numel()
    out, identity = loss.theta.new_empty(P, P), _Identity(P, chunk, loss.theta)
    products = vmap(lambda v: jvp(grad(loss), (loss.theta,), (v,))[1])

    def run() -> Tensor:
        for start in range(0, P, chunk):
            rows = identity(start)
            out[start : start + len(rows)] = products(rows)
        return out

    return run


def triangular(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor, chunk: int = 512) -> Run:
    """As ``jvp_grad``, but a tangent enters one parameter, and only gradients of it and of later parameters are taken;
    the other half of H is their transpose."""
    named = {n: p.detach() for n, p in model.named_parameters()}
    names, sizes = list(named), [p.numel() for p in named.values()]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    like = next(iter(named.values()))
    out = like.new_empty(sum(sizes), sum(sizes))
    identities = [_Identity(n, chunk, like) for n in sizes]

    def rows_of(i: int, v: Tensor) -> Tensor:
        """The rows H_i,i: v, from layer i's own columns on."""
        value, fixed = named[names[i]], {n: named[n] for n in names[:i]}
        later = {n: named[n] for n in names[i + 1 :]}

        def gradient(p: Tensor) -> Tensor:
            def loss(q: dict[str, Tensor]) -> Tensor:
                return loss_fn(functional_call(model, {**fixed, **q}, (x,)), y)

            parts = grad(loss)({names[i]: p, **later})
            return torch.cat([g.reshape(-1) for g in parts.values()])

        return jvp(gradient, (value,), (v.view_as(value),))[1]

    def run() -> Tensor:
        for i, size in enumerate(sizes):
            products, first, end = vmap(lambda v, i=i: rows_of(i, v)), starts[i], starts[i] + size
            for start in range(0, size, chunk):
                block = products(identities[i](start))
                rows = slice(first + start, first + start + len(block))
                out[rows, first:] = block
                out[end:, rows] = block[:, size:].T
        return out

    return run


def jacrev_jacrev(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor, chunk: int = 256) -> Run:
    loss = _FlatLoss(model, loss_fn, x, y)
    hessian = jacrev(jacrev(loss), chunk_size=chunk)
    return lambda: hessian(loss.theta)


def jacrev_grad(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor, chunk: int = 512) -> Run:
    loss = _FlatLoss(model, loss_fn, x, y)
    hessian = jacrev(grad(loss), chunk_size=chunk)
    return lambda: hessian(loss.theta)


def double_backward(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor, chunk: int = 1024) -> Run:
    """Reverse over reverse with ``is_grads_batched``, into a reused buffer."""
    params = list(model.parameters())
    P = sum(p.numel() for p in params)
    out, identity = params[0].new_empty(P, P), _Identity(P, chunk, params[0].detach())

    def run() -> Tensor:
        gradient = torch.autograd.grad(loss_fn(model(x), y), params, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradient])
        for start in range(0, P, chunk):
            rows = identity(start)
            parts = torch.autograd.grad(flat, params, rows, retain_graph=True, is_grads_batched=True)
            torch.cat([p.reshape(len(rows), -1) for p in parts], 1, out=out[start : start + len(rows)])
        return out

    return run


def torch_func_hessian(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor) -> Run:
    """``torch.func.hessian``, as its documentation shows it."""
    loss = _FlatLoss(model, loss_fn, x, y)
    hessian = torch.func.hessian(loss)
    return lambda: hessian(loss.theta)


def curvlinops(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor) -> Run:
    """``HessianLinearOperator @ I``, as curvlinops' documentation makes a matrix of an operator."""
    with warnings.catch_warnings():  # of its dependencies, at import
        warnings.simplefilter("ignore")
        from curvlinops import HessianLinearOperator

    params = list(model.parameters())
    operator = HessianLinearOperator(model, loss_fn, params, [(x, y)], check_deterministic=False)
    identity = torch.eye(operator.shape[1], dtype=x.dtype)
    return lambda: operator @ identity


RIVALS: dict[str, Callable[..., Run]] = {
    "jvp(grad), vmapped, chunk 1024": jvp_grad,
    "jvp(grad), triangular, chunk 512": triangular,
    "jacrev(jacrev), chunk 256": jacrev_jacrev,
    "jacrev(grad), chunk 512": jacrev_grad,
    "double backward, batched, chunk 1024": double_backward,
    "curvlinops @ I": curvlinops,
    "torch.func.hessian": torch_func_hessian,
}

# Matrices of the size of H that a rival holds at once, at most: what makes it not fit.
COPIES = {"curvlinops @ I": 10, "torch.func.hessian": 10, "jacrev(grad), chunk 512": 4, "jacrev(jacrev), chunk 256": 4}


def missing(name: str) -> str | None:
    """Why a rival cannot be run here, or None."""
    if name == "curvlinops @ I" and importlib.util.find_spec("curvlinops") is None:
        return "curvlinops is not installed (pip install curvlinops-for-pytorch)"
    return None
