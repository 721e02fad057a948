"""Whether an analyzer works alone or beside those of other ranks, which then do the same at every step."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from typing import Any

import torch
from torch import Tensor

from ..._version import __version__
from ...base.tensors import checksum
from ...curvature.hessian import HessianOperator
from ...distributed.ranks import Ranks
from ...errors import RanksDisagreeError
from ..projected import Projected
from ..tangent_map import TangentMap

_SEEN = ("loss", "gradient", "optimizer options", "optimizer state", "projected gradient")
Context = contextlib.AbstractContextManager[None]


class Alone:
    """One process: nothing has to be agreed on.

    Attributes:
        ranks: of the group, or None.
        writes: whether this process is the one that writes files and to the terminal.
    """

    ranks: Ranks | None = None
    writes = True

    def together(self, what: str) -> Context:
        """What every rank does or none; see ``Ranks.together``."""
        return contextlib.nullcontext()

    def same(self, **values: object) -> None:
        """Raises RanksDisagreeError unless these are equal on all ranks."""

    def same_step(self, op: HessianOperator, tangent: TangentMap) -> None:
        """Raises RanksDisagreeError unless all ranks are about to do the same step."""


class Company(Alone):
    """The ranks of a group.

    Args:
        ranks: the group.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = self.ranks = ranks
        self.writes = ranks.rank == 0

    def together(self, what: str) -> Context:
        return self._ranks.together(what)

    def same(self, **values: object) -> None:
        for name, value in values.items():
            self._ranks.agree(name, value)

    def same_step(self, op: HessianOperator, tangent: TangentMap) -> None:
        seen = self._ranks.gather(_seen(op, tangent), "what a step depends on")
        rows = [s.tolist() for s in seen]
        for i, name in enumerate(_SEEN):
            other = [r for r, row in enumerate(rows) if row[i] != rows[0][i]]
            if other:
                raise RanksDisagreeError(
                    f"update: expected the same {name} on all ranks, got another one than rank 0's on "
                    f"rank{'s' if len(other) > 1 else ''} {', '.join(map(str, other))}; every rank needs the same "
                    "model, batch, optimizer and random draws"
                )


def company_of(group: Any) -> Alone:
    """Of a process group or ``Ranks``; None: nobody else."""
    if group is None:
        return Alone()
    return Company(group if isinstance(group, Ranks) else Ranks(group))


def versions() -> str:
    """Of what computes."""
    return f"chaos_ext {__version__}, torch {torch.__version__}"


def _seen(op: HessianOperator, tangent: TangentMap) -> Tensor:
    """Checksums of all that this step and its tangent map are made of, by the names of ``_SEEN``; int64."""
    gradient, opt = op.gradient, tangent.opt
    projected = torch.zeros((), dtype=torch.int64, device=op.device)
    project_ = opt.tangent_projection(op) if isinstance(opt, Projected) else None
    if project_ is not None:
        column = gradient.clone().unsqueeze(1)
        project_(column)
        projected = checksum(column)
    options, state = _plain(opt.param_groups), [opt.state.get(p, {}) for g in opt.param_groups for p in g["params"]]
    numbers = [t.reshape(-1).double() for s in state for t in s.values() if _is_real(t)]
    held = checksum(torch.cat(numbers).to(op.device)) if numbers else torch.zeros_like(projected)
    loss = struct.unpack("q", struct.pack("d", float(op.loss)))[0]
    own = [torch.tensor(value, dtype=torch.int64, device=op.device) for value in (loss, options)]
    return torch.stack([own[0], checksum(gradient), own[1], held, projected])


def _is_real(t: object) -> bool:
    return isinstance(t, Tensor) and t.layout == torch.strided and t.is_floating_point()


def _plain(groups: list[dict[str, Any]]) -> int:
    """A hash of the options that are numbers, names and tuples of these."""
    shown = [[(n, _value(v)) for n, v in sorted(g.items()) if n != "params"] for g in groups]
    return int.from_bytes(hashlib.blake2b(repr(shown).encode(), digest_size=8).digest(), "little", signed=True)


def _value(value: object) -> object:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (tuple, list)):
        return [_value(v) for v in value]
    return value if isinstance(value, (bool, int, float, str)) else type(value).__name__
