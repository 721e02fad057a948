"""Lyapunov exponents of a training run, while it trains."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..base import memory
from ..base.arguments import require_int
from ..base.files import read_or_previous, write_keeping_previous
from ..base.parameters import ParameterSpace
from ..base.progress import Progress
from ..base.signals import Deferred
from ..curvature.hessian import HessianOperator
from ..errors import TornStateError, UnsupportedError
from . import checkpoint
from .benettin import KEEP, Benettin
from .csv_stream import ExponentStream
from .exponents import kaplan_yorke_dimension, sum_of_positive_exponents
from .result import History, ordered, running_history
from .start import check_count, check_every, start_block
from .tangent_map import TangentMap, Units

METHODS = ("qr",)


class LyapunovAnalyzer:
    """The leading Lyapunov exponents of training with this model and optimizer, asymptotic, by QR.

    The deviations [S, k] of the optimizer's whole state (see ``TangentMap``) go through the tangent map of every step,
    at one block Hessian-vector product of k columns each; k = 1 is the maximal exponent alone. Exponents are means of
    ln R_ii per step, in nats (Benettin et al. 1980); at finite t they differ from the finite-time exponents, the
    logarithms of the singular values of the product, by O(1 / t).

    Example:
        >>> an = ce.LyapunovAnalyzer(model, opt, k=8)
        >>> for x, y in loader:
        ...     op = ce.HessianOperator(model, loss_fn, x, y)
        ...     an.update(op)  # before the step
        ...     loss = opt.step(op)  # of CGD; of torch's optimizers: backward() and step()
        >>> an.exponents().shape
        torch.Size([8])

    Args:
        model: the model that is trained.
        opt: its optimizer.
        k: number of leading exponents; None: all S.
        method: "qr".
        state: as of ``TangentMap``.
        qr_every: re-orthonormalise at every multiple of this many steps, and whenever the stretch of the deviations
            nears what the dtype can bear; "auto": only then.
        transient: first steps, which turn the deviations but are not measured.
        jacobian: of CGD, as of ``TangentMap``.
        gali: also follow GALI_1 .. GALI_k.
        csv: stream running exponents to this file (see ``ExponentStream``).
        progress: a bar on the terminal with the leading exponent so far (needs tqdm): True, or the number of steps.
        seed: of the initial deviations (the identity if k = S).
        memory_budget: bytes that it may take; default: what is available.

    Attributes:
        tangent: the TangentMap in use.
        steps: number of updates so far.

    Raises:
        ValueError, TypeError: arguments out of range, an optimizer of another model.
        UnsupportedError: an optimizer without a tangent map; ``state="theta"`` of an optimizer with buffers, whose maps
            are no cocycle; ``method="svd"``. MemoryBudgetError: k deviations do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        opt: Optimizer,
        k: int | None = None,
        method: str = "qr",
        state: str = "auto",
        qr_every: int | str = "auto",
        transient: int = 0,
        *,
        jacobian: str = "frozen",
        gali: bool = False,
        csv: str | os.PathLike[str] | None = None,
        progress: bool | int = False,
        seed: int = 0,
        memory_budget: int | None = None,
    ) -> None:
        _check_method(method)
        check_every(qr_every)
        require_int("transient", transient, 0)
        space = ParameterSpace.of(model)
        self.model, self.method, self.tangent = model, method, TangentMap(opt, state, jacobian)
        self.tangent.check(space)
        if not self.tangent.is_cocycle:
            raise UnsupportedError(
                "state='theta' with method='qr': the theta block of an optimizer with buffers is no cocycle, so it has "
                "no asymptotic exponents; use state='auto'"
            )
        k = check_count(k, self.tangent.size, "S")
        _require_memory(self.tangent.size, k, space, memory_budget)
        start = start_block(self.tangent.size, k, space.dtype, space.device, seed, generic=gali)
        self._state = Benettin(start, qr_every, transient, gali)
        self._units: Units | None = None
        self._unwritten: HessianOperator | None = None
        self._expected: str | None = None
        self._stream = None if csv is None else ExponentStream(csv)
        self._cut = False  # whether the stream may end with part of a row
        self._bar = Progress(None if isinstance(progress, bool) else progress, shown=progress is not False)
        self._fingerprint = checkpoint.fingerprint(space, self.tangent, self._run, method)

    @property
    def _run(self) -> Benettin:
        if self._state.torn:
            raise TornStateError(
                "LyapunovAnalyzer: an update was broken off while it wrote, so deviations and counts may be of "
                "different steps; load a saved state, or make a new analyzer"
            )
        return self._state

    @property
    def steps(self) -> int:
        """Number of updates so far, the transient included."""
        return self._run.steps

    def update(self, op: HessianOperator) -> None:
        """Takes the deviations through the step that the optimizer is about to do on the operator's batch.

        Raises:
            ValueError, TypeError: an operator of another model, or of another dtype.
            StaleOperatorError: the step was already done.
            NonFiniteError: NaN or infinity, with the number of the step; all results until then are kept.
            CheckpointError: the first update after ``load_state_dict``, and the parameters are not those of the
            checkpoint. OSError: the row of this step could not be written to the CSV file.
            TornStateError: an earlier update was broken off by an exception that another thread raised in it.

        After an exception the analyzer is as it was, also after Ctrl-C, with one exception: at an OSError of the CSV
        file the step is counted, all numbers are those after it, and only its row is missing. The next update with the
        same operator writes that row and counts nothing.
        """
        if not isinstance(op, HessianOperator):
            raise TypeError(f"op: expected a HessianOperator, got {type(op).__name__}")
        if op.origin.model is not self.model:
            raise ValueError("op: its model is not this analyzer's; make the operator from the model that is trained")
        if self._expected is not None:
            checkpoint.require_theta(op.snapshot.theta, self._expected)
        run = self._run
        if self._unwritten is op:
            return self._write_row()
        units = self.tangent.units(op) if self._units is None else self._units
        write_ = run.prepare(lambda Y: self.tangent.prepared(op, Y, units))
        with Deferred():
            measured = run.commit(write_)
            vars(self).update(_units=units, _expected=None, _unwritten=op if measured else None)
            self._bar.report(1, False)
            if measured:
                self._publish()
        return None

    def _publish(self) -> None:
        """What has just been measured, for those who watch."""
        if self._bar.shown:
            self._bar.show(f"largest exponent {float(self.exponents()[0]):+.3g}")
        self._write_row()

    def _write_row(self) -> None:
        if self._stream is not None:
            try:
                if self._cut:
                    self._stream.resume(self.steps - 1)
                self._cut = True
                self._stream.append(self.steps, self.exponents().tolist())
                self._cut = False
            except OSError as e:
                why = f"csv: the row of step {self.steps} is missing ({e.strerror}); the step itself is counted"
                raise OSError(e.errno, why, e.filename or os.fspath(self._stream.path)) from e
        self._unwritten = None

    def exponents(self) -> Tensor:
        """float64 [k], descending, in nats per step, of the steps so far.

        Raises:
            ValueError: there was no step after the transient yet.
        """
        return ordered(self._run)[0]

    def errors(self) -> Tensor:
        """One standard error of each exponent, in their order, by block means over the run [k].

        NaN until there are four blocks. It describes the scatter of a stationary run; in a run that changes with time,
        that change counts as scatter.
        """
        return self._run.errors()[ordered(self._run)[1]]

    @property
    def local_exponents(self) -> Tensor:
        """Growth per step over the last block between two re-orthonormalisations, float64 [k].

        ln R_ii of that block divided by its steps, in nats per step and in the order of ``exponents()``.

        Raises:
            ValueError: no block has been measured yet.
        """
        if self._run.last is None:
            raise ValueError("local_exponents: no block of steps has been measured yet")
        growth, n = self._run.last
        return growth[ordered(self._run)[1]] / n

    @property
    def history(self) -> History:
        """Running exponents after each block (of a long run, of merged blocks); raises as ``exponents()``."""
        return running_history(self._run, ordered(self._run)[1])

    def directions(self) -> Tensor:
        """Orthonormal columns [S, k]: the first j span the j directions that have grown fastest (theta, then buffers).

        Buffers are in the units of ``TangentMap.units``.
        """
        return self._run.reading().directions.clone()

    def log_gali(self) -> Tensor:
        """ln GALI_1 .. ln GALI_k of the free deviations since the transient, float64 [k].

        GALI_j is the volume of the parallelepiped of the first j deviations, each of length one, were they never
        re-orthonormalised (Skokos, Bountis, Antonopoulos 2007): it falls exponentially in a chaotic run.

        Raises:
            ValueError: the analyzer was made without ``gali=True``.
        """
        gali = self._run.reading().log_gali
        if gali is None:
            raise ValueError("log_gali: expected an analyzer made with gali=True")
        return gali

    def kaplan_yorke_dimension(self) -> float:
        """Of the exponents so far; see ``chaos_ext.kaplan_yorke_dimension``."""
        return kaplan_yorke_dimension(self.exponents(), self.tangent.size)

    def sum_of_positive_exponents(self) -> float:
        """In nats per step."""
        return sum_of_positive_exponents(self.exponents())

    def state_dict(self) -> dict[str, Any]:
        """What a bit-identical continuation needs beside the checkpoints of model and optimizer of the same moment."""
        return checkpoint.pack(self._fingerprint, self._run, self._units, ParameterSpace.of(self.model))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict()``. A CSV stream goes on after the rows up to its step.

        Raises:
            CheckpointError: the state of another kind of run, or incomplete.
            OSError: the CSV file cannot be cut back to this step. The analyzer is then as it was.
        """
        checkpoint.require_fit(state, self._fingerprint, self._state)
        run = copy.copy(self._state)
        run.load_state_dict(state["run"])
        units = None if state["units"] is None else [tuple(u) for u in state["units"]]
        with Deferred():
            if self._stream is not None:
                self._stream.resume(run.steps)
            vars(self).update(_state=run, _units=units, _expected=state["theta"], _unwritten=None, _cut=False)
            self._bar.report(self.steps, True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes ``state_dict()`` to a file, whole or not at all; the previous one is kept as ``<name>.previous``."""
        write_keeping_previous(Path(path), self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Restores what ``save`` wrote; where the file is damaged or missing, the previous one, with a warning logged.

        Model and optimizer have to be those of the same step: see ``steps``.

        Args:
            path: as of ``save``.

        Raises:
            FileNotFoundError: there is no file. CheckpointError: no whole one, or another run's.
        """
        self.load_state_dict(read_or_previous(Path(path)))


def _check_method(method: str) -> None:
    if method == "svd":
        raise UnsupportedError("method='svd': finite-time exponents are not available yet; use method='qr'")
    if method not in METHODS:
        raise ValueError(f"method: expected one of {METHODS}, got {method!r}")


def _require_memory(size: int, k: int, space: ParameterSpace, budget: int | None) -> None:
    """Deviations, their product with H, and two copies while they are orthonormalised; factors and history."""
    need = (3 * size * k + space.size * k) * space.dtype.itemsize + (4 * k * k + KEEP * k) * 8
    memory.require(
        need, space.device, f"LyapunovAnalyzer with k = {k} of S = {size}", "ask for fewer exponents", budget
    )
