"""A run of deviations kept orthonormal: what ``method="qr"`` measures, as LyapunovAnalyzer asks for it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .benettin import Benettin
from .result import ordered


class Asymptotic(Benettin):
    """Exponents in descending order from the growth of a frame."""

    method = "qr"

    def exponents(self) -> Tensor:
        """float64 [k], descending, in nats per step."""
        return ordered(self)[0]

    def uncertainty(self) -> Tensor:
        """One standard error of each, by block means."""
        return self.errors()[ordered(self)[1]]

    def local_exponents(self) -> Tensor:
        """Growth per step over the last block."""
        if self.last is None:
            raise ValueError("local_exponents: no block of steps has been measured yet")
        growth, n = self.last
        return growth[ordered(self)[1]] / n

    def directions(self) -> Tensor:
        """All columns of the frame [S, k]."""
        return self.frame.whole(self.reading().directions)

    def row(self) -> list[float]:
        """What is streamed."""
        return list(self.exponents().tolist())

    def leading(self) -> float:
        """The largest exponent, for a progress bar."""
        return float(self.exponents()[0])

    def release(self) -> None:
        """There is nothing that only readings need."""

    def options(self) -> dict[str, Any]:
        """What a saved state must have been made with."""
        gali, own = self.gali is not None, {} if self.record is None else {"covariant": True}
        return {"k": self.frame.k, "qr_every": self.every, "transient": self.transient, "gali": gali, **own}
