"""Local exponents of one step, the dimension that they give a state, and the curvature along batch gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..chaos import local_lyapunov_exponents
from ..curvature.hessian import HessianOperator
from ..spectra.spectrum import Spectrum


def lle_spectrum(spec: Spectrum, lr: float) -> Tensor:
    """ln|1 - lr lambda| of all P eigen-directions of one step, float64 [P], descending, in nats per step.

    The ``nullity`` directions beyond the zero tolerance have exponent exactly 0.

    Args:
        spec: a complete spectrum.
        lr: learning rate.

    Raises:
        ValueError: a partial spectrum, lr < 0.
    """
    if spec.nullity is None:
        raise ValueError("spec: expected a complete spectrum, got a partial one; call spectrum(op) without k")
    local = local_lyapunov_exponents(spec.eigenvalues, lr)
    return torch.cat([local, local.new_zeros(spec.nullity)]).sort(descending=True).values


def batch_sharpness(op: HessianOperator) -> float:
    """g^T H g / g^T g of one batch: the curvature along its own gradient, at one Hessian-vector product.

    Averaged over batches this is the quantity that stays near 2 / lr in mini-batch training (Andreyev, Beneventano,
    "Edge of Stochastic Stability", 2024). NaN for a zero gradient.

    Args:
        op: the operator of the batch.

    Raises:
        StaleOperatorError: the parameters or the batch changed since it was made.
    """
    g = op.gradient
    norm = g.double().square().sum()
    return float(g.double() @ (op @ g).double() / norm)
