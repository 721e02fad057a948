"""Two hundred random compositions of torch's operators in model and loss: the right Hessian, or a refusal by name.

The oracle is differences of gradients in float64 along one direction, without any second derivative of torch's.
"""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce

N, W = 6, 4  # every operator takes [N, W] to [N, W]
ROWS = torch.tensor([0, 0, 1, 3, 3, 5])
COLUMNS = torch.tensor([[0, 2, 1, 1], [3, 3, 0, 2], [1, 0, 2, 3], [2, 2, 2, 0], [0, 1, 3, 3], [1, 3, 0, 0]])


def _ones(a):
    return torch.ones(N, W, dtype=a.dtype)


def _complex(a):
    z = torch.view_as_complex(a.contiguous().view(N, W // 2, 2))
    return torch.view_as_real(z * z.conj() + z.exp()).reshape(N, W)


OPERATORS = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "softplus": F.softplus,
    "silu": F.silu,
    "softmax": lambda a: a.softmax(1),
    "log_softmax": lambda a: a.log_softmax(0),
    "relu": lambda a: a.relu() + 0.1 * a,
    "abs": torch.abs,
    "where": lambda a: torch.where(a > 0, a * a, a.sin()),
    "clamp": lambda a: a.clamp(-0.7, 0.9) * a,
    "sort": lambda a: a.sort(1)[0] * torch.arange(W),
    "cumsum": lambda a: a.cumsum(0) * 0.5,
    "cumprod": lambda a: (a + 1).cumprod(1),
    "cummax": lambda a: a.cummax(0)[0] * a,
    "logcumsumexp": lambda a: a.logcumsumexp(1),
    "gather": lambda a: a.gather(1, COLUMNS) * a,
    "scatter_add": lambda a: torch.zeros(N, W, dtype=a.dtype).scatter_add(1, COLUMNS, a),
    "scatter prod": lambda a: torch.scatter_reduce(_ones(a), 1, COLUMNS, a, "prod"),
    "scatter mean": lambda a: torch.scatter_reduce(_ones(a), 1, COLUMNS, a, "mean"),
    "scatter amax": lambda a: torch.scatter_reduce(_ones(a), 1, COLUMNS, a * a, "amax"),
    "index_add": lambda a: a.index_add(0, ROWS, a * a),
    "index_reduce": lambda a: _ones(a).index_reduce(0, ROWS, a, "prod"),
    "index_put": lambda a: torch.zeros(N, W, dtype=a.dtype).index_put((ROWS,), a, accumulate=True),
    "roll": lambda a: a.roll((1, 2), (0, 1)) * a,
    "flip": lambda a: a.flip(1) * a,
    "complex": _complex,
    "fft": lambda a: torch.fft.fft2(a).real * 0.3 + torch.fft.rfft(a, dim=0).abs().sum() * 0.01,
    "irfft": lambda a: torch.fft.irfft(torch.fft.rfft(a, dim=0) ** 2, n=N, dim=0) * 0.3,
    "avg_pool": lambda a: F.avg_pool1d(a.unsqueeze(0), 3, 1, 1)[0],
    "max_pool": lambda a: F.max_pool1d(a.unsqueeze(0), 3, 1, 1)[0] * a,
    "lp_pool": lambda a: a * F.lp_pool1d(a.exp().unsqueeze(0), 2, 3)[0],
    "einsum": lambda a: torch.einsum("ij,kj,kl->il", a, a, a) * 0.1,
    "cdist": lambda a: torch.cdist(a, a[:W] + 1),
    "normalize": lambda a: F.normalize(a, dim=1),
    "layer_norm": lambda a: F.layer_norm(a, (W,)),
    "group_norm": lambda a: F.group_norm(a, 2),
    "batch_norm": lambda a: F.batch_norm(a, None, None, training=True),
    "std": lambda a: a / a.std(0, keepdim=True),
    "pow": lambda a: (a.abs() + 0.1) ** (1 + 0.3 * a),
    "prod": lambda a: a + a.prod(1, keepdim=True),
    "logsumexp": lambda a: a - a.logsumexp((0, 1)),
    "det": lambda a: a * torch.linalg.det(torch.eye(W) + 0.1 * a.T @ a),
    "solve": lambda a: torch.linalg.solve(torch.eye(N) + 0.1 * a @ a.T, a),
    "attention": lambda a: F.scaled_dot_product_attention(a[None], a[None], a[None])[0],
    "unfold": lambda a: a.T.unfold(1, 2, 1).prod(-1).mean() + a,
    "median": lambda a: a - a.median(0, keepdim=True)[0],
    "atan2": lambda a: torch.atan2(a, a.roll(1, 0) ** 2 + 0.3),
    "sinc": torch.sinc,
    "as_strided": lambda a: a.contiguous().as_strided((N, W), (W, 1)).exp() * 0.2,
}
LOSSES = {
    "mse": lambda o, t: F.mse_loss(o, t),
    "cross entropy": lambda o, t: F.cross_entropy(o, t.softmax(1)),
    "huber": lambda o, t: F.huber_loss(o, t, delta=0.7),
    "exp(-norm)": lambda o, t: torch.exp(-((o - t).norm() ** 2) / N),
    "norms": lambda o, t: (o - t).norm(dim=1).sum(),
    "std": lambda o, t: (o - t).std(),
    "logsumexp": lambda o, t: (o * t).logsumexp((0, 1)),
    "cosine": lambda o, t: 1 - F.cosine_similarity(o, t).mean(),
    "prod": lambda o, t: torch.scatter_reduce(_ones(o), 0, COLUMNS, o - t, "prod").tanh().sum(),
    "spectrum": lambda o, t: (torch.fft.rfft(o, dim=0) - torch.fft.rfft(t, dim=0)).abs().pow(2).mean(),
}


class Composed(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.a, self.b, self.names = nn.Linear(3, W), nn.Linear(W, W), names

    def forward(self, x):
        h = self.a(x)
        for name in self.names[:-1]:
            h = OPERATORS[name](h)
        return OPERATORS[self.names[-1]](self.b(h))


def _case(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model = Composed(draw.choices(list(OPERATORS), k=draw.randint(2, 3))).double()
    loss = draw.choice(list(LOSSES))
    x = torch.randn(N, 3, dtype=torch.float64)
    with torch.no_grad():
        output = model(x)
    # One batch in ten is fitted exactly: there norms, roots and distances of residuals are at their special points.
    y = output.clone() if draw.random() < 0.1 else torch.randn_like(output)
    return model, loss, x, y


def _along(model, loss_fn, x, y, v, h):
    """H v and its error, from gradients."""
    params = list(model.parameters())
    theta = nn.utils.parameters_to_vector(params).detach()

    def at(shifted):
        parts = [t.view_as(p).requires_grad_() for t, p in zip(shifted.split([p.numel() for p in params]), params)]
        named = dict(zip((n for n, _ in model.named_parameters()), parts))
        out = torch.func.functional_call(model, named, (x,))
        gradients = torch.autograd.grad(loss_fn(out, y), parts, allow_unused=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(gradients, parts)])

    def central(step):
        return (at(theta + step * v) - at(theta - step * v)) / (2 * step)

    D = [central(h / 2**i) for i in range(3)]
    R = [(4 * D[i + 1] - D[i]) / 3 for i in range(2)]
    return R[1], float((R[1] - R[0]).norm())


@pytest.mark.parametrize("block", range(10))
def test_right_or_refused(block):
    """Most are right, and none is wrong."""
    torch.set_default_dtype(torch.float64)
    right = 0
    try:
        for seed in range(20 * block, 20 * (block + 1)):
            right += _is_right(seed)
    finally:
        torch.set_default_dtype(torch.float32)
    assert right >= 15


def _is_right(seed):
    model, name, x, y = _case(seed)
    try:
        op = ce.HessianOperator(model, LOSSES[name], x, y)
        v = torch.randn(op.shape[0], generator=torch.Generator().manual_seed(seed))
        product, dense = op @ v, op.dense() @ v
    except ce.ChaosExtError:
        return False
    for h in (1e-3, 1e-4, 1e-5, 1e-6):
        expected, error = _along(model, LOSSES[name], x, y, v, h)
        limit = 1e-5 * float(expected.norm()) + 1e-9
        if error < limit / 3:
            what = f"{seed}: {model.names} with {name}"
            assert float((product - expected).norm()) <= limit, what
            assert float((dense - expected).norm()) <= limit, what
            return True
    return False
