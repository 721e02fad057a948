"""The native operators as typed Python functions: the only package that names ``torch.ops.chaos_ext``.

One module a folder of csrc/; ``library`` loads the compiled code first.

Index legend: N batch, C classes, k tangent columns, O/I output/input features, P parameters, q rank. Formulas: csrc/.
None of the operators is differentiable: the derivatives are what they compute.
"""

from .dynamics import (
    ADAM,
    DIAGONAL,
    LINEAR,
    MAX_NODES,
    MAX_SLOTS,
    MOMENTUM,
    PLAIN,
    SCALE,
    SOFTMAX,
    SUM,
    projected_sgd_,
    tangent_product,
    tangent_update_,
)
from .hessian import hessian_block_, use_huge_pages_
from .layers import (
    CELU,
    ELU,
    GELU_ERF,
    GELU_TANH,
    HARDTANH,
    LEAKY_RELU,
    PIECEWISE_LINEAR,
    RELU,
    SELU,
    SIGMOID,
    SILU,
    SOFTPLUS,
    TANH,
    activation,
    conv_lanes_,
    norm_tangent_,
    norm_tangent_backward_,
)
from .library import BUILD_CONFIG, CUDA_ERROR
from .losses import bce_with_logits, cross_entropy, cross_entropy_labels, cross_entropy_tangent, mse
from .spectrum import tridiagonal_apply, tridiagonal_ql, tridiagonalise

__all__ = [
    "ADAM",
    "BUILD_CONFIG",
    "CELU",
    "CUDA_ERROR",
    "DIAGONAL",
    "ELU",
    "GELU_ERF",
    "GELU_TANH",
    "HARDTANH",
    "LEAKY_RELU",
    "LINEAR",
    "MAX_NODES",
    "MAX_SLOTS",
    "MOMENTUM",
    "PIECEWISE_LINEAR",
    "PLAIN",
    "RELU",
    "SCALE",
    "SELU",
    "SIGMOID",
    "SILU",
    "SOFTMAX",
    "SOFTPLUS",
    "SUM",
    "TANH",
    "activation",
    "bce_with_logits",
    "conv_lanes_",
    "cross_entropy",
    "cross_entropy_labels",
    "cross_entropy_tangent",
    "hessian_block_",
    "mse",
    "norm_tangent_",
    "norm_tangent_backward_",
    "projected_sgd_",
    "tangent_product",
    "tangent_update_",
    "tridiagonal_apply",
    "tridiagonal_ql",
    "tridiagonalise",
    "use_huge_pages_",
]
