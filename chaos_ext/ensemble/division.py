"""Which members of an ensemble each rank of a group has, and how all get what belongs to all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..base.parameters import ModuleTree, ParameterSpace
from ..base.torch_internals import tree_leaves
from ..curvature.agreement import said, state_of
from ..distributed.ranks import Ranks
from ..distributed.shares import stretches
from ..errors import ChaosExtError
from ..optim.cgd import CGD
from ..spectra.spectrum import Spectrum
from .arguments import check_thetas
from .options import groups_of, places, with_options
from .pruner import FAILURES, generators_of


class Division:
    """B members in a row, of which each rank has some that stand together.

    Args:
        ranks: of the group.
        members: how many.

    Attributes:
        ranks, members: as given.
        parts: the members of each rank.
        own: those of this one.

    Raises:
        ValueError: fewer members than ranks.
    """

    def __init__(self, ranks: Ranks, members: int) -> None:
        if members < ranks.size:
            raise ValueError(
                f"thetas: expected at least one member for each of the {ranks.size} ranks of the group, got {members}; "
                "take a smaller group, or more members"
            )
        self.ranks, self.members = ranks, members
        self.parts = stretches(members, ranks.size)
        self.own = self.parts[ranks.rank]

    def __len__(self) -> int:
        return self.members

    def owner(self, i: int) -> int:
        """The rank that has member i."""
        return next(r for r, part in enumerate(self.parts) if i < part.stop)

    def gather(self, t: Tensor, what: str) -> Tensor:
        """Of what each rank has of its members, [b, ...], that of all, [B, ...]."""
        widths = [part.stop - part.start for part in self.parts]
        padded = t.new_zeros(max(widths), *t.shape[1:])
        padded[: len(t)] = t
        return torch.cat([rows[:n] for rows, n in zip(self.ranks.gather(padded, what), widths, strict=True)])

    def send(self, t: Tensor | None, i: int, what: str, like: Tensor) -> Tensor:
        """What the rank of member i has of it."""
        return self.ranks.broadcast(like if t is None else t, self.owner(i), f"{what} of member {i}")

    def failures(self, error: Exception) -> dict[int, ChaosExtError]:
        """Members of all ranks that cannot be stepped, by number; called by all ranks, each with what it has raised."""
        own = error.members if isinstance(error, FAILURES) else {}
        mine = {self.own.start + i: e for i, e in own.items()}
        found = self.ranks.gather_objects(mine, "the members that failed")
        return {i: e for part in found for i, e in part.items()}


def divided(
    ranks: Ranks,
    model: nn.Module,
    loss_fn: object,
    opt: Optimizer,
    thetas: Tensor,
    generators: Any,
    options: Mapping[str, Any],
    rows: Mapping[str, object],
) -> tuple[Division, dict[str, Any]]:
    """The division of these members, and the arguments of an ``Ensemble`` of this rank's; called by all ranks.

    Args:
        ranks: of the group.
        model, loss_fn, opt, thetas, generators, options: of all members.
        rows: what is said of the CSV file.

    Raises:
        As of ``Ensemble``; ValueError: fewer members than ranks. RanksDisagreeError: ranks do not give the same.
    """
    groups, tree = groups_of(opt), ModuleTree(model)
    space = ParameterSpace.of(tree)
    check_thetas(thetas, space)
    division = Division(ranks, len(thetas))
    with_options(groups, options, len(thetas), space)
    draws = _draws(opt, len(thetas), generators)
    ranks.agree("model and loss", state_of(space, tree, loss_fn, None))
    ranks.agree(
        "optimizer and members",
        {
            **_optimizer(opt, space),
            "thetas": said(thetas.detach()),
            "options": said(dict(options)),
            "generators": None if draws is None else [said(g.get_state()) for g in draws],
            **rows,
        },
    )
    own = division.own
    given = {n: part_of(v, own) for n, v in options.items()}
    return division, {"thetas": thetas[own], "generators": draws if draws is None else draws[own], **given}


def _draws(opt: Optimizer, members: int, given: Any) -> Any:
    """The generators that were given, if they are right; what takes none, refuses them later."""
    return given if given is None or type(opt) is not CGD or opt.prune is None else generators_of(opt, members, given)


def part_of(value: Any, own: slice) -> Any:
    """Of an option of all members, or a pair of them, that of a rank's members."""
    if isinstance(value, Tensor):
        return value[own] if value.dim() else value
    if isinstance(value, (list, tuple)):
        nested = any(isinstance(v, (Tensor, list, tuple)) for v in value)
        return type(value)(part_of(v, own) for v in value) if nested else value[own]
    return value


def _optimizer(opt: Optimizer, space: ParameterSpace) -> dict[str, object]:
    """What its steps depend on."""
    numbered = enumerate(opt.param_groups)
    return {
        "optimizer": type(opt).__name__,
        **{f"{k} of group {i}": said(v) for i, g in numbered for k, v in g.items() if k != "params"},
        "groups of the parameters": places(opt, space),
        "state of the optimizer": [said(opt.state.get(p, {})) for p in space.params],
        **(_pruning(opt) if type(opt) is CGD else {}),
    }


def _pruning(opt: CGD) -> dict[str, object]:
    state = None if opt.generator is None else said(opt.generator.get_state())
    return {"steps": opt.steps, "generator": state, **{n: _option(v) for n, v in vars(opt.pruning).items()}}


def _option(value: object) -> object:
    return said([value.eigenvalues, value.eigenvectors()] if isinstance(value, Spectrum) else value)


def batch_said(x: Any, y: Any) -> list[object]:
    """A batch in a few numbers."""
    return [said(t) for t in tree_leaves((x, y))]


def tensor_said(t: Tensor) -> str:
    """A tensor, in the name of a collective that all call with the same one."""
    return f"of a tensor with checksum {said(t.detach())}"


def own_columns(others: Sequence[int], to: int) -> list[int]:
    """The columns of these members in a matrix with one for each member but ``to``."""
    return [i - (i > to) for i in others]
