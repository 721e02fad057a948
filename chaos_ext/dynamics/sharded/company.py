"""Whether an analyzer works alone or beside those of other ranks, which then do the same at every step."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..._version import __version__
from ...base.tensors import checksum
from ...curvature.hessian import HessianOperator
from ...curvature.shared import SharedHessian
from ...distributed.ranks import Ranks
from ...errors import RanksDisagreeError, UnsupportedError
from ..projected import Projected
from ..tangent_map import TangentMap

_SMALL = 1 << 14  # numbers
_SEEN = ("loss", "gradient", "optimizer options", "optimizer state", "projected gradient")
_T = TypeVar("_T")
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

    def prepared(self, make: Callable[[], _T], op: HessianOperator, tangent: TangentMap) -> _T:
        """``make()``, the first half of a step with this operator.

        Raises:
            RanksDisagreeError: not all ranks are about to do the same step. RankFailedError: another one has raised.
        """
        return make()


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

    def prepared(self, make: Callable[[], _T], op: HessianOperator, tangent: TangentMap) -> _T:
        """See ``Alone``; in one exchange, since it comes before every step."""
        with self._ranks.together("update", meets=True):
            _require_own(op)
            made, own = make(), torch.tensor(_seen(op, tangent), dtype=torch.int64, device="cpu")
            rows = [t.tolist() for t in self._ranks.gather(own, "what an update depends on")]
        for i, name in enumerate(_SEEN):
            other = [str(r) for r, row in enumerate(rows) if row[i] != rows[0][i]]
            if other:
                raise RanksDisagreeError(
                    f"update: expected the same {name} on all ranks, got another one than rank 0's on "
                    f"rank{'s' if len(other) > 1 else ''} {', '.join(other)}; every rank needs the same model, batch, "
                    "optimizer and random draws"
                )
        return made


def company_of(group: Any) -> Alone:
    """Of a process group or ``Ranks``; None: nobody else."""
    if group is None:
        return Alone()
    return Company((group if isinstance(group, Ranks) else Ranks(group)).named("analyzer"))


def versions() -> str:
    """Of what computes."""
    return f"chaos_ext {__version__}, torch {torch.__version__}"


def _require_own(op: object) -> None:
    if isinstance(op, SharedHessian):
        raise UnsupportedError(
            "op: made with group=, its products are those of the same columns on all ranks, and here each rank has "
            "others; give every rank the whole batch, or leave group out of the analyzer, which then has all columns "
            "on every rank"
        )


def _seen(op: HessianOperator, tangent: TangentMap) -> list[int]:
    """Checksums of all that this step and its tangent map are made of, by the names of ``_SEEN``."""
    gradient, opt, projected = op.gradient, tangent.opt, 0
    project_ = opt.tangent_projection(op) if isinstance(opt, Projected) else None
    if project_ is not None:
        column = gradient.clone().unsqueeze(1)
        project_(column)
        projected = int(checksum(column))
    state = [opt.state.get(p, {}) for g in opt.param_groups for p in g["params"]]
    held = _together([t.detach() for s in state for t in s.values() if _is_real(t)])
    loss = struct.unpack("q", struct.pack("d", float(op.loss)))[0]
    return [loss, int(checksum(gradient)), _plain(opt.param_groups), held, projected]


def _together(tensors: list[Tensor]) -> int:
    """One checksum of all; small ones are put together first, which is quicker, large ones would take memory."""
    small = [t.reshape(-1).double() for t in tensors if t.numel() <= _SMALL]
    own = [torch.cat([t.to(small[0].device) for t in small])] if small else []
    sums = [int(checksum(t)) for t in [*own, *(t for t in tensors if t.numel() > _SMALL)]]
    return hash(tuple(sums))


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
