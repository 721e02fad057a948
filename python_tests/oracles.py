"""Oracles that share no code with the package: torch's own double backward, and dense float64 linear algebra."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def double_backward(model: nn.Module, loss_fn, x, y) -> Tensor:
    """The Hessian [P, P], one row per backward pass through the gradient's graph."""
    params = [p for p in model.parameters() if p.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that torch can differentiate twice
        loss = loss_fn(model(x), y)
    gradient = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    flat = torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(gradient, params)])
    if not flat.requires_grad:
        return flat.new_zeros(len(flat), len(flat))
    eye = torch.eye(len(flat), dtype=flat.dtype)
    try:
        rows = torch.autograd.grad(flat, params, eye, retain_graph=True, is_grads_batched=True, allow_unused=True)
    except RuntimeError:  # torch 2.13 cannot batch the double backward of GroupNorm
        each = [torch.autograd.grad(g, params, retain_graph=True, allow_unused=True) for g in flat]
        rows = [
            torch.stack([torch.zeros_like(p) if r is None else r for r in column])
            for column, p in zip(zip(*each), params)
        ]
    full = [p.new_zeros(len(flat), *p.shape) if r is None else r for r, p in zip(rows, params)]
    return torch.cat([r.reshape(len(flat), -1) for r in full], 1)


def gradient(model: nn.Module, loss_fn, x, y) -> Tensor:
    params = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss_fn(model(x), y), params)])


def pruned_gradient(H: Tensor, g: Tensor, lr: float, prune: str, zero_tol: float = 1e-12) -> Tensor:
    """g without its part in the selected eigenvectors of the dense H."""
    values, vectors = torch.linalg.eigh(H)
    zero = zero_tol * values.abs().max()
    chosen = {
        "negative": values < -zero,
        "positive": values > zero,
        "chaotic": (values < -zero) | ((values > 2 / lr) & (values > zero)),
    }[prune]
    V = vectors[:, chosen]
    return g - V @ (V.T @ g)


def relative(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b| (absolute where b is zero)."""
    scale = b.abs().max().item() if b.numel() else 0.0
    return (a - b).abs().max().item() / (scale or 1.0) if b.numel() else 0.0


def gauss_newton(model: nn.Module, loss_fn, x, y) -> Tensor:
    """J^T C J [P, P] with J one backward pass an output, and C the double backward of the loss at the output."""
    params = [p for p in model.parameters() if p.requires_grad]
    z = model(x)
    rows = [torch.autograd.grad(t, params, retain_graph=True, allow_unused=True) for t in z.reshape(-1)]
    J = torch.stack([torch.cat([(p * 0 if g is None else g).reshape(-1) for g, p in zip(r, params)]) for r in rows])
    at = z.detach().requires_grad_()
    (delta,) = torch.autograd.grad(loss_fn(at, y), at, create_graph=True)
    C = [torch.autograd.grad(d, at, retain_graph=True)[0].reshape(-1) for d in delta.reshape(-1)]
    return J.detach().T @ torch.stack(C) @ J.detach()
