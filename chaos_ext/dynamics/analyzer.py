"""Lyapunov exponents of a training run, while it trains."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..base.files import read_or_previous, write_keeping_previous
from ..base.parameters import ParameterSpace
from ..base.progress import Progress
from ..base.signals import Deferred
from ..curvature.hessian import HessianOperator
from . import checkpoint
from .methods import EXTREMES, Options, check_options, run_for
from .readings import Readings
from .sharded.company import company_of, versions
from .sharded.storage import RankFiles
from .tangent_map import TangentMap, Units
from .watching import Rows


class LyapunovAnalyzer(Readings):
    """Lyapunov exponents of training with this model and optimizer: asymptotic, or of the run so far.

    The deviations [S, k] of the optimizer's whole state (see ``TangentMap``) go through the tangent map of every step,
    at one block Hessian-vector product of k columns each. There are two quantities, which differ by O(1 / t):

    - "qr", the leading asymptotic exponents: means of ln R_ii per step (Benettin et al. 1980); k = 1 is the maximal.
    - "svd", finite-time exponents ln sigma_i(Y_t) / t of the product Y_t of all maps so far, the eigenvalues of
      ln(Y_t^T Y_t) / 2t, to full relative accuracy in each sigma_i: all of them, or, with k < S, those of the map
      restricted to k random directions. It takes four matrices [S, S] and a QR factorisation every few hundred steps.

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
        k: number of columns, so of exponents; None: all.
        method: "qr" or "svd".
        state: as of ``TangentMap``. "theta" with buffers: only of "svd", the block of theta, from (I; 0).
        qr_every: of "qr", re-orthonormalise at every multiple of this many steps, and whenever the stretch of the
            deviations nears what the dtype can bear; "auto": only then.
        transient: first steps, which are not measured; of "qr" they turn the deviations.
        jacobian: of CGD, as of ``TangentMap``.
        gali: of "qr", also follow GALI_1 .. GALI_k.
        covariant: of "qr", also keep what ``covariant_vectors`` needs: k^2 / 2 numbers a block (beyond a budget in a
            temporary file) and up to 64 frames [S, k]; k <= 64.
        csv: stream running exponents to this file (see ``ExponentStream``); of "svd" the extremes.
        progress: a bar on the terminal with the leading exponent so far (needs tqdm): True, or the number of steps.
        seed: of the initial deviations (the identity if k = S).
        memory_budget: bytes that it may take; default: what is available.
        every: of "svd", read the extremes at every multiple of this many steps; None: 20.
        neutral_tol: of "svd", exponents with |lambda t| up to this are neutral; None: up to their rounding errors.
        group: of "qr", a torch.distributed process group or ``Ranks``: each rank holds k / ranks of the columns. Every
            rank makes the analyzer with the same arguments, of the same model, and calls its methods and ``opt.step``
            in the same order on the same batches, which is checked; results are the same on all. Rank 0 writes the CSV
            file. Without ``gali`` and ``covariant``.

    Attributes:
        tangent: the TangentMap in use.
        steps: number of updates so far.

    Raises:
        ValueError, TypeError: arguments out of range or of the other method, an optimizer of another model.
        UnsupportedError: an optimizer without a tangent map; with "qr" ``state="theta"`` of an optimizer with buffers,
            whose maps are no cocycle; with ``group`` what needs all columns.
        MemoryBudgetError: k deviations do not fit.
        RanksDisagreeError, RankFailedError: with ``group``, here and in every method: ranks do not do the same; one has
            raised, was lost, or did not come.
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
        covariant: bool = False,
        csv: str | os.PathLike[str] | None = None,
        progress: bool | int = False,
        seed: int = 0,
        memory_budget: int | None = None,
        every: int | None = None,
        neutral_tol: float | None = None,
        group: Any = None,
    ) -> None:
        options = Options(method, k, qr_every, gali, every, transient, seed, memory_budget, covariant)
        self._company = company_of(group)
        with self._company.together("LyapunovAnalyzer"):
            check_options(options)
            space = ParameterSpace.of(model)
            self.model, self.method, self.tangent = model, method, TangentMap(opt, state, jacobian)
            self.tangent.check(space)
            self._compare(space, options, csv is not None)
            rows = self.tangent.size if self.tangent.is_cocycle else self.tangent.parameters
            ranks = self._company.ranks
            run = run_for(options, self.tangent.size, rows, "S", space.dtype, space.device, ranks)
            super().__init__(run, self.tangent.size, neutral_tol)
            self._rows = Rows(csv, EXTREMES if method == "svd" else None, self._company.writes)
        self._units: Units | None = None
        self._unwritten: HessianOperator | None = None
        self._expected: str | None = None
        self._saved: int | None = None
        shown = progress is not False and self._company.writes
        self._bar = Progress(None if isinstance(progress, bool) else progress, shown=shown)
        self._fingerprint = checkpoint.fingerprint(space, self.tangent, self._run, ranks)

    def _compare(self, space: ParameterSpace, options: Options, csv: bool) -> None:
        """Raises RanksDisagreeError unless all ranks make the same analyzer."""
        tangent, theta = self.tangent, [[n, *s] for n, s in zip(space.names, space.shapes, strict=True)]
        made = {"optimizer": type(tangent.opt).__name__, "state": tangent.state, "jacobian": tangent.jacobian}
        self._company.same(versions=versions(), dtype=str(space.dtype), parameters=theta, **made, csv=csv)
        self._company.same(**options.measured())

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
        prepared = self._company.prepared(lambda: self._prepared(op), op, self.tangent)
        if prepared is None:
            return self._write_row()
        write_, units = prepared
        with Deferred():
            measured = self._run.commit(write_)
            vars(self).update(_units=units, _expected=None, _unwritten=op if measured else None)
            self._bar.report(1, False)
            if measured:
                self._publish()
        return None

    def _prepared(self, op: HessianOperator) -> tuple[Callable[[], Tensor | None], Units] | None:
        """The step up to where it writes, and the units of buffers; None: it is done, but its row is missing."""
        if not isinstance(op, HessianOperator):
            raise TypeError(f"op: expected a HessianOperator, got {type(op).__name__}")
        if op.origin.model is not self.model:
            raise ValueError("op: its model is not this analyzer's; make the operator from the model that is trained")
        if self._expected is not None:
            checkpoint.require_theta(op.snapshot.theta, self._expected)
        run = self._run
        if self._unwritten is op:
            return None
        units = self.tangent.units(op) if self._units is None else self._units
        return run.prepare(lambda Y: self.tangent.prepared(op, Y, units)), units

    def _publish(self) -> None:
        """What has just been measured, for those who watch."""
        if self._bar.shown:
            self._bar.show(f"largest exponent {self._run.leading():+.3g}")
        self._write_row()

    def _write_row(self) -> None:
        if self._rows.wanted:
            with self._company.together("csv"):
                self._rows.write(self.steps, self._run.row())
        self._unwritten = None

    def state_dict(self) -> dict[str, Any]:
        """What a bit-identical continuation needs beside the checkpoints of model and optimizer of the same moment."""
        return checkpoint.pack(self._fingerprint, self._run, self._units, ParameterSpace.of(self.model))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict()``. A CSV stream goes on after the rows up to its step.

        Raises:
            CheckpointError: the state of another kind of run, or incomplete.
            OSError: the CSV file cannot be cut back to this step. The analyzer is then as it was.
        """
        self._load(state, True)

    def _load(self, state: dict[str, Any], copy_: bool) -> None:
        with self._company.together("load_state_dict"):
            checkpoint.require_fit(state, self._fingerprint, self._state)
            if self._company.ranks is not None:
                self._company.same(state=checkpoint.moment(state))
            run = copy.copy(self._state)
            checkpoint.load(run, state["run"], copy_)
        units = None if state["units"] is None else [tuple(u) for u in state["units"]]
        with Deferred():
            with self._company.together("csv"):
                self._rows.resume(run.steps)
            vars(self).update(_state=run, _units=units, _expected=state["theta"], _unwritten=None)
            self._bar.report(self.steps, True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes ``state_dict()`` to a file, whole or not at all; the previous one is kept as ``<name>.previous``.

        With ``group`` every rank writes ``<name>.rank<r>-of-<n>.step<t>``, and once all have, removes its files of
        other steps but for the set before.

        Args:
            path: in an existing folder.

        Raises:
            OSError: it cannot be written; what was there is still there.
        """
        with self._company.together("save"):
            self._run.release()  # a file is made in memory first
            space = ParameterSpace.of(self.model)
            content = checkpoint.pack(self._fingerprint, self._run, self._units, space, copy=False)
            if self._company.ranks is None:
                write_keeping_previous(Path(path), content)
            else:
                RankFiles(self._company.ranks, Path(path)).write(self.steps, content, self._saved)
                self._saved = self.steps

    def load(self, path: str | os.PathLike[str]) -> None:
        """Restores what ``save`` wrote; where the file is damaged or missing, the previous one, with a warning logged.

        Model and optimizer have to be those of the same step: see ``steps``. With ``group`` it is the newest step of
        which every rank has a whole file; there have to be as many ranks as wrote it.

        Args:
            path: as of ``save``.

        Raises:
            FileNotFoundError: there is no file. CheckpointError: no whole one, or another run's.
        """
        ranks = self._company.ranks
        if ranks is None:
            return self._load(read_or_previous(Path(path)), False)
        with self._company.together("load"):
            step, content = RankFiles(ranks, Path(path)).read()
            self._load(content, False)
            self._saved = step
        return None
