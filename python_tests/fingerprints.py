"""Everything about a model and the process that running somebody's code on it may change, as comparable values."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def _value(v: Any, seen: frozenset[int] = frozenset()) -> Any:
    if id(v) in seen or isinstance(v, nn.Module):
        return id(v)
    seen |= {id(v)}
    if isinstance(v, Tensor):
        return id(v), tuple(v.shape), str(v.dtype), v.detach().cpu().to_dense().numpy().tobytes()
    if isinstance(v, np.ndarray):
        return id(v), v.tobytes()
    if isinstance(v, torch.Generator):
        return id(v), v.get_state().numpy().tobytes()
    if isinstance(v, random.Random):
        return id(v), v.getstate()
    if isinstance(v, dict):
        return id(v), [(k, _value(u, seen)) for k, u in v.items()]
    if isinstance(v, (list, tuple, deque)):
        return id(v) if not isinstance(v, tuple) else 0, [_value(u, seen) for u in v]
    if isinstance(v, (set, frozenset)):
        return id(v), sorted(map(repr, v))
    if isinstance(v, (int, float, str, bool, type(None))):
        return repr(v)
    if hasattr(v, "__dict__") and not callable(v):
        return id(v), _value(vars(v), seen)
    return id(v)


def of_model(model: nn.Module) -> dict[str, Any]:
    """Attributes of all modules with what they hold (parameters, buffers, hooks, modes), and gradients."""
    parts: dict[str, Any] = {}
    for name, m in model.named_modules():
        for k, v in vars(m).items():
            parts[f"{name}.{k}"] = _value(v)
        parts[f"{name}.__class__"] = type(m)
    for name, p in model.named_parameters():
        parts[f"{name}.grad"] = None if p.grad is None else _value(p.grad)
        parts[f"{name}.requires_grad"], parts[f"{name}.hooks"] = p.requires_grad, repr(p._backward_hooks)
    return parts


def of_process() -> dict[str, Any]:
    """Random states and global settings."""
    backends = torch.backends
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tobytes() + bytes(np.random.get_state()[2]),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "oneDNN": backends.mkldnn.enabled,
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "attention": (
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
        ),
        "modules": (nn.Module.__call__, nn.Module.__getattr__, nn.Module.forward),
        "hooks": repr(nn.modules.module._global_forward_hooks),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    return [k for k in {**before, **after} if before.get(k, "absent") != after.get(k, "absent")]
