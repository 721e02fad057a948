"""What is known of the tangent map in closed form: projections, fixed blocks, symplectic pairs, units, precision."""

import math

import pytest
import torch
from oracles import double_backward, relative
from torch import nn
from torch.optim import SGD, Adam
from training import CE, batches, small_model, train

import chaos_ext as ce


def test_a_group_that_loses_its_momentum_keeps_its_buffer():
    def schedule(opt):
        opt.param_groups[0]["momentum"] = 0.0

    model = small_model()
    opt = SGD(model.parameters(), lr=0.2, momentum=0.9)
    tangent = ce.TangentMap(opt)
    Y = torch.eye(tangent.size, dtype=torch.float64)
    train(model, opt, batches(1), schedule, lambda op: tangent.apply_(op, Y))
    v = Y[tangent.parameters :].clone()
    train(model, opt, batches(1), None, lambda op: tangent.apply_(op, Y))
    assert torch.equal(Y[tangent.parameters :], v)
    late = SGD(model.parameters(), lr=0.2)
    tangent = ce.TangentMap(late)
    late.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ce.UnsupportedError, match="momentum after"):
        tangent.apply_(ce.HessianOperator(model, CE, *batches(1)[0]), Y[: tangent.size].clone())


@pytest.mark.parametrize("prune", ["chaotic", "negative", "positive"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_cgd_frozen_is_the_projected_hessian(prune, momentum):
    model, (x, y) = small_model(), batches(1)[0]
    H = double_backward(model, CE, x, y)
    values, V = torch.linalg.eigh(H)
    chosen = values < -1e-12 if prune != "positive" else values > 1e-12
    V, lr, mix, w = V[:, chosen], 0.3, 0.8, 0.1
    opt = ce.CGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=w, prune=prune, mix=mix)
    op = ce.HessianOperator(model, CE, x, y)
    tangent = ce.TangentMap(opt)
    Y = tangent.apply_(op, tangent.start(op))
    K = H - mix * V @ (V.T @ H) + w * torch.eye(len(H), dtype=torch.float64)
    assert relative(Y[: len(H)], torch.eye(len(H), dtype=torch.float64) - lr * K) < 1e-10
    if momentum:
        assert relative(Y[len(H) :], K) < 1e-10
    assert tangent.gap is None


def test_cgd_random_directions_are_those_that_the_step_prunes():
    model, (x, y) = small_model(), batches(1)[0]
    generator = torch.Generator().manual_seed(2)
    opt = ce.CGD(model.parameters(), lr=1.0, prune="negative", k=2, order="random", generator=generator)
    op = ce.HessianOperator(model, CE, x, y)
    tangent = ce.TangentMap(opt)
    J = tangent.apply_(op, tangent.start(op))
    spec = ce.spectrum(op)
    mask = opt.selection(spec)
    before = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    opt.step(op)
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    g = op.gradient
    assert relative(before - after, g - spec.project(g, mask)) < 1e-10
    V = spec.eigenvectors(mask)
    assert relative(J @ V, V) < 1e-10  # pruned directions are neutral


def test_true_jacobian_leaves_model_and_operator_as_they_were():
    model, (x, y) = small_model(), batches(1)[0]
    before = [p.detach().clone() for p in model.parameters()]
    op = ce.HessianOperator(model, CE, x, y)
    opt = ce.CGD(model.parameters(), lr=0.2, prune="negative")
    tangent = ce.TangentMap(opt, jacobian="true")
    tangent.apply_(op, tangent.start(op, 2))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))
    opt.step(op)
    with pytest.raises(ce.UnsupportedError, match="noise"):
        ce.TangentMap(ce.CGD(model.parameters(), prune="negative", noise=0.1), jacobian="true").apply_(
            ce.HessianOperator(model, CE, x, y), torch.eye(tangent.size, 1, dtype=torch.float64)
        )
    with pytest.raises(ValueError, match="jacobian"):
        ce.TangentMap(SGD(model.parameters(), lr=0.1), jacobian="true")


def test_displaced_operator():
    model, (x, y) = small_model(), batches(1)[0]
    op = ce.HessianOperator(model, CE, x, y)
    theta, shift = op.snapshot.theta.clone(), torch.full((op.shape[0],), 0.1, dtype=torch.float64)
    with op.displaced(theta + shift) as there:
        H = there.dense()
        assert relative(H, double_backward(model, CE, x, y)) < 1e-10
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in model.parameters()]), theta)
    assert relative(op.dense(), double_backward(model, CE, x, y)) < 1e-10
    with pytest.raises(ce.StaleOperatorError):
        there.dense()
    with pytest.raises(ValueError, match="theta"), op.displaced(theta[1:]):
        pass
    with pytest.raises(TypeError, match="theta"), op.displaced(theta.float()):
        pass
    with pytest.raises(KeyError), op.displaced(theta + shift):
        raise KeyError
    assert op.snapshot.is_fresh()


def test_dead_units_are_zero_over_zero_equals_zero():
    """A unit that never fires has m = v = 0; nothing of it may become NaN, whatever eps is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    with torch.no_grad():
        model[1].bias[0] = -100.0
    for eps in (0.0, 1e-8):
        opt = Adam(model.parameters(), lr=0.01, eps=eps)
        tangent = ce.TangentMap(opt)
        x, y = batches(1)[0]
        op = ce.HessianOperator(model, CE, x, y)
        Y = tangent.apply_(op, torch.eye(tangent.size, dtype=torch.float64))
        assert torch.isfinite(Y).all()
        assert torch.equal(Y[:6, :6], torch.eye(6, dtype=torch.float64))  # weights of the dead unit stay where they are


def test_units_conjugate_the_map_and_condition_it():
    """Heavy ball at lambda = 80, lr = 1e-3: condition 7e3 in (theta, v), 2.3 in (theta, lr v)."""
    model = nn.Linear(1, 1, bias=False).double()
    x, y = torch.full((1, 1), 40.0**0.5, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    opt = SGD(model.parameters(), lr=1e-3, momentum=0.9)
    nn.functional.mse_loss(model(x), y).backward()
    opt.step()
    op = ce.HessianOperator(model, nn.MSELoss(), x, y)
    tangent = ce.TangentMap(opt)
    raw = tangent.apply_(op, torch.eye(2, dtype=torch.float64))
    scaled = tangent.apply_(op, torch.eye(2, dtype=torch.float64), tangent.units(op))
    D = torch.diag(torch.tensor([1.0, 1e-3], dtype=torch.float64))
    assert relative(scaled, D @ raw @ D.inverse()) < 1e-12
    assert 6e3 < torch.linalg.cond(raw) < 8e3
    assert torch.linalg.cond(scaled) < 2.6


def test_heavy_ball_is_conformally_symplectic():
    """Singular values pair up, s_i s_(2P + 1 - i) = mu^t in (theta, c v), under every option and schedule."""
    model, steps, mu = small_model(), 6, 0.9
    options = {"momentum": mu, "dampening": 0.3, "weight_decay": 0.1, "maximize": True}
    opt = SGD(model.parameters(), lr=0.3, **options)
    tangent = ce.TangentMap(opt)
    Y, units = torch.eye(tangent.size, dtype=torch.float64), None

    def watch(op):
        nonlocal units
        units = units or tangent.units(op)
        tangent.apply_(op, Y, units)

    def schedule(opt):
        opt.param_groups[0]["lr"] *= 0.8

    train(model, opt, batches(steps), schedule, watch)
    s = torch.linalg.svdvals(Y)
    assert ((s * s.flip(0)).log() - steps * math.log(mu)).abs().max() < 1e-8


@pytest.mark.parametrize("cls", [SGD, Adam])
def test_float32_against_float64(cls):
    blocks = {}
    for dtype in (torch.float32, torch.float64):
        model = small_model().to(dtype)
        opt = cls(model.parameters(), lr=0.1, **({"momentum": 0.9} if cls is SGD else {"eps": 1e-3}))
        tangent = ce.TangentMap(opt)
        Y = torch.eye(tangent.size, dtype=dtype)
        for x, y in batches(3):
            tangent.apply_(ce.HessianOperator(model, CE, x.to(dtype), y), Y)
            opt.zero_grad()
            CE(model(x.to(dtype)), y).backward()
            opt.step()
        blocks[dtype] = Y.double()
    assert relative(blocks[torch.float32], blocks[torch.float64]) < 1e-4


def test_theta_state_starts_from_identity_over_zero():
    model, (x, y) = small_model(), batches(1)[0]
    tangent = ce.TangentMap(SGD(model.parameters(), lr=0.1, momentum=0.9), state="theta")
    op = ce.HessianOperator(model, CE, x, y)
    Y = tangent.start(op)
    P = tangent.parameters
    assert tuple(Y.shape) == (2 * P, P)
    assert torch.equal(Y[:P], torch.eye(P, dtype=torch.float64))
    assert not Y[P:].any()
    assert not tangent.is_cocycle
    assert ce.TangentMap(SGD(model.parameters(), lr=0.1), state="theta").is_cocycle
