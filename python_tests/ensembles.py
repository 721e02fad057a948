"""What an ensemble is held against: every member alone, as torch trains it; and the models that it is tried on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import SGD, Adam, AdamW, Optimizer

import chaos_ext as ce

F64 = torch.float64
CE = nn.CrossEntropyLoss()

# Every option of every optimizer that an ensemble takes; numbers that leave no term out.
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 0.1}),
    "sgd_decay": (SGD, {"lr": 0.1, "weight_decay": 0.1}),
    "sgd_maximize": (SGD, {"lr": 0.05, "maximize": True, "weight_decay": 0.1}),
    "momentum": (SGD, {"lr": 0.05, "momentum": 0.9}),
    "momentum_all": (SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True}),
    "nesterov": (SGD, {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    "dampening_alone": (SGD, {"lr": 0.05, "dampening": 0.5}),
    "tensor_lr": (SGD, {"lr": torch.tensor(0.05)}),
    "adam": (Adam, {"lr": 0.01}),
    "adam_all": (Adam, {"lr": 0.02, "betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    "amsgrad": (Adam, {"lr": 0.02, "betas": (0.7, 0.6), "amsgrad": True}),
    "adam_decoupled": (Adam, {"lr": 0.02, "weight_decay": 0.3, "decoupled_weight_decay": True}),
    "adamw": (AdamW, {"lr": 0.02, "weight_decay": 0.3}),
    "adamw_all": (AdamW, {"lr": 0.02, "betas": (0.5, 0.8), "weight_decay": 0.3, "amsgrad": True, "maximize": True}),
    "cgd": (ce.CGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "prune": None}),
}


def mlp(dtype: torch.dtype = F64) -> nn.Sequential:
    """Odd sizes throughout: nothing is aligned by chance."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def deltas(model: nn.Module, m: int, scale: float = 0.1) -> Tensor:
    like = next(model.parameters())
    values = torch.randn(size(model), m, dtype=F64, generator=torch.Generator().manual_seed(7))
    return (scale * values).to(like.device, like.dtype)


def batch(n: int = 5, shape: tuple[int, ...] = (6,), seed: int = 0, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, dtype=F64, generator=g).to(dtype), torch.randint(0, 3, (n,), generator=g)


class Alone:
    """One member as a model of its own, with torch's optimizer."""

    def __init__(self, model: nn.Module, theta: Tensor, opt: Optimizer, **options: Any) -> None:
        self.model = copy.deepcopy(model)
        vector_to_parameters(theta, [p for p in self.model.parameters() if p.requires_grad])
        groups = [{**g, "params": []} for g in opt.param_groups]
        own = dict(zip(model.parameters(), self.model.parameters(), strict=True))
        for group, new in zip(opt.param_groups, groups, strict=True):
            new["params"] = [own[p] for p in group["params"]]
            new.update(options)
        cls = SGD if isinstance(opt, ce.CGD) else type(opt)
        self.opt = cls(groups)
        # As a checkpoint would restore it, but for the options.
        state = copy.deepcopy(opt.state_dict())
        state["param_groups"] = self.opt.state_dict()["param_groups"]
        state.pop("chaos_ext", None)
        self.opt.load_state_dict(state)

    def step(self, x: Tensor, y: Tensor, loss_fn: Callable[..., Tensor] = CE) -> Tensor:
        self.opt.zero_grad()
        loss = loss_fn(self.model(x), y)
        loss.backward()
        self.opt.step()
        return loss.detach()

    @property
    def theta(self) -> Tensor:
        return parameters_to_vector([p for p in self.model.parameters() if p.requires_grad]).detach()


def require_like(ens: ce.Ensemble, alone: Sequence[Alone], tolerance: float) -> None:
    """Every member where its model is, relative to the length of theta."""
    for i, one in enumerate(alone):
        error = float((ens.thetas[i] - one.theta).norm() / one.theta.norm())
        assert error <= tolerance, f"member {i}: {error:.2g}"


def around(model: nn.Module | None = None, opt: Optimizer | None = None, m: int = 3, **options: Any) -> ce.Ensemble:
    """A model and m twins next to it, by default with momentum."""
    model = model or mlp()
    opt = opt or SGD(model.parameters(), lr=0.1, momentum=0.9)
    return ce.Ensemble.around(model, CE, opt, deltas(model, m), **options)


def same_state(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Raises AssertionError unless two states of ensembles have the same bits."""
    a, b = dict(a), dict(b)
    assert a.pop("fingerprint") == b.pop("fingerprint")
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    return True
