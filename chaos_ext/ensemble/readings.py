"""What is read off the members: distances, components, losses; and a model displaced to make them."""

from __future__ import annotations

from collections.abc import Sized
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..base.parameters import ParameterSpace
from ..base.restoring import Restoring
from ..base.tensors import all_finite
from ..base.torch_internals import without_grad
from ..base.wrappers import unwrapped
from ..errors import NonFiniteError
from .members import Members
from .twin import Twin


class Evaluation(NamedTuple):
    """Of every member, on the same data.

    Attributes:
        loss: [B].
        accuracy: float64 [B], the share of rows whose largest output is at y; None where y holds no class indices.
    """

    loss: Tensor
    accuracy: Tensor | None


@without_grad
def displaced(space: ParameterSpace, deltas: object) -> Tensor:
    """theta, and theta plus each column of deltas [P, m], as rows [m + 1, P]."""
    if not isinstance(deltas, Tensor) or deltas.dim() != 2 or len(deltas) != space.size:
        got = tuple(deltas.shape) if isinstance(deltas, Tensor) else type(deltas).__name__
        raise ValueError(f"deltas: expected a tensor [P = {space.size}, m], one displacement a column, got {got}")
    if not deltas.is_floating_point():
        raise TypeError(f"deltas: expected real floating-point numbers, got {deltas.dtype}")
    if not all_finite(deltas.detach()):
        raise NonFiniteError("deltas: expected finite displacements, got NaN or inf")
    theta = space.flatten([p.detach() for p in space.params])
    moved = (theta.double().unsqueeze(1) + deltas.detach().to(theta.device, torch.float64)).to(theta.dtype).T
    rows = torch.cat([theta.unsqueeze(0), moved])
    lost = deltas.detach().to(theta.device).ne(0).any(0) & (rows[1:] == theta).all(1)
    if bool(lost.any()):
        j = int(lost.nonzero()[0])
        raise ValueError(
            f"deltas: column {j}, of length {float(deltas[:, j].double().norm()):.2g}, vanishes in the rounding of "
            f"{theta.dtype}; use a model in float64 (model.double()), or larger displacements"
        )
    return rows


def member(members: Sized, i: object, name: str = "i") -> int:
    """The index, if there is such a member."""
    if isinstance(i, bool) or not isinstance(i, int) or not -len(members) <= i < len(members):
        raise ValueError(f"{name}: expected a member in 0..{len(members) - 1}, got {i!r}")
    return i % len(members)


def differences(members: Members, to: int | Tensor) -> Tensor:
    """theta_i - theta_to, float64 [B, P]."""
    thetas = members.layout.unpack(members.theta).double()
    if not isinstance(to, Tensor):
        return thetas - thetas[member(members, to, "to")].clone()
    if tuple(to.shape) != (thetas.shape[1],):
        raise ValueError(f"to: expected a member or a vector [{thetas.shape[1]}], got shape {tuple(to.shape)}")
    return thetas.sub_(to.detach().to(thetas))


def along(members: Members, V: Tensor, to: int | Tensor) -> Tensor:
    """V^T (theta_i - theta_to), float64 [B, k]."""
    size = members.layout.space.size
    if not isinstance(V, Tensor) or V.dim() not in (1, 2) or len(V) != size:
        got = tuple(V.shape) if isinstance(V, Tensor) else type(V).__name__
        raise ValueError(f"V: expected directions [{size}, k] or [{size}], got {got}")
    d = differences(members, to)
    return d @ V.detach().to(d).reshape(size, -1)


def nonlinearity(members: Members, predicted: Tensor, to: int) -> Tensor:
    """||dtheta - predicted|| / ||dtheta|| of the other members, float64 [B - 1]."""
    i = member(members, to, "to")
    predicted = predictions(predicted, members.layout.space.size, len(members) - 1)
    d = differences(members, i)
    return relative_errors(torch.cat([d[:i], d[i + 1 :]]), predicted)


def predictions(predicted: object, size: int, others: int) -> Tensor:
    """Predicted displacements [P, B - 1] of the other members."""
    if isinstance(predicted, Tensor) and predicted.dim() == 1 and others == 1:
        predicted = predicted.unsqueeze(1)
    if not isinstance(predicted, Tensor) or tuple(predicted.shape) != (size, others):
        got = tuple(predicted.shape) if isinstance(predicted, Tensor) else type(predicted).__name__
        raise ValueError(f"predicted: expected [{size}, {others}], a column [P] for each other member, got {got}")
    return predicted


def relative_errors(d: Tensor, predicted: Tensor) -> Tensor:
    """Of predictions [P, b], by the length of the displacements d [b, P]."""
    error, length = (d - predicted.detach().to(d).T).norm(dim=1), d.norm(dim=1)
    return torch.where((error == 0) & (length == 0), 0.0, error / length)


@without_grad
def evaluate(twin: Twin, members: Members, x: object, y: object) -> Evaluation:
    """One member after the other: at this size each is a large product of its own."""
    losses, accuracies = [], []
    mode = evaluating(twin.model)
    with mode, mode:
        for i in range(len(members)):
            params = [v[0] for v in members.views(slice(i, i + 1))]
            loss, output = twin.output(params, {n: b[i].clone() for n, b in members.buffers.items()}, x, y)
            losses.append(loss)
            accuracies.append(accuracy(output, y))
    found = [a for a in accuracies if a is not None]
    return Evaluation(torch.stack(losses), torch.stack(found) if found else None)


def accuracy(output: object, y: object) -> Tensor | None:
    """The share of rows [N, C, ...] whose largest entry is at y [N, ...]."""
    if not isinstance(output, Tensor) or not isinstance(y, Tensor) or y.is_floating_point() or output.dim() < 2:
        return None
    if y.shape != (output.shape[0], *output.shape[2:]):
        return None
    return (output.argmax(1) == y).double().mean()


def evaluating(model: nn.Module) -> Restoring[object]:
    """All modules in evaluation mode, and back in their own."""
    modes = [(m, m.training) for m in model.modules()]

    def restore() -> None:
        for m, mode in modes:
            m.training = mode

    return Restoring(model.eval, restore)


@without_grad
def load_into(members: Members, model: nn.Module, i: int) -> None:
    """The model's parameters and buffers <- those of member i."""
    require_like(members, model)
    i = member(members, i)
    for p, v in zip(ParameterSpace.of(model).params, members.views(slice(i, i + 1)), strict=True):
        p.copy_(v[0])
    for n, b in unwrapped(model).named_buffers():
        b.copy_(members.buffers[f"model.{n}"][i])


def require_like(members: Members, model: nn.Module) -> None:
    """Raises ValueError unless the model's parameters and buffers are like those of the members."""
    own = members.layout.space
    space = ParameterSpace.of(model)
    _same("parameters", *[dict(zip(s.names, map(tuple, s.shapes), strict=True)) for s in (own, space)])
    _same("dtype", own.dtype, space.dtype)
    theirs = {f"model.{n}": b for n, b in unwrapped(model).named_buffers()}
    mine = {n: b[0] for n, b in members.buffers.items()}
    _same("buffers", *[{n: (tuple(b.shape), b.dtype) for n, b in d.items()} for d in (mine, theirs)])


def _same(what: str, expected: object, got: object) -> None:
    if expected != got:
        raise ValueError(f"model: expected one with the {what} of the members, {expected}, got {got}")
