"""Slow, obvious pure-torch twins of the native operators: for tests and benchmarks only.

Same names, arguments and results as in ``_ops``; each reads like its formula. They form 1 - p and the like, so they are
meant for float64, and they allocate what the operators fuse away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad

from .. import _ops

_FUNCTIONS = {
    _ops.RELU: lambda z, alpha, beta: F.relu(z),
    _ops.LEAKY_RELU: lambda z, alpha, beta: F.leaky_relu(z, alpha),
    _ops.ELU: lambda z, alpha, beta: F.elu(z, alpha),
    _ops.SELU: lambda z, alpha, beta: F.selu(z),
    _ops.CELU: lambda z, alpha, beta: F.celu(z, alpha),
    _ops.SIGMOID: lambda z, alpha, beta: torch.sigmoid(z),
    _ops.TANH: lambda z, alpha, beta: torch.tanh(z),
    _ops.SOFTPLUS: lambda z, alpha, beta: F.softplus(z, alpha, beta),
    _ops.SILU: lambda z, alpha, beta: F.silu(z),
    _ops.GELU_ERF: lambda z, alpha, beta: F.gelu(z),
    _ops.GELU_TANH: lambda z, alpha, beta: F.gelu(z, approximate="tanh"),
    _ops.HARDTANH: lambda z, alpha, beta: F.hardtanh(z, alpha, beta),
}


def activation(z: Tensor, kind: int, alpha: float = 0.0, beta: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """torch's own function, backward and double backward."""
    with torch.enable_grad():
        x = z.detach().requires_grad_()
        a = _FUNCTIONS[kind](x, alpha, beta)
        (d1,) = torch.autograd.grad(a.sum(), x, create_graph=True)
        if kind in _ops.PIECEWISE_LINEAR:
            return a.detach(), d1.detach(), z.new_empty(0)
        (d2,) = torch.autograd.grad(d1.sum(), x)
    return a.detach(), d1.detach(), d2


def cross_entropy(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_p = torch.log_softmax(z, 1)
    loss = -torch.where(t == 0, torch.zeros_like(t), t * log_p).sum()
    p = log_p.exp()
    return loss, p * t.sum(1, keepdim=True) - t, p


def conv_lanes(
    X: Tensor | None,
    W: Tensor | None,
    Z: Tensor | None,
    sizes: tuple[tuple[int, ...], tuple[int, ...]],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """The third operand of a convolution from the two given ones, of which one has a last axis of columns.

    ``sizes`` are those of X [N, C, H, W] and W [O, C / groups, kh, kw].
    """
    options: Any = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def one(x: Any, w: Any, z: Any) -> Tensor:
        if z is None:
            return F.conv2d(x, w, **options)
        if x is None:
            return grad.conv2d_input(sizes[0], w, z, **options)
        return grad.conv2d_weight(x, sizes[1], z, **options)

    k = next(t.shape[4] for t in (X, W, Z) if t is not None and t.dim() == 5)
    return torch.stack([one(*(t if t is None or t.dim() == 4 else t[..., i] for t in (X, W, Z))) for i in range(k)], -1)


def normalise(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """z = gamma (x - mean x) / std x + beta of x [B, G, M] with means over B and M, one gamma and beta a group."""
    centred = x - x.mean((0, 2), keepdim=True)
    z = centred * centred.square().mean((0, 2), keepdim=True).rsqrt()
    z = z if gamma is None else z * gamma[:, None]
    return z if beta is None else z + beta[:, None]


def cross_entropy_tangent(p: Tensor, s: Tensor, dz: Tensor) -> Tensor:
    B = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("n,ncd,ndk->nck", s, B, dz)


def bce_with_logits(z: Tensor, y: Tensor, w: Tensor, pw: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    w = w if w.numel() else torch.ones_like(z)
    pw = pw if pw.numel() else torch.ones_like(z)
    negative, positive = (1 - y) * w, pw * y * w
    loss = scale * (negative * F.softplus(z) + positive * F.softplus(-z)).sum()
    delta = scale * (negative * torch.sigmoid(z) - positive * torch.sigmoid(-z))
    return loss, delta, scale * (negative + positive) * torch.sigmoid(z) * torch.sigmoid(-z)


def mse(z: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return scale * (z - y).square().sum(), 2 * scale * (z - y)


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
    if same:
        assert K is not None
        a_t, K = a_s, _mirror_units(K)
    block = _block(a_s, K, a_t, delta_t, J)
    rows = _parameter_rows(row_w, row_b, block.shape[0], block.shape[1])
    columns = _parameter_rows(col_w, col_b, block.shape[2], block.shape[3])
    keep_rows, keep_columns = rows >= 0, columns >= 0
    flat = block.reshape(len(rows), len(columns))[keep_rows][:, keep_columns]
    H[rows[keep_rows][:, None], columns[keep_columns]] = flat
    H[columns[keep_columns][:, None], rows[keep_rows]] = flat.T


def _mirror_units(K: Tensor) -> Tensor:
    """K [O, N, O] with its entries below the diagonal replaced by those above: only i <= k is read."""
    upper = K.permute(1, 0, 2).triu()
    return (upper + upper.triu(1).mT).permute(1, 0, 2)


def _block(a_s: Tensor, K: Tensor | None, a_t: Tensor | None, delta_t: Tensor | None, J: Tensor | None) -> Tensor:
    """The block [O_s, I_s + 1, O_t, I_t + 1], with the constant input 1 (of J: 0) appended for the bias."""
    x_s = F.pad(a_s, (0, 1), value=1.0)
    terms = []
    if K is not None and a_t is not None:
        terms.append(torch.einsum("nj,ink,nl->ijkl", x_s, K, F.pad(a_t, (0, 1), value=1.0)))
    if J is not None and delta_t is not None:
        terms.append(torch.einsum("nj,nk,inl->ijkl", x_s, delta_t, F.pad(J, (0, 1))))
    return torch.stack(terms).sum(0)


def _parameter_rows(weight: int, bias: int, units: int, inputs_and_bias: int) -> Tensor:
    """Rows of H of all (unit, input), the bias last; -1 where the parameter does not exist."""
    rows = torch.full((units, inputs_and_bias), -1)
    if weight >= 0:
        rows[:, :-1] = weight + torch.arange(units * (inputs_and_bias - 1)).reshape(units, inputs_and_bias - 1)
    if bias >= 0:
        rows[:, -1] = bias + torch.arange(units)
    return rows.reshape(-1)


def tridiagonalise(S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = len(S)
    A, blocks = S.double().tril() + S.double().tril(-1).T, (n + 15) // 16
    reflectors = torch.zeros(16 * blocks, 16 * (blocks | 1), dtype=torch.float64)
    e = A.new_zeros(max(n - 1, 0))
    for i in range(n - 1, 0, -1):
        v = A[i, :i].clone()
        e[i - 1] = v[-1]
        if v[:-1].any():
            e[i - 1] = -torch.copysign(v.norm(), v[-1])
            v[-1] -= e[i - 1]
            H = torch.eye(i, dtype=torch.float64) - 2 * torch.outer(v, v) / (v @ v)
            A[:i, :i] = H @ A[:i, :i] @ H
            reflectors[i, :i] = v
    return reflectors.to(S.dtype), A.diagonal().clone(), e


def tridiagonal_ql(d: Tensor, e: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One sweep at a time, as matrices: other sweeps than the operator's, the same values."""
    n, l = len(d), 0
    sweeps: list[tuple[int, int, int]] = []
    rotations: list[tuple[float, float]] = []
    T = torch.diag(d) + torch.diag(e, 1) + torch.diag(e, -1)
    small = tol * float(T.abs().max()) if n else 0.0
    while l < n - 1:
        m = next((i for i in range(l, n - 1) if T[i, i + 1].abs() <= small), n - 1)
        if m == l:
            l += 1
            continue
        near = torch.linalg.eigvalsh(T[l : l + 2, l : l + 2])
        f, g = T[m - 1, m], T[m, m] - near[(near - T[l, l]).abs().argmin()]
        sweeps.append((l, m, len(rotations)))
        for i in range(m - 1, l - 1, -1):
            r = torch.hypot(f, g)
            c, s = g / r, f / r
            G = torch.eye(n, dtype=d.dtype)
            G[i : i + 2, i : i + 2] = torch.tensor([[c, -s], [s, c]])
            T = G @ T @ G.T
            rotations.append((float(c), float(s)))
            f, g = (T[i - 1, i + 1], T[i, i + 1]) if i > l else (f, g)
    order = T.diagonal().argsort(stable=True)
    table = torch.tensor(sweeps, dtype=torch.int64).reshape(-1, 3)
    return T.diagonal()[order], order, table, torch.tensor(rotations, dtype=d.dtype).reshape(-1, 2)


def tridiagonal_apply(
    reflectors: Tensor, order: Tensor, sweeps: Tensor, rotations: Tensor, x: Tensor, transpose: bool
) -> Tensor:
    n = x.shape[1]
    U = torch.eye(n, dtype=torch.float64)
    for v in reflectors[:n, :n].double():
        U = U - 2 * torch.outer(v, v @ U) / (v @ v) if v.any() else U
    for l, m, first in sweeps.tolist():
        for c, s, i in zip(*rotations[first : first + m - l].T.tolist(), range(m - 1, l - 1, -1), strict=True):
            U[:, [i, i + 1]] = U[:, [i, i + 1]] @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    U = U[:, order]
    return x @ U if transpose else x @ U.T


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
    d = grad - (L @ R).reshape(grad.shape)
    d = -d if maximize else d
    d = d + weight_decay * param
    if buf is not None:
        buf.copy_(d if first else momentum * buf + (1 - dampening) * d)
        d = d + momentum * buf if nesterov else buf
    param.sub_(lr * d)


def tangent_product(
    Y: Tensor, operands: list[Tensor], values: list[int], nodes: list[int], factors: list[float]
) -> Tensor:
    """Every node's four formulas as they stand, on whole matrices."""
    steps = _nodes(operands, nodes, factors)
    d: dict[int, Tensor] = {}  # tangent of each value [rows, k]
    e = {i: Y.new_zeros(n, Y.shape[1]) for i, n in enumerate(values)}  # tangent of its cotangent
    for step in steps:
        step.forward(Y, d, e)
    out = torch.zeros_like(Y)
    for step in reversed(steps):
        step.backward(Y, d, e, out)
    return out


class _SweepNode:
    """One node of a tangent sweep, with its operands as matrices."""

    def __init__(self, record: list[int], operands: list[Tensor], alpha: float, beta: float) -> None:
        self.kind, self.a, self.b, self.out, self.row_w, self.row_b = record
        self.operands, self.alpha, self.beta = operands, alpha, beta

    def _theta(self, Y: Tensor) -> tuple[Tensor, Tensor]:
        """Tangents of W [O, I, k] and of b [O, k]."""
        O, I = self.operands[1].shape
        k = Y.shape[1]
        V = Y[self.row_w : self.row_w + O * I].view(O, I, k) if self.row_w >= 0 else Y.new_zeros(O, I, k)
        return V, Y[self.row_b : self.row_b + O] if self.row_b >= 0 else Y.new_zeros(O, k)

    def forward(self, Y: Tensor, d: dict[int, Tensor], e: dict[int, Tensor]) -> None:
        k = Y.shape[1]
        first, second = (d.get(i, torch.zeros((), dtype=Y.dtype)) for i in (self.a, self.b))
        if self.kind == _ops.LINEAR:
            a, W, _ = self.operands
            V, c = self._theta(Y)
            dz = torch.einsum("ri,oik->rok", a, V) + c
            if self.a >= 0:
                dz = dz + torch.einsum("oi,rik->rok", W, first.view(*a.shape, k))
            d[self.out] = dz.reshape(-1, k)
        elif self.kind == _ops.SCALE:
            d[self.out] = self.operands[0].reshape(-1, 1) * first
        elif self.kind == _ops.SUM:
            d[self.out] = self.alpha * first + self.beta * second
        elif self.kind == _ops.SOFTMAX:
            p, s = self.operands
            e[self.a] += cross_entropy_tangent(p, s, first.view(*p.shape, k)).reshape(-1, k)
        else:
            curvature = self.operands[0].reshape(-1, 1)
            e[self.a] += (curvature if curvature.numel() else self.alpha) * first

    def backward(self, Y: Tensor, d: dict[int, Tensor], e: dict[int, Tensor], out: Tensor) -> None:
        if self.kind == _ops.LINEAR:
            self._linear_backward(Y, d, e, out)
        elif self.kind == _ops.SCALE:
            d1, curved = (t.reshape(-1, 1) for t in self.operands)
            e[self.a] += d1 * e[self.out] + (curved * d[self.a] if curved.numel() else 0)
        elif self.kind == _ops.SUM:
            for value, factor in ((self.a, self.alpha), (self.b, self.beta)):
                if value >= 0:
                    e[value] += factor * e[self.out]

    def _linear_backward(self, Y: Tensor, d: dict[int, Tensor], e: dict[int, Tensor], out: Tensor) -> None:
        a, W, delta = self.operands
        k = Y.shape[1]
        V, _ = self._theta(Y)
        own = e[self.out].view(*delta.shape, k)
        h = torch.einsum("rok,ri->oik", own, a)
        if self.a >= 0:
            h = h + torch.einsum("ro,rik->oik", delta, d[self.a].view(*a.shape, k))
            back = torch.einsum("oi,rok->rik", W, own) + torch.einsum("ro,oik->rik", delta, V)
            e[self.a] += back.reshape(-1, k)
        if self.row_w >= 0:
            out[self.row_w : self.row_w + W.numel()] = h.reshape(-1, k)
        if self.row_b >= 0:
            out[self.row_b : self.row_b + len(W)] = own.sum(0)


def _nodes(operands: list[Tensor], nodes: list[int], factors: list[float]) -> list[_SweepNode]:
    counts = {_ops.LINEAR: 3, _ops.SCALE: 2, _ops.SUM: 0, _ops.SOFTMAX: 2, _ops.DIAGONAL: 1}
    steps, start = [], 0
    for n in range(len(nodes) // 6):
        record = list(nodes[6 * n : 6 * n + 6])
        end = start + counts[record[0]]
        steps.append(_SweepNode(record, operands[start:end], *factors[2 * n : 2 * n + 2]))
        start = end
    return steps


def tangent_update_(
    Y: Tensor,
    HY: Tensor | None,
    operands: list[Tensor],
    values: list[int],
    nodes: list[int],
    factors: list[float],
    vectors: list[Tensor],
    slots: list[int],
    coefficients: list[float],
) -> Tensor:
    """The product as a matrix, then one slot after the other; returns the sums of squares of all slots' rows [1, k]."""
    P = sum(slots[5 * n + 2] for n in range(len(slots) // 5))
    HY = tangent_product(Y[:P], operands, values, nodes, factors) if HY is None else HY
    rest = list(vectors)
    squares = Y.new_zeros(1, Y.shape[1])
    for n in range(len(slots) // 5):
        kind, first, size, *buffers = slots[5 * n : 5 * n + 5]
        decay, mu, c1, e1, e2, b2, keep = coefficients[7 * n : 7 * n + 7]
        rows = [slice(b, b + size) for b in (first, *buffers)][: {_ops.PLAIN: 1, _ops.MOMENTUM: 2, _ops.ADAM: 3}[kind]]
        d = Y[rows[0]].clone()
        K = HY[rows[0]] + decay * d
        if kind == _ops.PLAIN:
            Y[rows[0]] = d - e1 * K
        else:
            Y[rows[1]] = mu * Y[rows[1]] + c1 * K
        if kind == _ops.MOMENTUM:
            Y[rows[0]] = d - e1 * K - e2 * Y[rows[1]]
        if kind == _ops.ADAM:
            q, A, B = (rest.pop(0).unsqueeze(1) for _ in range(3))
            Y[rows[2]] = b2 * Y[rows[2]] + q * K
            Y[rows[0]] = keep * d - A * Y[rows[1]] + B * Y[rows[2]]
        squares += sum(Y[r].square().sum(0) for r in rows)
    return squares
