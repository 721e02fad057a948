"""What all eigenpairs of an operator cost, before anything of that size is made."""

from __future__ import annotations

import functools
import logging
import time

import torch

from ..curvature.dataset import DatasetHessian
from ..curvature.hessian import COMPRESSED_SIZE, HessianOperator
from ..errors import NotConvergedError
from .eigh import eigh
from .tridiagonal import Tridiagonal

log = logging.getLogger("chaos_ext")

FORMED_SIZE = 64  # below this forming the eigenvectors takes no longer
_LONG_SIZE = 3000  # from here on a decomposition may take half a minute
_LONG_SECONDS = 30.0
_PROBE_SIZE = 384


def decomposed_size(op: HessianOperator | DatasetHessian, dtype: torch.dtype) -> int:
    """At most how large the matrix is that ``spectrum(op)`` decomposes."""
    bound = op.compressed_bound(dtype) if isinstance(op, HessianOperator) else None
    return bound if bound is not None and bound < COMPRESSED_SIZE * op.shape[0] else op.shape[0]


def eigenpairs(S: torch.Tensor, form: bool) -> tuple[torch.Tensor, torch.Tensor | Tridiagonal]:
    """Eigenvalues, and eigenvectors formed or as an operator."""
    if not form and S.is_cpu and len(S) >= FORMED_SIZE:
        try:
            implicit = Tridiagonal(S)
            return implicit.eigenvalues, implicit
        except NotConvergedError as e:
            log.warning("%s; using eigh", e)
    return eigh(S)


@functools.lru_cache(maxsize=64)
def announce(size: int, dtype: torch.dtype, device: torch.device, form: bool, entry_bytes: int) -> None:
    """Says once what a decomposition will cost where that is half a minute or more, by a small one of the same kind."""
    if size < _LONG_SIZE:
        return
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(_PROBE_SIZE, _PROBE_SIZE, generator=generator, dtype=torch.float64, device="cpu")
    A = A.to(device, dtype)
    began = time.perf_counter()
    float(eigenpairs(A + A.T, form)[0][0])
    expected = (time.perf_counter() - began) * (size / _PROBE_SIZE) ** 3
    if expected >= _LONG_SECONDS:
        log.warning(
            "spectrum: all eigenpairs of a matrix of size %d at most, in %.1f GB: expect %.0f s or more; "
            "spectrum(op, k=...) and CGD(..., k=...) find a few in a small part of that",
            size,
            entry_bytes * size**2 / 1e9,
            expected,
        )
