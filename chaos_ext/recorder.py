"""What a training loop of one's own reports beside its loss: three lines, whatever it logs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .base.arguments import require_int
from .chaos import spectral_summary
from .curvature.hessian import HessianOperator
from .dynamics.analyzer import LyapunovAnalyzer
from .errors import UnsupportedError
from .metrics import batch_sharpness, distance_to_threshold, lle_spectrum
from .spectra.decompose import spectrum
from .spectra.spectrum import Spectrum

WHAT = ("lle", "spectrum", "exponents", "stability")


class Recorder:
    """Chaos of a training loop as it goes, for wandb, TensorBoard, a CSV writer, or anything that takes a dict.

    Example:
        >>> seen = []
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> rec = ce.Recorder(model, opt, log=seen.append)  # log=wandb.log
        >>> for x, y in loader:
        ...     op = ce.HessianOperator(model, loss_fn, x, y)
        ...     record = rec.update(op)  # before the step
        ...     opt.zero_grad()
        ...     loss_fn(model(x), y).backward()
        ...     opt.step()
        >>> sorted(seen[0])[:3]
        ['exponents/1', 'exponents/largest_error', 'lle/chaotic']

    A record has "step" and "loss", and under the name of each of ``what``:

    - "lle": ``largest`` and ``smallest`` local Lyapunov exponent ln|1 - lr lambda| of the step, and how many are
      ``chaotic``, above 0; in nats per step, for plain gradient descent at the first group's lr.
    - "spectrum": ``largest``, ``smallest`` eigenvalue of the mini-batch Hessian, numbers of ``negative``, ``zero`` and
      ``positive`` ones, and their shares of the squared gradient norm, ``negative_share`` and ``positive_share``.
    - "exponents": the k leading Lyapunov exponents of the training so far, ``1`` .. ``k`` (``LyapunovAnalyzer``), and
      the largest of their standard errors, ``largest_error``.
    - "stability": ``sharpness``, the ``threshold`` at which a quadratic would diverge, their ``ratio``
      (``distance_to_threshold``), and the ``batch_sharpness``.

    Args:
        model: the model that is trained.
        opt: its optimizer.
        log: called with each record, after the exponents have been taken on.
        every: record at every multiple of this many steps; exponents are followed at every step.
        what: some of "lle", "spectrum", "exponents", "stability".
        k: Lyapunov exponents to follow.
        analyzer: a LyapunovAnalyzer of the same model and optimizer to use in place of one by QR with ``k``.

    Attributes:
        analyzer: that follows the exponents, or None.
        steps: number of updates so far.

    Raises:
        ValueError, TypeError: arguments out of range. UnsupportedError: "exponents" or "stability" of an optimizer for
            which they are not known.
    """

    def __init__(
        self,
        model: nn.Module,
        opt: Optimizer,
        log: Callable[[dict[str, Any]], object],
        every: int = 1,
        what: Sequence[str] = WHAT,
        k: int = 1,
        analyzer: LyapunovAnalyzer | None = None,
    ) -> None:
        if not callable(log):
            raise TypeError(f"log: expected a callable that takes a dict, got {type(log).__name__}")
        require_int("every", every, 1)
        require_int("k", k, 1)
        if isinstance(what, str) or not what or not set(what) <= set(WHAT):
            raise ValueError(f"what: expected some of {WHAT}, got {what!r}")
        if analyzer is not None and (analyzer.model is not model or analyzer.tangent.opt is not opt):
            raise ValueError("analyzer: it follows another model or optimizer")
        self.model, self.opt, self.steps = model, opt, 0
        self._log, self._every, self._what = log, every, tuple(dict.fromkeys(what))
        self.analyzer = analyzer
        if "exponents" in self._what and analyzer is None:
            self.analyzer = LyapunovAnalyzer(model, opt, k)
        if "stability" in self._what:
            distance_to_threshold(1.0, opt)  # whether an edge is known

    def update(self, op: HessianOperator) -> dict[str, Any] | None:
        """Looks at the step that is about to be done.

        Args:
            op: of the step's batch, made from the model as it is now.

        Returns:
            The record that was logged, or None at a step between two records.

        Raises:
            What ``LyapunovAnalyzer.update`` and ``spectrum`` raise; then nothing is counted or logged. Whatever ``log``
            raises, after the step has been counted.
        """
        if not isinstance(op, HessianOperator):
            raise TypeError(f"op: expected a HessianOperator, got {type(op).__name__}")
        if op.origin.model is not self.model:
            raise ValueError("op: its model is not this recorder's; make the operator from the model that is trained")
        due = self.steps % self._every == 0
        record = self._looked_at(op) if due else None
        if self.analyzer is not None and "exponents" in self._what:
            self.analyzer.update(op)
            if record is not None:
                record |= self._exponents(self.analyzer)
        self.steps += 1
        if record is not None:
            self._log(record)
        return record

    def _looked_at(self, op: HessianOperator) -> dict[str, Any]:
        record: dict[str, Any] = {"step": self.steps, "loss": op.loss.item()}
        if {"lle", "spectrum", "stability"} & set(self._what):
            spec = spectrum(op)
            for name, read in (("lle", self._lle), ("spectrum", self._spectrum), ("stability", self._stability)):
                if name in self._what:
                    record |= {f"{name}/{key}": value for key, value in read(op, spec).items()}
        return record

    def _lr(self) -> float:
        return float(self.opt.param_groups[0]["lr"])

    def _lle(self, op: HessianOperator, spec: Spectrum) -> dict[str, float]:
        local = lle_spectrum(spec, self._lr())
        return {"largest": float(local[0]), "smallest": float(local[-1]), "chaotic": int((local > 0).sum())}

    def _spectrum(self, op: HessianOperator, spec: Spectrum) -> dict[str, float]:
        s = spectral_summary(spec, self._lr())
        counts = {"negative": s.n_negative, "zero": s.n_zero, "positive": s.n_positive}
        shares = {"negative_share": s.share_negative, "positive_share": s.share_positive}
        return {"largest": s.lambda_max, "smallest": s.lambda_min, **counts, **shares}

    def _stability(self, op: HessianOperator, spec: Spectrum) -> dict[str, float]:
        try:
            margin = distance_to_threshold(spec, self.opt)
        except UnsupportedError:  # Adam: of the preconditioned Hessian
            margin = distance_to_threshold(op, self.opt)
        found = {"sharpness": margin.sharpness, "threshold": margin.threshold, "ratio": margin.ratio}
        return {**found, "batch_sharpness": batch_sharpness(op)}

    def _exponents(self, analyzer: LyapunovAnalyzer) -> dict[str, float]:
        try:
            exponents, errors = analyzer.exponents(), analyzer.errors()
        except ValueError:  # no block of steps has been measured yet
            return {}
        named = {f"exponents/{i + 1}": v for i, v in enumerate(exponents.tolist())}
        return {**named, "exponents/largest_error": float(errors.max())}
