"""The dominant eigenspace: that of the k algebraically largest eigenvalues, where it is determined."""

from __future__ import annotations

import torch
from torch import Tensor

from .spectrum import Spectrum

SETS = ("dominant", "bulk")  # what is pruned: this eigenspace, and all but it


def largest(spec: Spectrum, k: int) -> Tensor:
    """The k algebraically largest eigenvalues, a bool mask [r].

    Raises:
        ValueError: H has fewer than k of them beyond the zero tolerance, so that eigenvectors of 0, which are no
            particular ones, would be among them; or the spectrum is a partial one without the k largest.
    """
    values = spec.eigenvalues
    if spec.nullity is None and (spec.ends is None or spec.ends[1] < k):
        known = "an unknown part" if spec.ends is None else f"the {spec.ends[1]} largest and {spec.ends[0]} smallest"
        raise ValueError(
            f"k: the dominant space needs the {k} largest eigenvalues, and this partial spectrum has {known}; take "
            f"spectrum(op, k={k}, which='largest'), or a complete one"
        )
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[len(values) - k :] = True
    chosen = values[mask]
    zeros = bool(spec.nullity) and not bool((chosen > 0).all())
    if len(chosen) < k or zeros or not bool((chosen.abs() > spec.zero_threshold).all()):
        above = int((values > spec.zero_threshold).sum())
        raise ValueError(
            f"k: expected at most {above}, got {k}: H has {above} eigenvalues above its zero tolerance "
            f"{spec.zero_threshold:.3g}, and the eigenvectors of further ones are not determined; use a smaller k, or "
            "a larger batch"
        )
    return mask
