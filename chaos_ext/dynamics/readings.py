"""What can be read off a run of deviations at any step, by either method."""

from __future__ import annotations

from torch import Tensor

from .asymptotic import Asymptotic
from .covariant import CovariantVectors, covariant_of
from .exponents import kaplan_yorke_dimension, sum_of_positive_exponents
from .finite_time.result import FiniteTimeSpectrum, check_neutral, spectrum_of
from .finite_time.run import Extremes, FiniteTime
from .methods import Run, require_whole, required
from .result import History, running_history


class Readings:
    """The readings of a ``LyapunovAnalyzer``, which makes the run and takes it on.

    Args:
        run: what is read.
        size: S, the dimension of the space that the deviations are in.
        neutral_tol: as of ``LyapunovAnalyzer``.

    Raises:
        ValueError: no tolerance.
    """

    def __init__(self, run: Run, size: int, neutral_tol: float | None) -> None:
        check_neutral(neutral_tol)
        self._state, self._size, self._neutral_tol = run, size, neutral_tol

    @property
    def _run(self) -> Run:
        require_whole(self._state)
        return self._state

    @property
    def steps(self) -> int:
        """Number of updates so far, the transient included."""
        return self._run.steps

    def exponents(self) -> Tensor:
        """float64 [k], descending, in nats per step, of the steps so far.

        Of "svd" a read-out, about as costly as some dozens of QR factorisations, and kept until the next update.

        Raises:
            ValueError: there was no step after the transient yet. UnsupportedError: ``state="theta"`` of an optimizer
            with buffers, after NaN or infinity in the deviations: those of its last block are lost, ``extremes`` stay.
        """
        return self._run.exponents().clone()

    def errors(self) -> Tensor:
        """How far each exponent may be off, in their order [k].

        Of "qr" one standard error, by block means over the run: NaN until there are four blocks. It describes the
        scatter of a stationary run; in a run that changes with time, that change counts as scatter. Of "svd" the
        tolerances of ``finite_time()``, for rounding.
        """
        return self._run.uncertainty()

    @property
    def local_exponents(self) -> Tensor:
        """Of "qr", growth per step over the last block between two re-orthonormalisations, float64 [k].

        ln R_ii of that block divided by its steps, in nats per step and in the order of ``exponents()``.

        Raises:
            ValueError: no block has been measured yet. UnsupportedError: ``method="svd"``.
        """
        return required(self._run, Asymptotic, "local_exponents").local_exponents()

    @property
    def history(self) -> History:
        """Of "qr", running exponents after each block (of a long run, of merged blocks); raises as ``exponents()``."""
        return running_history(required(self._run, Asymptotic, "history"))

    @property
    def extremes(self) -> Extremes:
        """Of "svd", the largest and smallest exponent at every multiple of ``every`` steps, with their tolerances."""
        return required(self._run, FiniteTime, "extremes").extremes()

    def finite_time(self) -> FiniteTimeSpectrum:
        """Of "svd", the exponents with their tolerances, the neutral ones, and more; raises as ``exponents()``."""
        return spectrum_of(required(self._run, FiniteTime, "finite_time"), self._neutral_tol)

    @property
    def neutral(self) -> Tensor:
        """Of "svd", which exponents are zero within tolerance, neither chaotic nor stable, bool [k]."""
        return self.finite_time().neutral

    def singular_vectors(self, side: str = "right") -> Tensor:
        """Of "svd", orthonormal columns by descending exponent [S, k] (theta's rows [P, k] with ``state="theta"``).

        Those of close singular values are accurate to the gap between them only. Buffers are in the units of
        ``TangentMap.units``.

        Args:
            side: "right", the initial directions that grow by sigma_i, or "left", where they end.

        Raises:
            ValueError: another side, no step yet. MemoryBudgetError: six matrices [k, k] beside the run do not fit.
            UnsupportedError: ``method="qr"``; the left side of a run that NaN or infinity has stopped.
        """
        return required(self._run, FiniteTime, "singular_vectors").singular_vectors(side)

    def directions(self) -> Tensor:
        """Of "qr", orthonormal columns [S, k]: the first j span the j directions that have grown fastest.

        Rows are theta, then buffers, these in the units of ``TangentMap.units``.
        """
        return required(self._run, Asymptotic, "directions").directions()

    def covariant_vectors(
        self, *, expanding: int | None = None, neutral: int | None = None, tol: float = 1e-6, seed: int = 0
    ) -> CovariantVectors:
        """Of "qr", covariant Lyapunov vectors [S, k] at up to 64 steps of the run so far (Ginelli et al. 2007).

        Rows are those of ``directions``; with them come the angles between expanding and contracting subspace.

        Args:
            expanding, neutral, tol, seed: as of ``chaos_ext.covariant_vectors``.

        Raises:
            ValueError: the analyzer was made without ``covariant=True``, or no block has been measured yet.
            UnsupportedError: a tangent map of the run was singular.
        """
        run = required(self._run, Asymptotic, "covariant_vectors")
        if run.record is None:
            raise ValueError("covariant_vectors: expected an analyzer made with covariant=True")
        return covariant_of(run, expanding=expanding, neutral=neutral, tol=tol, seed=seed)

    def log_gali(self) -> Tensor:
        """Of "qr", ln GALI_1 .. ln GALI_k of the free deviations since the transient, float64 [k].

        GALI_j is the volume of the parallelepiped of the first j deviations, each of length one, were they never
        re-orthonormalised (Skokos, Bountis, Antonopoulos 2007): it falls exponentially in a chaotic run.

        Raises:
            ValueError: the analyzer was made without ``gali=True``.
        """
        gali = required(self._run, Asymptotic, "log_gali").reading().log_gali
        if gali is None:
            raise ValueError("log_gali: expected an analyzer made with gali=True")
        return gali

    def kaplan_yorke_dimension(self) -> float:
        """Of the exponents so far; see ``chaos_ext.kaplan_yorke_dimension``."""
        return kaplan_yorke_dimension(self.exponents(), self._size)

    def sum_of_positive_exponents(self) -> float:
        """In nats per step."""
        return sum_of_positive_exponents(self.exponents())
