"""A few extreme eigenpairs of a symmetric operator: thick-restart block Lanczos that checks its residuals."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import NonFiniteError, NotConvergedError

WHICH = ("both_ends", "largest", "smallest", "magnitude")


def largest_of(values: Tensor, k: int, which: str) -> Tensor:
    """Indices, ascending, of the k eigenvalues wanted among ascending ``values``."""
    n = len(values)
    if which == "largest":
        return torch.arange(n - k, n, device=values.device)
    if which == "smallest":
        return torch.arange(k, device=values.device)
    if which == "magnitude":
        return values.abs().argsort(descending=True, stable=True)[:k].sort().values
    low = k // 2
    return torch.cat([torch.arange(i, j, device=values.device) for i, j in ((0, low), (n - (k - low), n))])


def lanczos(
    apply: Callable[[Tensor], Tensor],
    size: int,
    k: int,
    which: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    tol: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """k extreme eigenpairs of a symmetric operator by thick-restart block Lanczos with full reorthogonalisation.

    Each round extends the orthonormal basis V by residuals of the Ritz pairs (in exact arithmetic the next Krylov
    block), and restarts from the Ritz vectors nearest to what is wanted (thick restart, Wu and Simon 2000). The
    Rayleigh-Ritz matrix is V^T H V itself, so a pair counts as converged by its explicit residual ||H y - theta y|| <=
    tol * max|theta|.

    Args:
        apply: block product H X for X [P, b].
        size: P.
        k: number of eigenpairs in total.
        which: "largest", "smallest", "magnitude" or "both_ends" (k // 2 smallest, the rest largest).
        tol: relative residual; default 1e-5 in float32, 1e-10 in float64.
        max_products: limit on the number of columns multiplied; default 100 k + 20 P.
        seed: of the start block.

    Raises:
        NotConvergedError: the limit was reached; carries the residuals.
    """
    tol = tol if tol is not None else (1e-5 if dtype == torch.float32 else 1e-10)
    limit = max_products or 100 * k + 20 * size
    block = min(size, 4)
    width = min(size, max(3 * k, k + 8 * block))
    generator = torch.Generator().manual_seed(seed)

    def fresh(columns: int) -> Tensor:
        return torch.randn(size, columns, generator=generator, dtype=torch.float64, device="cpu").to(device, dtype)

    V = torch.linalg.qr(fresh(max(block, min(k, size)))).Q
    HV, used = apply(V), V.shape[1]
    while True:
        T = V.T @ HV
        theta, U = _ritz(T)
        wanted = largest_of(theta, k, which)
        Y, HY = V @ U[:, wanted].to(dtype), HV @ U[:, wanted].to(dtype)
        R = HY - Y * theta[wanted].to(dtype)
        residual = R.norm(dim=0)
        open_ = residual > tol * theta.abs().max()
        if not bool(open_.any()) or V.shape[1] == size:
            return theta[wanted].to(dtype), Y
        if used >= limit:
            raise NotConvergedError(
                f"lanczos: {int(open_.sum())} of {k} eigenpairs above the tolerance {tol:g} after {used} products; "
                "raise tol or max_products",
                residual,
            )
        if V.shape[1] + block > width < size:
            kept = largest_of(theta, k + (width - k) // 2, which)
            V, HV = V @ U[:, kept].to(dtype), HV @ U[:, kept].to(dtype)
        worst = residual.argsort(descending=True)[: min(block, size - V.shape[1])]
        W = _orthogonalised(R[:, worst], V, fresh)
        V, HV = torch.cat([V, W], 1), torch.cat([HV, apply(W)], 1)
        used += W.shape[1]


def _ritz(T: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenpairs of the Rayleigh-Ritz matrix, in float64."""
    try:
        return torch.linalg.eigh((T + T.T).double() / 2)
    except torch.linalg.LinAlgError as e:  # type: ignore[attr-defined]
        if not bool(torch.isfinite(T).all()):
            raise NonFiniteError("lanczos: products with the operator have NaN or inf") from e
        raise NotConvergedError("lanczos: LAPACK did not converge on the Rayleigh-Ritz matrix") from e


def _orthogonalised(W: Tensor, V: Tensor, fresh: Callable[[int], Tensor]) -> Tensor:
    """W orthonormal and orthogonal to V; directions that vanish are replaced by random ones."""
    for _ in range(3):
        scale = W.norm(dim=0).clamp_min(torch.finfo(W.dtype).tiny)
        W = W / scale
        W = W - V @ (V.T @ W)
        small = W.norm(dim=0) < 1e3 * torch.finfo(W.dtype).eps
        if bool(small.any()):
            W[:, small] = fresh(int(small.sum()))
    W = torch.linalg.qr(W - V @ (V.T @ W)).Q
    return torch.linalg.qr(W - V @ (V.T @ W)).Q
