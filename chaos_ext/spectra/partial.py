"""A few extreme eigenpairs as a ``Spectrum``: what is asked for, checked, and where it begins."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..base.arguments import require_int, require_number
from ..curvature.basis import Coordinates
from .lanczos import WHICH, lanczos, largest_of
from .options import check_options
from .products import Products, products_of
from .spectrum import Spectrum


def partial_spectrum(
    op: Any,
    k: int,
    which: str,
    *,
    zero_tol: float | None,
    dtype: torch.dtype | None,
    tol: float | None,
    max_products: int | None,
    start: Spectrum | None,
) -> Spectrum:
    """``spectrum`` with k."""
    products = products_of(op)
    tolerance = check_options(products.dtype if dtype is None else dtype, zero_tol)
    _check(products, k, which, dtype, tol, max_products)
    values, V = lanczos(
        products.apply,
        products.size,
        k,
        which,
        dtype=products.dtype,
        device=products.device,
        tol=tol,
        max_products=max_products,
        start=None if start is None else _begin(start, products, k, which),
    )
    known = all(hasattr(op, name) for name in ("loss", "gradient", "origin"))
    spec = Spectrum(
        values,
        V,
        Coordinates(products.size),
        products.size,
        complete=False,
        zero_tol=tolerance,
        scale=float(values.abs().max()),
        loss=op.loss if known else None,
        gradient=op.gradient if known else None,
        origin=op.origin if known else None,
        ends=ends_of(values, which),
    )
    spec.unseen = unseen_of(values.tolist(), products.size, which)
    return spec


def unseen_of(values: list[float], size: int, which: str) -> tuple[float, float]:
    """The interval that holds all eigenvalues but these, which ascend; at infinity if these are all."""
    low = {"largest": 0, "smallest": len(values)}.get(which, len(values) // 2)
    if len(values) == size:
        return math.inf, math.inf
    if which == "magnitude":
        least = min(map(abs, values))
        return -least, least
    return values[low - 1] if low else -math.inf, values[low] if low < len(values) else math.inf


def ends_of(values: Tensor, which: str) -> tuple[int, int]:
    """How many of the k pairs found are the smallest and how many the largest of H."""
    k = len(values)
    # Of the largest |lambda| the negative ones are the smallest, the others the largest: nothing lies beyond them.
    low = {"largest": 0, "smallest": k, "both_ends": k // 2, "magnitude": int((values < 0).sum())}[which]
    return low, k - low


def _check(
    op: Products, k: int, which: str, dtype: torch.dtype | None, tol: float | None, max_products: int | None
) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= op.size:
        raise ValueError(f"k: expected an int in 1..P = {op.size}, got {k!r}")
    check_lanczos(which, tol, max_products)
    if dtype not in (None, op.dtype):
        raise ValueError("spectrum_dtype: not available with k; convert the model with .double()")


def check_lanczos(which: str, tol: float | None, max_products: int | None) -> None:
    """Refuses options of k pairs that are out of range, also where all are asked for, which needs none."""
    if tol is not None:
        require_number("tol", tol, finite=False)
        if not 0 < tol < 1:
            raise ValueError(f"tol: expected 0 < tol < 1, got {tol!r}")
    if max_products is not None:
        require_int("max_products", max_products, 1)
    if which not in WHICH:
        raise ValueError(f"which: expected one of {WHICH}, got {which!r}")


def _begin(start: Spectrum, op: Products, k: int, which: str) -> Tensor | None:
    """Those eigenvectors of another spectrum that are wanted of this one, [P, at most k]."""
    if not isinstance(start, Spectrum):
        raise TypeError(f"start: expected a Spectrum, got {type(start).__name__}")
    if start.size != op.size:
        raise ValueError(f"start: expected a spectrum of P = {op.size} like the operator, got P = {start.size}")
    values = start.eigenvalues
    if not len(values):
        return None
    index = largest_of(values, min(k, len(values)), which)
    return start.eigenvectors(index).to(op.device, op.dtype)
