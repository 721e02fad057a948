"""A rule for a layer of your own: z = a * sin(w a), with one frequency w a feature.

Without a rule, torch differentiates this layer (exactly, but slower). With one, it takes part in every sweep. The four
rules are the derivatives of one function; a tangent has the shape of its value and one more axis, of k columns, last.
"""

import torch
from torch import nn

import chaos_ext as ce


class Wave(nn.Module):
    """z = a sin(w a)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, features))

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        return a * torch.sin(self.w * a)


class WaveRule:
    """With u = w a: z_a = sin u + u cos u, z_w = a^2 cos u, and the second derivatives of z.

    z_aa = w (2 cos u - u sin u),   z_aw = 2 a cos u - a u sin u,   z_ww = -a^3 sin u
    """

    path, rowwise = "layer rule", True  # rowwise: sample n of the output depends on sample n of the input only

    def __init__(self, w: ce.Leaf) -> None:
        self.w, self.slots = w, (w.slot,)

    def forward(self, inputs, theta):
        (a,), w = inputs, self.w(theta)
        u = w * a
        sin, cos = torch.sin(u), torch.cos(u)
        first = (sin + u * cos, a**2 * cos)
        second = (w * (2 * cos - u * sin), 2 * a * cos - a * u * sin, -(a**3) * sin)
        return a * sin, (first, second)

    def backward(self, saved, delta):
        (z_a, z_w), _ = saved
        return [z_a * delta], [None if self.slots[0] is None else (z_w * delta).sum(0)]

    def tangent_forward(self, saved, dinputs, dtheta):
        (z_a, z_w), _ = saved
        return _combine(dinputs[0], z_a, dtheta[0], z_w)

    def tangent_backward(self, saved, delta, dinputs, dtheta, ddelta):
        (z_a, z_w), (z_aa, z_aw, z_ww) = saved
        da, dw = dinputs[0], dtheta[0]
        d_in = _combine(da, z_aa * delta, dw, z_aw * delta)
        d_w = _combine(da, z_aw * delta, dw, z_ww * delta)
        if ddelta is not None:
            d_in = _plus(d_in, ddelta * z_a.unsqueeze(-1))
            d_w = _plus(d_w, ddelta * z_w.unsqueeze(-1))
        return [d_in], [None if d_w is None or self.slots[0] is None else d_w.sum(0)]


def _plus(a, b):
    return b if a is None else a if b is None else a + b


def _combine(da, f, dw, g):
    """f da + g dw for values f, g [N, I] and tangents da [N, I, k], dw [I, k]; None is a zero tangent."""
    first = None if da is None else f.unsqueeze(-1) * da
    return first if dw is None else _plus(first, g.unsqueeze(-1) * dw)


ce.register_rule(Wave, lambda module, leaf, shape: WaveRule(leaf("w")))

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 5), Wave(5), nn.Linear(5, 3)).double()
x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))
op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y, verify=True)  # compared with double backward
for row in op.explain():
    print(f"{row.name}: {row.path} ({row.why})")
H = op.dense()
print(f"P = {len(H)}, negative eigenvalues: {int((torch.linalg.eigvalsh(H) < -1e-12).sum())}")
