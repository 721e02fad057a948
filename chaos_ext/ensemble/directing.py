"""Which way to pruned gradients and spectra is right for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spectra.spectrum import Spectrum
from .choice import Choice
from .members import Directed, Members, Parts
from .single import Single
from .twin import Twin


class Directing:
    """The engines of one ensemble that take spectra, by kind of batch.

    Args:
        twin: what members are run with.
        choice: of the way to gradients, which refuses what members cannot be run with.
    """

    def __init__(self, twin: Twin, choice: Choice) -> None:
        self._single, self._choice = Single(twin), choice

    def way(self, members: Members, x: Any, y: Any, own: bool) -> tuple[Directed, Parts]:
        """The engine for such a batch, and which members at a time.

        Raises:
            UnsupportedError, ValueError: as of ``Choice.way``.
        """
        _, parts = self._choice.way(members, x, y, own)
        return self._single, parts

    def forget(self) -> None:
        """Other members than those that were tried."""

    def spectra(
        self, members: Members, x: Any, y: Any, own: bool, form: bool, options: Mapping[str, Any]
    ) -> list[Spectrum | None]:
        """The spectrum of each member, None of those left out."""
        engine, _ = self.way(members, x, y, own)
        return engine.spectra(members, x, y, own, form, options)
