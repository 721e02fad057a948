"""Which tangents of a sweep may be written to, and when their memory is free.

A sweep is mathematics over a list of tangents; this is its memory. A rule whose results are ``fresh`` (see ``Rule``)
makes an *owned* tangent: nobody else's memory. It stays owned until some rule that may keep a view has seen it, and the
in-place variants of rules (``tangent_forward_``, ``tangent_backward_``) get owned arguments only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..base import workspace
from ..rules.rule import Rule, Tangent


class Owned:
    """The tangents of one sweep whose memory is nobody else's."""

    def __init__(self) -> None:
        self._tangents: dict[int, Tensor] = {}  # by id, and alive, so that the id stays theirs

    def __contains__(self, t: object) -> bool:
        return id(t) in self._tangents

    def push(
        self, rule: Rule, saved: object, dinputs: Sequence[Tangent], dslots: Sequence[Tangent], last_reader: bool
    ) -> Tangent:
        """The rule's ``tangent_forward``, into the first input's tangent where nobody else needs that."""
        free = last_reader and len(dinputs) > 0 and dinputs[0] in self
        dz = _variant(rule, "tangent_forward", free)(saved, dinputs, dslots)
        self._note(rule, dinputs, dz)
        return dz

    def pull(
        self,
        rule: Rule,
        saved: object,
        delta: Tensor,
        dinputs: Sequence[Tangent],
        dslots: Sequence[Tangent],
        ddelta: Tangent,
    ) -> tuple[list[Tangent], list[Tangent]]:
        """The rule's ``tangent_backward``, into ``ddelta`` where that is owned."""
        back = _variant(rule, "tangent_backward", ddelta in self)
        d_inputs, d_slots = back(saved, delta, dinputs, dslots, ddelta)
        # Two inputs may get the same tangent.
        self._note(rule if len(d_inputs) == 1 else None, [ddelta], *d_inputs)
        return d_inputs, d_slots

    def accumulate(self, total: list[Tangent], where: Sequence[int], parts: Sequence[Tangent]) -> None:
        """total[w] += part, into the one of both that is owned."""
        for w, part in zip(where, parts, strict=True):
            known = total[w]
            if part is None or known is None:
                total[w] = known if part is None else part
            elif part in self:
                total[w] = part.add_(known)
                self.release(known)
            else:
                total[w] = known.add_(part) if known in self else known + part

    def release(self, t: Tangent) -> None:
        """After its last use."""
        if t is not None and t in self:
            self._forget(t)
            workspace.release(t)

    def _note(self, rule: Rule | None, arguments: Sequence[Tangent], result: Tangent = None, *more: Tangent) -> None:
        """After a rule (None: of which nothing is known) was given the arguments and returned the results."""
        if not getattr(rule, "fresh", False) or more:
            for a in arguments:
                self._forget(a)
        elif result is not None and all(result is not a for a in arguments):
            self._tangents[id(result)] = result

    def _forget(self, t: Tangent) -> None:
        self._tangents.pop(id(t), None)


def _variant(rule: Rule, name: str, free: bool) -> Callable[..., Any]:
    """The rule's method, in place where there is such a variant and the memory is free."""
    in_place: Callable[..., Any] | None = getattr(rule, f"{name}_", None) if free else None
    return getattr(rule, name) if in_place is None else in_place
