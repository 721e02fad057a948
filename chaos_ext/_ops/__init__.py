"""The native operators as typed Python functions: the only file that names ``torch.ops.chaos_ext``.

Loads the extension's libraries: ``_C`` (schemas, CPU kernels) always, ``_C_cuda`` where torch itself has CUDA. A CUDA
library that does not load leaves the CPU operators usable; ``CUDA_ERROR`` holds the reason, ``build_info()`` shows it.

Index legend: N batch, C classes, k tangent columns, O/I output/input features, P parameters, q rank. Formulas: csrc/.
None of the operators is differentiable: the derivatives are what they compute.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_FOLDER = Path(__file__).resolve().parents[1]  # the package, where setup.py puts the libraries
_CONFIG_FILE = _FOLDER / "_build_config.json"
BUILD_CONFIG: dict[str, Any] = json.loads(_CONFIG_FILE.read_text()) if _CONFIG_FILE.exists() else {}
_REMEDY = "build it with `pip install .` (or `pip install --no-build-isolation -e .`) in the repository"


def _load_cpu() -> None:
    path = _FOLDER / "_C.abi3.so"
    if not path.exists():
        raise ImportError(f"chaos_ext: the native library {path} is missing: {_REMEDY}")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"chaos_ext: {path} does not load with torch {torch.__version__} (needs 2.10 or later): {error}; {_REMEDY}"
        ) from error


def _load_cuda() -> str | None:
    """None where the CUDA kernels are loaded, else the reason why not."""
    path = _FOLDER / "_C_cuda.abi3.so"
    if not path.exists():
        return f"the CUDA library was not built ({BUILD_CONFIG.get('cuda_reason', 'reason unknown')})"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    built_with = BUILD_CONFIG.get("nvcc") or torch.version.cuda
    if built_with.split(".")[0] != torch.version.cuda.split(".")[0]:
        remedy = "build with --no-build-isolation and a matching CUDA_HOME"
        return f"the CUDA library was built with CUDA {built_with}, torch has CUDA {torch.version.cuda}: {remedy}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return str(error)
    return None


_load_cpu()
CUDA_ERROR: str | None = _load_cuda()

_activation = torch.ops.chaos_ext.activation.default
_conv_lanes_ = torch.ops.chaos_ext.conv_lanes_.default
_norm_tangent_ = torch.ops.chaos_ext.norm_tangent_.default
_norm_tangent_backward_ = torch.ops.chaos_ext.norm_tangent_backward_.default
_cross_entropy = torch.ops.chaos_ext.cross_entropy.default
_cross_entropy_labels = torch.ops.chaos_ext.cross_entropy_labels.default
_cross_entropy_tangent = torch.ops.chaos_ext.cross_entropy_tangent.default
_bce_with_logits = torch.ops.chaos_ext.bce_with_logits.default
_use_huge_pages_ = torch.ops.chaos_ext.use_huge_pages_.default
_mse = torch.ops.chaos_ext.mse.default
_hessian_block_ = torch.ops.chaos_ext.hessian_block_.default
_tridiagonalise = torch.ops.chaos_ext.tridiagonalise.default
_tridiagonal_ql = torch.ops.chaos_ext.tridiagonal_ql.default
_tridiagonal_apply = torch.ops.chaos_ext.tridiagonal_apply.default
_tangent_product = torch.ops.chaos_ext.tangent_product.default
_tangent_update_ = torch.ops.chaos_ext.tangent_update_.default
_projected_sgd_ = torch.ops.chaos_ext.projected_sgd_.default

# Values of ``kind``; the parameters that a kind does not name are ignored.
RELU, LEAKY_RELU, ELU, SELU, CELU, SIGMOID, TANH, SOFTPLUS, SILU, GELU_ERF, GELU_TANH, HARDTANH = range(12)
PIECEWISE_LINEAR = frozenset((RELU, LEAKY_RELU, HARDTANH))


def activation(z: Tensor, kind: int, alpha: float = 0.0, beta: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative of an activation at z (any shape); the last is empty if piecewise linear.

    ``alpha, beta`` are the slope of LEAKY_RELU, the alpha of ELU and CELU, (beta, threshold) of SOFTPLUS and (min, max)
    of HARDTANH.
    """
    return _activation(z, kind, alpha, beta)


def conv_lanes_(
    out: Tensor,
    scalars: Tensor,
    lanes: Tensor,
    kind: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    accumulate: bool,
) -> None:
    """One product of a convolution of X [N, C, H, W] with W [O, C / groups, kh, kw] to Z [N, O, OH, OW].

    ``out`` and ``lanes`` carry k columns, the last axis. kind: 0 Z from X, 1 Z from W, 2 X from Z, 3 X from W, 4 W from
    Z, 5 W from X (out from lanes); ``scalars`` is the third operand. accumulate: add to out.
    """
    _conv_lanes_(out, scalars, lanes, kind, stride, padding, dilation, groups, accumulate)


def norm_tangent_(
    out: Tensor,
    xh: Tensor,
    r: Tensor,
    d: Tensor | None,
    gamma: Tensor | None,
    dgamma: Tensor | None,
    dbeta: Tensor | None,
) -> None:
    """out = r gamma (d - mean d - xh mean(xh d)) + xh dgamma + dbeta, the means over the groups' entries.

    Entries are [B, G, M] with means over B and M: out, d [B, G, M, k], xh [B, G, M], r, gamma [G], dgamma, dbeta
    [G, k]. None is a zero, of gamma a one.
    """
    _norm_tangent_(out, xh, r, d, gamma, dgamma, dbeta)


def norm_tangent_backward_(
    out: Tensor,
    dweight: Tensor,
    dbias: Tensor,
    xh: Tensor,
    r: Tensor,
    delta: Tensor,
    d: Tensor | None,
    ddelta: Tensor | None,
    gamma: Tensor | None,
    dgamma: Tensor | None,
) -> None:
    """Tangents of out = r gamma (delta - mean delta - xh mean(xh delta)) [B, G, M, k], and of the gradients.

    xh is the normalised value of an input whose tangent is d, dweight and dbias [G, k] are the tangents of the sums of
    xh delta and of delta. Shapes as of ``norm_tangent_``; delta as xh, ddelta as d.
    """
    _norm_tangent_backward_(out, dweight, dbias, xh, r, delta, d, ddelta, gamma, dgamma)


def cross_entropy(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """loss [], delta [N, C] and p [N, C] of sum t (logsumexp z - z) for logits z and target weights t [N, C]."""
    return _cross_entropy(z, t)


def cross_entropy_labels(z: Tensor, y: Tensor, own: float, others: float) -> tuple[Tensor, Tensor, Tensor]:
    """``cross_entropy`` with the target weights ``own`` at the label y [N] of each row and ``others`` elsewhere.

    A label outside [0, C) matches no class.
    """
    return _cross_entropy_labels(z, y, own, others)


def cross_entropy_tangent(p: Tensor, s: Tensor, dz: Tensor) -> Tensor:
    """s (diag p - p p^T) dz [N, C, k] for p [N, C], s [N], dz [N, C, k]."""
    return _cross_entropy_tangent(p, s, dz)


def bce_with_logits(z: Tensor, y: Tensor, w: Tensor, pw: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """loss [], delta and curvature (as z) of scale sum w ((1 - y) softplus(z) + pw y softplus(-z)).

    w and pw have z's shape or are empty [0] (ones).
    """
    return _bce_with_logits(z, y, w, pw, scale)


def use_huge_pages_(t: Tensor) -> None:
    """Asks for huge pages behind a fresh, untouched CPU tensor; its values are not defined by this."""
    _use_huge_pages_(t)


def mse(z: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """loss [] and delta (as z) of scale sum (z - y)^2."""
    return _mse(z, y, scale)


def hessian_block_(
    H: Tensor,
    a_s: Tensor,
    K: Tensor | None,
    a_t: Tensor | None,
    delta_t: Tensor | None,
    J: Tensor | None,
    row_w: int,
    row_b: int,
    col_w: int,
    col_b: int,
    same: bool,
) -> None:
    """Writes the block of layers s (rows) and t (columns) into H [P, P], and its transpose.

    With a_s [N, I_s], K [O_s, N, O_t], a_t [N, I_t], delta_t [N, O_t], J [O_s, N, I_t], and a constant input 1 (of J:
    0) appended for the bias, ``H[(i, j), (k, l)] = sum_n a_s[n, j] (K[i, n, k] a_t[n, l] + delta_t[n, k] J[i, n, l])``.
    Rows are row_w + i I_s + j for the weight, row_b + i for the bias; columns alike; negative offsets are left out.
    ``same``: s is t (a_s serves both, no delta_t, J). Without K, a_t or without delta_t, J their term is absent.
    """
    _hessian_block_(H, a_s, K, a_t, delta_t, J, row_w, row_b, col_w, col_b, same)


def tridiagonalise(S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S = Q T Q^T of a symmetric S [n, n] on the CPU: reflectors, and T's diagonal d [n], e [n - 1] in float64.

    Only the lower triangle of S is read. Row i of ``reflectors`` (padded to blocks of 16) is v_i, i numbers and zeros,
    with Q = H_{n-1} .. H_1, H_i = 1 - 2 v_i v_i^T / |v_i|^2. d is NaN where S is not finite.
    """
    return _tridiagonalise(S)


def tridiagonal_ql(d: Tensor, e: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """T = R diag R^T of a tridiagonal T: values [n] ascending, order [n], sweeps [s, 3] and rotations [r, 2] (c, s).

    Off-diagonals up to ``tol`` max|T| count as zero. Values are NaN where QL did not converge or T is not finite. A
    sweep (l, m, first) is the rotations first, first + 1, .. of the planes (i, i + 1), i = m - 1 .. l, of R^T.
    """
    return _tridiagonal_ql(d, e, tol)


def tridiagonal_apply(
    reflectors: Tensor, order: Tensor, sweeps: Tensor, rotations: Tensor, x: Tensor, transpose: bool
) -> Tensor:
    """U x or (``transpose``) U^T x of the rows x [k, n] (float64), U = Q R with columns in ``order``."""
    return _tridiagonal_apply(reflectors, order, sweeps, rotations, x, transpose)


# Node kinds of a tangent sweep, and what becomes of H y in an update: csrc/dynamics/tangent_program.h.
LINEAR, SCALE, SUM, SOFTMAX, DIAGONAL = range(5)
PLAIN, MOMENTUM, ADAM = 1, 2, 3
MAX_NODES = MAX_SLOTS = 64


def tangent_product(
    Y: Tensor, operands: Sequence[Tensor], values: Sequence[int], nodes: Sequence[int], factors: Sequence[float]
) -> Tensor:
    """H Y [P, k] by one sweep of the nodes of a tape, in blocks of columns; Y with contiguous rows.

    ``values``: rows of each value's tangent. ``nodes``: kind, in, in2, out, row_w, row_b of each node, the loss last
    (-1: constant); ``factors``: alpha, beta of each. ``operands`` in their order: LINEAR a [R, I], W [O, I], delta
    [R, O]; SCALE phi' and phi'' delta (or empty); SUM none (alpha in + beta in2); SOFTMAX p [R, C], s [R]; DIAGONAL
    the curvature (or empty: alpha).
    """
    return _tangent_product(Y, operands, values, nodes, factors)


def tangent_update_(
    Y: Tensor,
    HY: Tensor | None,
    operands: Sequence[Tensor],
    values: Sequence[int],
    nodes: Sequence[int],
    factors: Sequence[float],
    vectors: Sequence[Tensor],
    slots: Sequence[int],
    coefficients: Sequence[float],
) -> Tensor:
    """Y [S, k] <- J Y in place; returns partial sums of squares [c, k] of the new columns.

    HY [P, k], or None and the nodes as in ``tangent_product``. ``slots``: kind, first, rows, buffer, buffer of each
    parameter. ``coefficients``: decay, mu, c1, e1, e2, b2, keep. With K = H y + decay d: PLAIN d - e1 K; MOMENTUM
    v' = mu v + c1 K, d - e1 K - e2 v'; ADAM also u' = b2 u + q K, keep d - A v' + B u', with q, A, B [rows] in
    ``vectors``.
    """
    return _tangent_update_(Y, HY, operands, values, nodes, factors, vectors, slots, coefficients)


def projected_sgd_(
    param: Tensor,
    grad: Tensor,
    L: Tensor,
    R: Tensor,
    buf: Tensor | None,
    first: bool,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """One step of torch's SGD recurrence along grad - L R, in place; param is viewed as [O, I], L [O, q], R [q, I].

    ``first``: buf is uninitialised memory and is set to the step's direction. Momentum needs buf.
    """
    _projected_sgd_(param, grad, L, R, buf, first, lr, momentum, dampening, weight_decay, nesterov, maximize)


@torch.library.register_fake("chaos_ext::activation")
def _(z: Tensor, kind: int, alpha: float, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    d2 = z.new_empty(0) if kind in PIECEWISE_LINEAR else torch.empty_like(z)
    return torch.empty_like(z), torch.empty_like(z), d2


@torch.library.register_fake("chaos_ext::conv_lanes_")
def _(*args: object) -> None:
    return None


@torch.library.register_fake("chaos_ext::norm_tangent_")
def _(*args: object) -> None:
    return None


@torch.library.register_fake("chaos_ext::norm_tangent_backward_")
def _(*args: object) -> None:
    return None


@torch.library.register_fake("chaos_ext::cross_entropy")
def _(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty(()), torch.empty_like(z), torch.empty_like(z)


@torch.library.register_fake("chaos_ext::cross_entropy_labels")
def _(z: Tensor, y: Tensor, own: float, others: float) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty(()), torch.empty_like(z), torch.empty_like(z)


@torch.library.register_fake("chaos_ext::cross_entropy_tangent")
def _(p: Tensor, s: Tensor, dz: Tensor) -> Tensor:
    return torch.empty_like(dz)


@torch.library.register_fake("chaos_ext::bce_with_logits")
def _(z: Tensor, y: Tensor, w: Tensor, pw: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty(()), torch.empty_like(z), torch.empty_like(z)


@torch.library.register_fake("chaos_ext::use_huge_pages_")
def _use_huge_pages_fake(t: Tensor) -> None:
    return None


@torch.library.register_fake("chaos_ext::mse")
def _(z: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return z.new_empty(()), torch.empty_like(z)


@torch.library.register_fake("chaos_ext::hessian_block_")
def _(*args: object) -> None:
    return None


@torch.library.register_fake("chaos_ext::tridiagonalise")
def _(S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = S.shape[0]
    blocks = (n + 15) // 16
    d, e = (S.new_empty(size, dtype=torch.float64) for size in (n, max(n - 1, 0)))
    return S.new_empty(16 * blocks, 16 * (blocks | 1)), d, e


@torch.library.register_fake("chaos_ext::tridiagonal_ql")
def _(d: Tensor, e: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    sweeps, rotations = context.new_dynamic_size(), context.new_dynamic_size()
    order = d.new_empty(d.shape, dtype=torch.int64)
    return torch.empty_like(d), order, order.new_empty(sweeps, 3), d.new_empty(rotations, 2)


@torch.library.register_fake("chaos_ext::tridiagonal_apply")
def _(reflectors: Tensor, order: Tensor, sweeps: Tensor, rotations: Tensor, x: Tensor, transpose: bool) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("chaos_ext::tangent_product")
def _(Y: Tensor, *args: object) -> Tensor:
    return Y.new_empty(Y.shape)


@torch.library.register_fake("chaos_ext::tangent_update_")
def _(Y: Tensor, *args: object) -> Tensor:
    return Y.new_empty(1, Y.shape[1])


@torch.library.register_fake("chaos_ext::projected_sgd_")
def _(*args: object) -> None:
    return None
