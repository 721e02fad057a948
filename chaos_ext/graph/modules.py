"""Modules of torch's that are several rules: gated units, recurrences, attention, Transformers.

A handler gets the graph, the call and the module, and returns what handlers of functions do; one of a module that
returns a tuple makes all steps itself and returns the values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from ..rules.rule import NotLayerwise
from .arguments import Call, only_argument
from .attention import Attention, decoder, decoder_layer, encoder, encoder_layer
from .cells import gru_cell, lstm_cell, rnn_cell
from .contractions import gated
from .recurrences import recurrent
from .site import Operation, Parts, Site


def composed(site: Site, node: fx.Node, module: nn.Module) -> Operation:
    """The steps of a module that returns one tensor."""
    return COMPOSED[type(module)](site, _call(node, module), module)


def several(site: Site, node: fx.Node, module: nn.Module) -> Parts:
    """The values that a module returns in a tuple."""
    make = SEVERAL.get(type(module))
    if make is None:
        raise NotLayerwise(f"{type(module).__name__} has no layer rule")
    return make(site, _call(node, module), module)


def _call(node: fx.Node, module: nn.Module) -> Call:
    return Call(node, tuple(inspect.signature(module.forward).parameters))


def _glu(site: Site, call: Call, m: nn.GLU) -> Operation:
    source = only_argument(call.node, m)
    site.input(source)
    return gated(site, source, len(site.shape[source]), m.dim)


def _attention(site: Site, call: Call, m: nn.MultiheadAttention) -> Parts:
    operands = [call[name] for name in ("query", "key", "value")]
    shapes = [site.shape.get(o) for o in operands]
    if any(s is None or len(s) != 3 for s in shapes):
        raise NotLayerwise("an input without a batch axis")
    masks = [call.get("attn_mask"), call.get("key_padding_mask")]
    own = Attention(site, m, bool(call.plain("need_weights", True)))
    return own(operands, masks, bool(call.plain("average_attn_weights", True)))


COMPOSED: dict[type, Callable[[Site, Call, Any], Operation]] = {
    nn.GLU: _glu,
    nn.RNNCell: rnn_cell,
    nn.GRUCell: gru_cell,
    nn.TransformerEncoderLayer: encoder_layer,
    nn.TransformerDecoderLayer: decoder_layer,
    nn.TransformerEncoder: encoder,
    nn.TransformerDecoder: decoder,
}
SEVERAL: dict[type, Callable[[Site, Call, Any], Parts]] = {
    nn.MultiheadAttention: _attention,
    nn.LSTMCell: lstm_cell,
    **dict.fromkeys((nn.RNN, nn.GRU, nn.LSTM), recurrent),
}
