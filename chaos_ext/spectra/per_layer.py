"""Spectra of the diagonal blocks of H, one for each layer or parameter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..base.arguments import require_int
from ..base.parameters import ModuleTree
from ..curvature.hessian import HessianOperator
from .decompose import spectrum
from .spectrum import Spectrum


def spectra_per_layer(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    x: object,
    y: object,
    *,
    by: str = "layer",
    k: int | None = None,
    which: str = "both_ends",
    zero_tol: float | None = None,
    spectrum_dtype: torch.dtype | None = None,
) -> dict[str, Spectrum]:
    """The spectrum of each layer's diagonal block of H, exact.

    The block of a layer is d^2 L / d theta_l^2, everything outside of the layer constant. A layer is a module with
    parameters of its own; a parameter that several share belongs to the first, one of the model itself goes by its own
    name, and frozen ones are left out. Layers are decomposed one after the other, compressed where that pays: no matrix
    larger than the largest block is formed.

    Args:
        model, loss_fn, x, y: as of ``HessianOperator``.
        by: "layer", or "parameter" for a block each.
        k: eigenpairs of a block by Lanczos, all P of a block that is smaller; None: all nonzero ones.
        which, zero_tol, spectrum_dtype: as of ``spectrum``.

    Returns:
        Spectra by the layers' names, in the model's order, each with the loss and its part of the gradient. They do not
        hold on to the model: ``origin`` is None.

    Raises:
        ValueError: an unknown ``by``.
        As ``HessianOperator`` and ``spectrum``.

    Example:
        >>> spectra = ce.spectra_per_layer(model, loss_fn, x, y)
        >>> list(spectra), spectra["2"].size
        (['0', '2'], 27)
    """
    if by not in ("layer", "parameter"):
        raise ValueError(f"by: expected 'layer' or 'parameter', got {by!r}")
    if k is not None:
        require_int("k", k, 1)
    spectra = {}
    for name, block in _blocks(model, by).items():
        op = HessianOperator(model, loss_fn, x, y, params=block)
        size = None if k is None else min(k, op.shape[0])
        spec = spectrum(op, size, which, zero_tol=zero_tol, spectrum_dtype=spectrum_dtype)
        # Each operator has a copy of the whole model's parameters.
        spec.origin, spec.shapes = None, [tuple(s) for s in op.space.shapes]
        spectra[name] = spec
    return spectra


def _blocks(model: nn.Module, by: str) -> dict[str, list[str]]:
    """Names of the parameters of each block."""
    blocks: dict[str, list[str]] = {}
    for name, p in ModuleTree(model).named_parameters:
        if p.requires_grad:
            layer = name.rpartition(".")[0] or name
            blocks.setdefault(layer if by == "layer" else name, []).append(name)
    if not blocks:
        raise ValueError("model: expected at least one parameter with requires_grad=True, got none; unfreeze one")
    return blocks
