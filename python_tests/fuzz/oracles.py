"""What a call that an operator carried out should have made: the twins of ``chaos_ext.reference``, and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from chaos_ext import _ops, reference

from .calls import Arguments

LARGEST = 1e6  # beyond, sums overflow or cancel in other orders
# Of the largest number of a result; sums in float32 lose digits that the twins in float64 keep.
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-3}


def comparable(arguments: Arguments) -> bool:
    """Whether all numbers are such that the order of sums does not matter much."""
    return all(_moderate(x) for x in tree_leaves(arguments))


def _moderate(x: Any) -> bool:
    if isinstance(x, float):
        return abs(x) <= LARGEST
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point or x.numel() == 0:
        return True
    size = x.detach().abs()
    return bool((size <= LARGEST).all())


def _wide(arguments: Arguments) -> Arguments:
    """Copies in float64."""

    def copy(t: Tensor) -> Tensor:
        own = t.detach().resolve_neg().clone()
        return own.double() if own.dtype.is_floating_point else own

    return tree_map_only(Tensor, copy, arguments)


def expected(name: str, arguments: Arguments) -> tuple[list[Tensor | None], Arguments] | None:
    """Results and written operands, None where there is nothing to say; a result of None is not compared."""
    given = _wide(arguments)
    oracle: Callable[..., Any] = ORACLES.get(name, getattr(reference, name))
    results = oracle(*given)
    if results is NotImplemented:
        return None
    return ([results] if isinstance(results, Tensor) else list(results or ())), given


def difference(result: Tensor, wanted: Tensor, dtype: torch.dtype) -> str | None:
    """Why a result is not what was wanted, both with NaN in the same places."""
    if result.shape != wanted.shape:
        return f"shape {list(result.shape)}, expected {list(wanted.shape)}"
    result, wanted = result.detach().double(), wanted.double()
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    close = torch.isclose(result, wanted, rtol=0, atol=LIMITS[dtype] * max(scale, 1.0), equal_nan=True)
    return None if bool(close.all()) else f"{int((~close).sum())} of {close.numel()} numbers are wrong"


def _conv_lanes_(out: Tensor, scalars: Tensor, lanes: Tensor, kind: int, *options: Any) -> None:
    """Tap by tap, for outputs of any size."""
    (sh, sw), (ph, pw), (dh, dw), groups, accumulate = (int(x) if isinstance(x, bool) else x for x in options)
    roles = dict(zip(_ops.CONV_ROLES[kind], (torch.zeros_like(out), lanes, scalars[..., None])))
    own = dict(zip(_ops.CONV_ROLES[kind], (True, False, False)))
    X, W, Z = roles["X"], roles["W"], roles["Z"]
    N, O, OH, OW = Z.shape[:4]
    C, H, width = X.shape[1:4]
    X, Z = X.unflatten(1, (groups, -1)) if C else X[:, None], Z.unflatten(1, (groups, -1)) if O else Z[:, None]
    W = W.unflatten(0, (groups, -1)) if O else W[None]
    if not (out.numel() and scalars.numel() and lanes.numel()):
        out.copy_(out if accumulate else torch.zeros_like(out))
        return
    for i in range(W.shape[3]):
        for j in range(W.shape[4]):
            for oh in range(OH):
                for ow in range(OW):
                    h, w = oh * sh - ph + i * dh, ow * sw - pw + j * dw
                    if 0 <= h < H and 0 <= w < width:
                        x, v, z = X[:, :, :, h, w], W[:, :, :, i, j], Z[:, :, :, oh, ow]
                        if own["Z"]:
                            z += torch.einsum("ngck,gock->ngok", *_same(x, v))
                        elif own["X"]:
                            x += torch.einsum("ngok,gock->ngck", *_same(z, v))
                        else:
                            v += torch.einsum("ngok,ngck->gock", *_same(z, x))
    made = {"X": X.flatten(1, 2), "W": W.flatten(0, 1), "Z": Z.flatten(1, 2)}[_ops.CONV_ROLES[kind][0]]
    out.copy_(out + made if accumulate else made)


def _same(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    k = max(a.shape[-1], b.shape[-1])
    return a.expand(*a.shape[:-1], k), b.expand(*b.shape[:-1], k)


def _activation(z: Tensor, kind: int, alpha: float, beta: float) -> Any:
    if not (0.05 <= alpha <= 50 and 0.05 <= beta <= 50) or (kind == _ops.HARDTANH and alpha >= beta):
        return NotImplemented  # parameters without a meaning
    if kind == _ops.CELU and alpha not in (0.5, 1.0, 2.0):
        return NotImplemented  # torch rounds 1 / alpha to float32
    return reference.activation(z, kind, alpha, beta)


# The operators use that xh is normalised and that probabilities sum to 1; without, there is nothing to compare.


def _norm_tangent_(out: Tensor, xh: Tensor, *rest: Any) -> Any:
    return reference.norm_tangent_(out, xh, *rest) if _is_normalised(xh) and out.numel() else NotImplemented


def _norm_tangent_backward_(out: Tensor, dweight: Tensor, dbias: Tensor, xh: Tensor, *rest: Any) -> Any:
    if not _is_normalised(xh) or not dweight.numel():
        return NotImplemented
    return reference.norm_tangent_backward_(out, dweight, dbias, xh, *rest)


def _is_normalised(xh: Tensor) -> bool:
    squares = xh.square().mean((0, 2))
    return bool(((squares - 1).abs() < 1e-5).all() and (xh.mean((0, 2)).abs() < 1e-5).all())


def _cross_entropy_tangent(p: Tensor, s: Tensor, dz: Tensor) -> Any:
    return reference.cross_entropy_tangent(p, s, dz) if _are_probabilities(p) else NotImplemented


def _are_probabilities(p: Tensor) -> bool:
    return bool(((p.sum(1) - 1).abs() < 1e-5).all() and (p >= 0).all())


def _sweeps(operands: list[Tensor], nodes: list[int]) -> bool:
    """Whether the twins can sweep this: a softmax of probabilities."""
    softmax = any(node.kind == _ops.SOFTMAX for node in _ops.records(_ops.NodeRecord, nodes))
    return not softmax or _are_probabilities(operands[-2])


def _tangent_product(Y: Tensor, operands: list[Tensor], values: list[int], nodes: list[int], *rest: Any) -> Any:
    if Y.shape[1] == 0 or not _sweeps(operands, nodes):
        return NotImplemented
    return reference.tangent_product(Y, operands, values, nodes, *rest)


def _tangent_update_(Y: Tensor, HY: Tensor | None, operands: list[Tensor], values: Any, nodes: Any, *rest: Any) -> Any:
    if Y.shape[1] == 0 or not _sweeps(operands, nodes):
        return NotImplemented
    return reference.tangent_update_(Y, HY, operands, values, nodes, *rest)


def _tridiagonal(d: Tensor, e: Tensor) -> Tensor:
    return torch.diag(d) + torch.diag(e, 1) + torch.diag(e, -1)


def _tridiagonal_ql(d: Tensor, e: Tensor, tol: float) -> Any:
    if tol > 1e-6:
        return NotImplemented
    return [torch.linalg.eigvalsh(_tridiagonal(d, e)) if len(d) else d, None, None, None]


def _tridiagonalise(S: Tensor) -> Any:
    """Not the entries, whose signs and order of rounding are free: see ``judge``."""
    return [None, None, None]


def _tridiagonal_apply(reflectors: Tensor, *rest: Any) -> Any:
    n = rest[3].shape[1]
    padded = bool(reflectors[:n, :n].triu().any()) or bool(reflectors[n:].any()) or bool(reflectors[:, n:].any())
    tiny = bool((reflectors.square().sum(1) < 1e-200)[reflectors.abs().amax(1) > 0].any()) if n else False
    return NotImplemented if padded or tiny else reference.tridiagonal_apply(reflectors, *rest)


ORACLES: dict[str, Callable[..., Any]] = {
    "conv_lanes_": _conv_lanes_,
    "activation": _activation,
    "norm_tangent_": _norm_tangent_,
    "norm_tangent_backward_": _norm_tangent_backward_,
    "cross_entropy_tangent": _cross_entropy_tangent,
    "tangent_product": _tangent_product,
    "tangent_update_": _tangent_update_,
    "tridiagonal_ql": _tridiagonal_ql,
    "tridiagonalise": _tridiagonalise,
    "tridiagonal_apply": _tridiagonal_apply,
}


def wrong_spectrum(S: Tensor, d: Tensor, e: Tensor) -> str | None:
    """Of T instead of its entries: the eigenvalues are those of S's lower triangle."""
    A = S.detach().double()
    values = torch.linalg.eigvalsh(A.tril() + A.tril(-1).T) if len(A) else d
    return difference(torch.linalg.eigvalsh(_tridiagonal(d, e)) if len(d) else d, values, S.dtype)
