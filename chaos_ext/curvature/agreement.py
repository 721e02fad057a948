"""What the ranks of a group must have alike for the sum of their Hessians to be a Hessian, in plain values."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._version import __version__
from ..base.guards import updates_running_stats
from ..base.parameters import ModuleTree, ParameterSpace
from ..base.tensors import checksum, unexpanded
from ..base.torch_internals import own_buffers
from .weighting import Weight

_PLAIN = (bool, int, float, str, type(None), torch.dtype)


def state_of(space: ParameterSpace, tree: ModuleTree, loss_fn: Any, weight: Weight | None) -> dict[str, object]:
    """Of the model, the loss and the libraries; running statistics that a forward updates may differ."""
    kept = [own for m, own in tree.buffered if not updates_running_stats(m)]
    buffers = [(k, b) for own in kept for k, b in own.items() if b is not None]
    return {
        "versions": f"chaos_ext {__version__}, torch {torch.__version__}",
        "parameters": [f"{n} {list(s)}" for n, s in zip(space.names, space.shapes, strict=True)],
        "dtype and device": f"{space.dtype} on {space.device.type}",
        "modules": [_module(m) for m in tree.modules],
        "values of the parameters (checksum)": _sum(space.flatten(space.params)),
        "buffers and frozen parameters (checksums)": [(n, _sum(t)) for n, t in (*buffers, *tree.constants)],
        "loss": said(loss_fn),
        "weight": said(weight),
    }


def _module(m: nn.Module) -> str:
    """Its class and mode, and the settings of one of torch's."""
    torchs = type(m).__module__.startswith("torch.nn.")
    return f"{type(m).__qualname__} {_settings(m) if torchs else {'training': m.training}}"


def _settings(m: nn.Module) -> dict[str, object]:
    return {k: v for k, v in vars(m).items() if isinstance(v, (*_PLAIN, tuple)) and not k.startswith("_")}


def _sum(t: Tensor) -> str:
    """Of the values of a dense tensor; of another one its size."""
    if t.layout != torch.strided or t.is_meta:
        return f"{t.layout} {list(t.shape)}"
    return f"{int(checksum(unexpanded(t.detach()))) & 0xFFFFFFFFFFFFFFFF:016x}"


def said(value: Any) -> object:
    """A loss, or something that it or another argument is made of, in plain values; of tensors checksums."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return tuple(value.shape), _sum(value)
    if isinstance(value, nn.Module):
        inside = [
            (n, said(t)) for m in value.modules() for n, t in {**own_buffers(m), **dict(m.named_parameters())}.items()
        ]
        return type(value).__qualname__, [_settings(m) for m in value.modules()], inside
    if isinstance(value, functools.partial):
        return said(value.func), [said(v) for v in value.args], said(value.keywords)
    if isinstance(value, Mapping):
        return {str(k): said(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [said(v) for v in value]
    return getattr(value, "__module__", ""), getattr(value, "__qualname__", type(value).__qualname__)
