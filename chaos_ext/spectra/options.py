"""Options that complete and partial spectra share."""

from __future__ import annotations

import torch

from ..base.arguments import require_number

ZERO_TOL = {torch.float32: 1e-5, torch.float64: 1e-12}


def check_options(dtype: torch.dtype, zero_tol: float | None) -> float:
    """The zero tolerance in force, after checking both options."""
    if dtype not in ZERO_TOL:
        raise ValueError(f"spectrum_dtype: expected torch.float32 or torch.float64, got {dtype}")
    tolerance = ZERO_TOL[dtype] if zero_tol is None else zero_tol
    require_number("zero_tol", tolerance, finite=False)
    if not 0 <= tolerance < 1:
        raise ValueError(f"zero_tol: expected 0 <= zero_tol < 1, got {zero_tol!r}")
    return tolerance
