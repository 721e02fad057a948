"""nn.MultiheadAttention and the layers of nn.Transformer as steps of rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from ..rules.constants import Choice
from ..rules.contraction import Contraction, product_letters
from ..rules.joints import Add, LinearMap, Parameter, Reshape
from ..rules.linear import Linear
from ..rules.rule import Leaf, NotLayerwise, Rule
from ..rules.softmax import Softmax
from ..rules.table import MODULES
from ..rules.views import Permutation, Slice
from .activations import rule_of
from .arguments import Call
from .contractions import scores_of
from .site import Operation, Parts, Site, is_discrete


class Attention:
    """One nn.MultiheadAttention.

    Args:
        site: the graph.
        module: with batches.
        weights: whether it gives the attention weights, too.
    """

    def __init__(self, site: Site, module: nn.MultiheadAttention, weights: bool) -> None:
        self.site, self.m, self.weights = site, module, weights
        if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
            raise NotLayerwise("add_bias_kv and add_zero_attn have no layer rule")
        if module.training and module.dropout > 0:
            raise NotLayerwise("dropout in training mode draws random numbers")

    def __call__(self, operands: Sequence[Any], masks: Sequence[Any], average: bool = True) -> Parts:
        """The values of output and weights (None: not wanted).

        Args:
            operands: query, key, value.
            masks: that of [L, S] or [N heads, L, S], and that of keys [N, S], or None.
            average: the weights over the heads.
        """
        q, k, v = (self._heads(o) for o in self._projected(operands))
        scores = scores_of(self.site, q, k, 4, 1 / math.sqrt(self.m.head_dim))
        for mask, shape in zip(masks, (self._of_heads, self._of_keys), strict=True):
            if mask is not None:
                scores = self._masked(scores, mask, shape)
        p = self.site.step([Softmax(3, rows_of_zeros=not self.weights)], [scores])
        mixed: list[Rule] = [Contraction(*product_letters(4, 4)), Permutation((0, 2, 1, 3)), Reshape(_joined)]
        own = Linear(self._leaf(self.m.out_proj, "weight"), self._leaf(self.m.out_proj, "bias"))
        out = self.site.step([*mixed, own, *self._sequence_first()], [p, v])
        if not self.weights:
            return out, None
        return out, self.site.step([LinearMap(partial(torch.mean, dim=1), True)] if average else [], [p])

    def _leaf(self, module: nn.Module, name: str) -> Leaf:
        return self.site.leaf(module, name)

    def _sequence_first(self) -> list[Rule]:
        return [] if self.m.batch_first else [Permutation((1, 0, 2))]

    def _heads(self, value: int) -> int:
        """[N, L, E], or [L, N, E], as [N, heads, L, E / heads]."""
        order = (0, 2, 1, 3) if self.m.batch_first else (1, 2, 0, 3)
        heads = self.m.num_heads
        return self.site.step(
            [Reshape(lambda inputs: inputs[0].unflatten(-1, (heads, -1))), Permutation(order)], [value]
        )

    def _projected(self, operands: Sequence[Any]) -> list[int]:
        if self.m.in_proj_weight is None:
            names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
            weights = [self.site.step([Parameter(self._leaf(self.m, n))], []) for n in names]
            return [self._product(o, w, i) for i, (o, w) in enumerate(zip(operands, weights, strict=True))]
        if all(o is operands[0] for o in operands):
            whole = Linear(self._leaf(self.m, "in_proj_weight"), self._leaf(self.m, "in_proj_bias"))
            projected = self.site.step([whole], [operands[0]])
            return [self.site.step([Slice((slice(None), slice(None), self._third(i)))], [projected]) for i in range(3)]
        weight = self.site.step([Parameter(self._leaf(self.m, "in_proj_weight"))], [])
        parts = [self.site.step([Slice((self._third(i),))], [weight]) for i in range(3)]
        return [self._product(o, w, i) for i, (o, w) in enumerate(zip(operands, parts, strict=True))]

    def _third(self, i: int) -> slice:
        return slice(i * self.m.embed_dim, (i + 1) * self.m.embed_dim)

    def _product(self, operand: Any, weight: int, i: int) -> int:
        product = self.site.step([Contraction("nli", "oi", "nlo")], [operand, weight])
        if self.m.in_proj_bias is None:
            return product
        bias = self.site.step([Parameter(self._leaf(self.m, "in_proj_bias")), Slice((self._third(i),))], [])
        return self.site.step([Add()], [product, bias])

    def _of_heads(self, mask: torch.Tensor) -> torch.Tensor:
        return mask if mask.dim() == 2 else mask.unflatten(0, (-1, self.m.num_heads))

    def _of_keys(self, mask: torch.Tensor) -> torch.Tensor:
        return mask[:, None, None]

    def _masked(self, scores: int, mask: Any, shape: Any) -> int:
        """Of booleans, what takes no part; else what is added."""
        viewed = self.site.step([Reshape(lambda inputs: shape(inputs[0]))], [mask])
        if is_discrete(self.site, mask):
            return self.site.step([Choice(first=-math.inf)], [viewed, scores])
        return self.site.step([Add()], [scores, viewed])


def _joined(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return inputs[0].flatten(2)


class _Layer:
    """A layer of a Transformer: its modules, applied to values of one shape."""

    def __init__(self, site: Site, module: Any, shape: torch.Size) -> None:
        self.site, self.m, self.shape = site, module, shape

    def apply(self, module: nn.Module, value: Any) -> int:
        make = MODULES.get(type(module))
        if make is None:
            raise NotLayerwise(f"{type(module).__name__} has no layer rule")
        made = make(module, lambda name: self.site.leaf(module, name), self.shape)
        return self.site.step(made if isinstance(made, list) else [] if made is None else [made], [value])

    def attended(self, module: nn.Module, x: Any, memory: Any, masks: Sequence[Any], dropout: nn.Module) -> int:
        if type(module) is not nn.MultiheadAttention:
            raise NotLayerwise(f"{type(module).__name__} has no layer rule")
        keys = x if memory is None else memory
        return self.apply(dropout, Attention(self.site, module, False)((x, keys, keys), masks)[0])

    def fed(self, x: Any, dropout: nn.Module) -> int:
        inner = self.site.step([rule_of(self.m.activation)], [self.apply(self.m.linear1, x)])
        return self.apply(dropout, self.apply(self.m.linear2, self.apply(self.m.dropout, inner)))

    def residual(self, x: Any, norm: nn.Module, branch: Any) -> int:
        """x + branch(norm(x)), or norm(x + branch(x))."""
        if self.m.norm_first:
            return self.site.step([Add()], [x, branch(self.apply(norm, x))])
        return self.apply(norm, self.site.step([Add()], [x, branch(x)]))


def _encoded(site: Site, m: nn.TransformerEncoderLayer, x: Any, shape: torch.Size, masks: Sequence[Any]) -> int:
    layer = _Layer(site, m, shape)
    x = layer.residual(x, m.norm1, lambda h: layer.attended(m.self_attn, h, None, masks, m.dropout1))
    return layer.residual(x, m.norm2, lambda h: layer.fed(h, m.dropout2))


def _decoded(
    site: Site, m: nn.TransformerDecoderLayer, x: Any, memory: Any, shape: torch.Size, masks: Sequence[Sequence[Any]]
) -> int:
    layer = _Layer(site, m, shape)
    x = layer.residual(x, m.norm1, lambda h: layer.attended(m.self_attn, h, None, masks[0], m.dropout1))
    x = layer.residual(x, m.norm2, lambda h: layer.attended(m.multihead_attn, h, memory, masks[1], m.dropout2))
    return layer.residual(x, m.norm3, lambda h: layer.fed(h, m.dropout3))


def _shape(site: Site, source: Any) -> torch.Size:
    shape = site.shape.get(source) if isinstance(source, fx.Node) else None
    if shape is None or len(shape) != 3:
        raise NotLayerwise("an input without a batch axis")
    return shape


def _masks(call: Call, *names: str) -> list[Any]:
    return [call.get(name) for name in names]


def encoder_layer(site: Site, call: Call, m: nn.TransformerEncoderLayer) -> Operation:
    """Self-attention and a feed-forward network."""
    masks = _masks(call, "src_mask", "src_key_padding_mask")
    return [], [_encoded(site, m, call["src"], _shape(site, call["src"]), masks)]


def encoder(site: Site, call: Call, m: nn.TransformerEncoder) -> Operation:
    """Encoder layers, and a norm."""
    value, shape = call["src"], _shape(site, call["src"])
    for layer in m.layers:
        if type(layer) is not nn.TransformerEncoderLayer:
            raise NotLayerwise(f"{type(layer).__name__} has no layer rule")
        value = _encoded(site, layer, value, shape, _masks(call, "mask", "src_key_padding_mask"))
    return _normed(site, m, value, shape)


def _normed(site: Site, m: Any, value: Any, shape: torch.Size) -> Operation:
    return [], [value if m.norm is None else _Layer(site, m, shape).apply(m.norm, value)]


def _decoder_masks(call: Call) -> list[list[Any]]:
    own = _masks(call, "tgt_mask", "tgt_key_padding_mask")
    return [own, _masks(call, "memory_mask", "memory_key_padding_mask")]


def decoder_layer(site: Site, call: Call, m: nn.TransformerDecoderLayer) -> Operation:
    """Self-attention, attention to the memory, and a feed-forward network."""
    _shape(site, call["memory"])
    x, shape = call["tgt"], _shape(site, call["tgt"])
    return [], [_decoded(site, m, x, call["memory"], shape, _decoder_masks(call))]


def decoder(site: Site, call: Call, m: nn.TransformerDecoder) -> Operation:
    """Decoder layers, and a norm."""
    _shape(site, call["memory"])
    value, shape = call["tgt"], _shape(site, call["tgt"])
    for layer in m.layers:
        if type(layer) is not nn.TransformerDecoderLayer:
            raise NotLayerwise(f"{type(layer).__name__} has no layer rule")
        value = _decoded(site, layer, value, call["memory"], shape, _decoder_masks(call))
    return _normed(site, m, value, shape)
