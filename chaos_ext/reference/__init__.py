"""Slow, obvious pure-torch twins of the native operators: for tests and benchmarks only.

Same names, arguments and results as in ``_ops``; each reads like its formula. They form 1 - p and the like, so they are
meant for float64, and they allocate what the operators fuse away.
"""

from .dynamics import projected_sgd_, tangent_product, tangent_update_
from .hessian import hessian_block_, use_huge_pages_
from .layers import activation, conv_lanes, conv_lanes_, norm_tangent_, norm_tangent_backward_, normalise
from .losses import bce_with_logits, cross_entropy, cross_entropy_labels, cross_entropy_tangent, mse
from .spectrum import tridiagonal_apply, tridiagonal_ql, tridiagonalise

__all__ = [
    "activation",
    "bce_with_logits",
    "conv_lanes",
    "conv_lanes_",
    "cross_entropy",
    "cross_entropy_labels",
    "cross_entropy_tangent",
    "hessian_block_",
    "mse",
    "norm_tangent_",
    "norm_tangent_backward_",
    "normalise",
    "projected_sgd_",
    "tangent_product",
    "tangent_update_",
    "tridiagonal_apply",
    "tridiagonal_ql",
    "tridiagonalise",
    "use_huge_pages_",
]
