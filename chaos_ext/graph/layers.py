"""Handlers of layers as functions, with weights that forward reads itself: F.linear, F.conv2d, F.layer_norm, ..."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..rules.contraction import Contraction
from ..rules.joints import Add
from ..rules.linear import Linear
from ..rules.makers import convolution_of, norm_of_axes, norm_of_groups
from ..rules.norm import FixedNorm, GroupStatistics
from ..rules.rms import RmsNorm
from ..rules.rule import Leaf, NotLayerwise
from .arguments import Call
from .site import Handler, Operation, Site, axes_of


def _leaf(site: Site, call: Call, name: str) -> Leaf:
    """A parameter or buffer, or none."""
    given = call.get(name)
    return Leaf(None, name, None) if given is None else site.attribute(given)


def _linear(site: Site, call: Call) -> Operation:
    """With a computed weight a product of two values."""
    try:
        return [Linear(site.attribute(call["weight"]), _leaf(site, call, "bias"))], [call["input"]]
    except NotLayerwise:
        axes, own = axes_of(site, call), axes_of(site, call, "weight")
    if own != 2:
        raise NotLayerwise("a computed weight that is no matrix")
    batch = "abcdefgh"[: axes - 1]
    product = Contraction(batch + "i", "oi", batch + "o")
    if call.get("bias") is None:
        return [product], [call["input"], call["weight"]]
    return [Add()], [site.step([product], [call["input"], call["weight"]]), call["bias"]]


def _convolution(site: Site, call: Call, dims: int) -> Operation:
    if axes_of(site, call) != dims + 2:
        raise NotLayerwise("an input without a batch axis")
    padding = call.plain("padding", 0)
    settings = {"padding": 0 if padding == "valid" else padding, "groups": call.plain("groups", 1)}
    settings |= {name: call.plain(name, 1) for name in ("stride", "dilation")}
    if isinstance(padding, str) and padding != "valid":
        raise NotLayerwise("padding='same' of a function has no layer rule")
    if dims == 3:
        settings["kernel"] = site.shape[call["weight"]][2:]
    return [convolution_of(_leaf(site, call, "weight"), _leaf(site, call, "bias"), dims, **settings)], [call["input"]]


def _layer_norm(site: Site, call: Call) -> Operation:
    axes = axes_of(site, call)
    own = torch.Size(call.plain("normalized_shape"))
    weight, bias = _leaf(site, call, "weight"), _leaf(site, call, "bias")
    return [norm_of_axes(weight, bias, own, call.plain("eps", 1e-5), axes)], [call["input"]]


def _rms_norm(site: Site, call: Call) -> Operation:
    axes, own = axes_of(site, call), torch.Size(call.plain("normalized_shape"))
    return [RmsNorm(_leaf(site, call, "weight"), len(own), call.plain("eps"), axes > len(own))], [call["input"]]


def _group_norm(site: Site, call: Call) -> Operation:
    axes_of(site, call)
    weight, bias = _leaf(site, call, "weight"), _leaf(site, call, "bias")
    return [norm_of_groups(weight, bias, call.plain("num_groups"), call.plain("eps", 1e-5))], [call["input"]]


def _batch_norm(site: Site, call: Call) -> Operation:
    axes_of(site, call)
    weight, bias, eps = _leaf(site, call, "weight"), _leaf(site, call, "bias"), call.plain("eps", 1e-5)
    mean, variance = _leaf(site, call, "running_mean"), _leaf(site, call, "running_var")
    if not call.plain("training", False):
        return [FixedNorm(weight, bias, mean, variance, eps)], [call["input"]]
    if call.get("running_mean") is not None:
        raise NotLayerwise("batch_norm in training mode writes to its running statistics")
    return [GroupStatistics(weight, bias, eps)], [call["input"]]


_NORM = ("input", "normalized_shape", "weight", "bias", "eps")
_RMS = ("input", "normalized_shape", "weight", "eps")
_GROUPS = ("input", "num_groups", "weight", "bias", "eps")
_BATCH = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def _of_dims(dims: int) -> Handler:
    return lambda site, call: _convolution(site, call, dims)


TARGETS: list[tuple[Handler, tuple[str, ...], tuple[object, ...]]] = [
    (_linear, ("input", "weight", "bias"), (F.linear,)),
    (_of_dims(1), _CONVOLUTION, (F.conv1d, torch.conv1d)),
    (_of_dims(2), _CONVOLUTION, (F.conv2d, torch.conv2d)),
    (_of_dims(3), _CONVOLUTION, (F.conv3d, torch.conv3d)),
    (_layer_norm, _NORM, (F.layer_norm, torch.layer_norm)),
    (_rms_norm, _RMS, (F.rms_norm, torch.rms_norm)),
    (_group_norm, _GROUPS, (F.group_norm,)),
    (_batch_norm, _BATCH, (F.batch_norm,)),
]
