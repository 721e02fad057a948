"""Which way to pruned gradients and spectra is right for a batch: all members at once, or one after the other.

The batched one is taken for networks of Linear layers, if Q S Q^T is the Hessian of single members by a product with
it, and if members that are all equal stay equal bit for bit over a step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from ..curvature.scalar import first_line
from ..errors import ChaosExtError
from ..rules.rule import NotLayerwise
from ..spectra.spectrum import Spectrum
from .choice import Choice, keeping_equals, key_of
from .compressed import Compressed
from .layered import Layered
from .members import Directed, Members, Parts
from .single import Single
from .twin import Twin

log = logging.getLogger("chaos_ext")


class Directing:
    """The engines of one ensemble that take spectra, by kind of batch.

    Args:
        twin: what members are run with.
        choice: of the way to gradients, which refuses what members cannot be run with.
    """

    def __init__(self, twin: Twin, choice: Choice) -> None:
        self._single, self._choice = Single(twin), choice
        self._batched: dict[object, Compressed | None] = {}
        self._parts: dict[object, list[slice]] = {}

    def way(self, members: Members, x: Any, y: Any, own: bool) -> tuple[Directed, Parts]:
        """The engine for pruning with such a batch, and which members at a time.

        Raises:
            UnsupportedError, ValueError: as of ``Choice.way``.
        """
        key, whole = key_of(x, y, own), [slice(0, len(members))]
        batched = self._batched_for(key, members, x, y, own)
        assert members.pruner is not None
        if batched is None or not batched.serves(members.pruner.options):
            return self._single, whole
        if key not in self._parts:
            self._parts[key] = keeping_equals(
                batched, whole, members, self._choice.finite(members, x, y, own), x, y, own
            )
        return batched, self._parts[key]

    def forget(self) -> None:
        """Other members than those that were tried."""
        self._batched.clear()
        self._parts.clear()
        self._single.forget()

    def spectra(
        self, members: Members, x: Any, y: Any, own: bool, form: bool, options: Mapping[str, Any]
    ) -> list[Spectrum | None]:
        """The spectrum of each member, None of those left out."""
        engine = self._batched_for(key_of(x, y, own), members, x, y, own) or self._single
        return engine.spectra(members, x, y, own, form, options)

    def _batched_for(self, key: object, members: Members, x: Any, y: Any, own: bool) -> Compressed | None:
        engine, _ = self._choice.way(members, x, y, own)
        if key not in self._batched:
            finite = self._choice.finite(members, x, y, own)
            if not finite:
                return None
            self._batched[key] = self._tried(engine, finite[0], members, x, y, own)
        return self._batched[key]

    def _tried(self, engine: object, finite: int, members: Members, x: Any, y: Any, own: bool) -> Compressed | None:
        try:
            if not isinstance(engine, Layered):
                raise NotLayerwise("no batched rules")
            batched = Compressed(engine.with_fresh_memory(), self._single, x.shape[1 if own else 0])
            problem = batched.defect(members, finite, x, y, own)
        except (torch.OutOfMemoryError, ChaosExtError):
            raise
        except Exception as e:  # a rule that meets shapes that it does not know
            problem = first_line(e)
        if problem is None:
            return batched
        log.info("Ensemble: no batched spectra here (%s); one member after the other", problem)
        return None
