"""Oracles of third derivatives: differences of torch's double backward, which is right, and of exact eigenvalues."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from oracles import double_backward
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def moved(model: nn.Module) -> tuple[nn.Module, Tensor, Callable[[Tensor], None]]:
    """A copy of the model, its theta, and a function that gives it another one (and its buffers back)."""
    twin = copy.deepcopy(model)
    state = copy.deepcopy(twin.state_dict())
    params = [p for p in twin.parameters() if p.requires_grad]
    theta = nn.utils.parameters_to_vector(params).detach().clone()

    def move(at: Tensor) -> None:
        twin.load_state_dict(state)
        nn.utils.vector_to_parameters(at, params)

    return twin, theta, move


def central(f: Callable[[Tensor], Tensor], theta: Tensor, u: Tensor, h: float) -> Tensor:
    """df/dt of f(theta + t u) at 0, by central differences of fourth order."""
    coarse = (f(theta + h * u) - f(theta - h * u)) / (2 * h)
    fine = (f(theta + h / 2 * u) - f(theta - h / 2 * u)) / h
    return (4 * fine - coarse) / 3


def product(model: nn.Module, loss_fn, x, y, v: Tensor) -> Tensor:
    """H v by double backward."""
    params = [p for p in model.parameters() if p.requires_grad]

    def flat(parts):
        return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(parts, params)])

    with sdpa_kernel(SDPBackend.MATH):
        loss = loss_fn(model(x), y)
    g = flat(torch.autograd.grad(loss, params, create_graph=True, allow_unused=True))
    return flat(torch.autograd.grad(g @ v, params, allow_unused=True)).detach()


def third_derivative(model: nn.Module, loss_fn, x, y, v: Tensor, h: float = 1e-4) -> Tensor:
    """D3 L[v, v, .] [P] as the derivative of H v along v."""
    twin, theta, move = moved(model)

    def at(t: Tensor) -> Tensor:
        move(t)
        return product(twin, loss_fn, x, y, v)

    return central(at, theta, v, h)


def slopes(model: nn.Module, loss_fn, x, y, pick, rows: Tensor, h: float = 2e-4, matrix=double_backward) -> Tensor:
    """Derivatives along rows [n, P] of the mean of the picked eigenvalues of the dense matrix."""
    twin, theta, move = moved(model)

    def at(t: Tensor) -> Tensor:
        move(t)
        return torch.linalg.eigvalsh(matrix(twin, loss_fn, x, y).detach())[pick].mean()

    return torch.stack([central(at, theta, u, h) for u in rows])


def directions(size: int, count: int = 4, seed: int = 0) -> Tensor:
    """Random unit rows [count, P] in float64."""
    rows = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)
