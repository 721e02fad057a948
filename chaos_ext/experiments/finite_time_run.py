"""One training run with its finite-time spectrum, which can be killed at any moment and continued to the same bits.

Two files hold a checkpoint, since one of them is large: ``training.ckpt`` (parameters, optimizer, losses) is written
first, then ``analyzer.ckpt``; each keeps the one before it, so at any moment there are two that belong to one step.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import chaos_ext as ce

from ..base.contents import count, number, parts, refusing, require
from ..base.files import read_sealed, write_keeping_previous
from ..data import BatchOrder, Dataset
from ..errors import CheckpointError, NonFiniteError
from .interruption import Interrupted, between_steps
from .settings import Settings
from .training import build_model

log = logging.getLogger("chaos_ext")

EXTREMES = "extremes.csv"
_TRAINING, _ANALYZER = "training.ckpt", "analyzer.ckpt"
_CHUNK = 2048


@dataclass(frozen=True, kw_only=True)
class FiniteTimeSettings(Settings):
    """Settings of ``chaos-ext reproduce finite-time``: those of one SGD run, and how it is measured.

    Attributes:
        k: number of columns, or None for all.
        state: as of ``TangentMap``.
        every: steps between two readings of the extremes.
        settle: training ends after an epoch whose mean accuracy is less than this from that of the one before; or None.
    """

    k: int | None
    state: str
    every: int
    settle: float | None = None


class Training:
    """Model, optimizer, batches and analyzer of one run.

    Attributes:
        step: optimizer steps taken.
        seconds: wall time of this run so far, over all processes, and of making operators and stepping.
        epoch_losses, epoch_accuracies: mean training loss and accuracy of each finished epoch.
        failure: None, or the step at which training diverged, and why.
    """

    def __init__(self, settings: FiniteTimeSettings, data: Dataset, folder: Path, csv: Path) -> None:
        s = self.settings = settings
        (self.seed,) = s.seeds
        self.data = data.to(getattr(torch, s.dtype), s.device)
        self.order = BatchOrder(len(data.y_train), s.batch_size, self.seed)
        self.total = s.steps(len(data.y_train))
        self.model = build_model(s, self.seed)
        self.loss_fn = nn.CrossEntropyLoss()
        # torch.optim.SGD's own recurrence, which takes the gradient from the operator: no backward pass beside it.
        self.optimizer = ce.CGD(self.model.parameters(), lr=s.lr, momentum=s.momentum, prune=None)
        self.analyzer = ce.LyapunovAnalyzer(
            self.model, self.optimizer, k=s.k, method="svd", state=s.state, every=s.every, seed=self.seed, csv=csv
        )
        self.folder, self.step = folder, 0
        self.seconds = {"total": 0.0, "operator": 0.0, "optimizer": 0.0, "checkpoints": 0.0}
        self.epoch_losses: list[float] = []
        self.epoch_accuracies: list[float] = []
        self.failure: dict[str, Any] | None = None
        self._loss, self._hits = 0.0, 0  # sums over the epoch so far
        self._batches: tuple[Tensor, ...] = ()

    @property
    def done(self) -> bool:
        """Whether no step is left, or training has settled."""
        settle, found = self.settings.settle, self.epoch_accuracies
        at_end = self.step % self.order.steps_per_epoch == 0 and len(found) > 1
        return self.step >= self.total or (settle is not None and at_end and abs(found[-1] - found[-2]) < settle)

    def advance(self) -> None:
        """One step.

        Raises:
            NonFiniteError: training diverged.
        """
        epoch, position = divmod(self.step, self.order.steps_per_epoch)
        if not position or not self._batches:
            self._batches = self.order.epoch(epoch)
        index = self._batches[position].to(self.settings.device)
        began = time.perf_counter()
        op = ce.HessianOperator(self.model, self.loss_fn, self.data.x_train[index], self.data.y_train[index])
        loss, output = op.loss.item(), op.output
        assert isinstance(output, Tensor)
        hits = int((output.argmax(1) == self.data.y_train[index]).sum())
        made = time.perf_counter()
        self.analyzer.update(op)
        measured = time.perf_counter()
        self.optimizer.step(op)
        self.seconds["operator"] += made - began
        self.seconds["optimizer"] += time.perf_counter() - measured
        self.step += 1
        self._loss, self._hits = self._loss + loss * len(index), self._hits + hits
        if position == self.order.steps_per_epoch - 1:
            self.epoch_losses.append(self._loss / self.order.n)
            self.epoch_accuracies.append(self._hits / self.order.n)
            self._loss, self._hits = 0.0, 0

    def evaluate(self) -> dict[str, float | None]:
        """Loss and accuracy over the test split; the loss None where it is not finite."""
        d, loss, hits = self.data, 0.0, 0
        with torch.no_grad():
            for x, y in zip(torch.split(d.x_test, _CHUNK), torch.split(d.y_test, _CHUNK), strict=True):
                output = self.model(x)
                loss += nn.functional.cross_entropy(output, y, reduction="sum").item()
                hits += int((output.argmax(1) == y).sum())
        mean = loss / len(d.y_test)
        return {"test_loss": mean if math.isfinite(mean) else None, "test_accuracy": hits / len(d.y_test)}

    def save(self) -> None:
        """Writes both files."""
        began = time.perf_counter()
        names = ("step", "seconds", "epoch_losses", "epoch_accuracies", "_loss", "_hits")
        state = {n.lstrip("_"): getattr(self, n) for n in names}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        content = {"settings": self.settings.to_json(), "state": state}
        write_keeping_previous(self.folder / _TRAINING, content)
        self.analyzer.save(self.folder / _ANALYZER)
        self.seconds["checkpoints"] += time.perf_counter() - began

    def restore(self) -> None:
        """Goes to the newest checkpoint whose two files are whole and of the same step; stays at 0 if there is none."""
        path = self.folder / _ANALYZER
        if not path.exists() and not path.with_name(path.name + ".previous").exists():
            return
        try:
            self.analyzer.load(path)
        except CheckpointError as error:
            log.warning("%s; the run starts anew", error)
            return
        if not self._load_training(self.analyzer.steps):
            raise CheckpointError(
                f"{self.folder}: no whole {_TRAINING} of step {self.analyzer.steps}, that of {_ANALYZER}; remove the "
                "folder to start anew"
            )

    def _load_training(self, step: int) -> bool:
        path = self.folder / _TRAINING
        for candidate in (path, path.with_name(path.name + ".previous")):
            try:
                content = read_sealed(candidate)
                with refusing(str(candidate)):
                    state = parts(parts(content, ("settings", "state"))["state"], ("step", "model", "optimizer"))
                    require(content["settings"] == self.settings.to_json(), "settings", "these", "others")
                    count("step", state["step"], 0, self.total)
                    number("loss", state["loss"])
                    count("hits", state["hits"])
            except FileNotFoundError:
                continue
            except CheckpointError as error:
                log.warning("%s", error)
                continue
            if state["step"] == step:
                # A newer one, whose analyzer never came to be, would take the place of this one's at the next save.
                os.replace(candidate, path)
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.step, self.seconds = step, dict(state["seconds"])
                self.epoch_losses, self._loss = list(state["epoch_losses"]), state["loss"]
                self.epoch_accuracies, self._hits = list(state["epoch_accuracies"]), state["hits"]
                return True
        return False


def train(training: Training, every: float, report: Callable[[int, bool], None]) -> None:
    """Trains to the end, or to where it diverges (``failure``), from a checkpoint if there is a good one.

    Args:
        training: at its start.
        every: seconds between checkpoints.
        report: told of steps that are done, and whether an earlier process did them.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came; a checkpoint of the last step was written.
    """
    training.restore()
    report(training.step, True)
    saved = mark = time.monotonic()
    with between_steps() as asked_to_end:
        while not training.done:
            try:
                training.advance()
            except NonFiniteError as error:
                training.failure = {"step": training.step, "error": f"{type(error).__name__}: {error}"}
                return
            report(1, False)
            now = time.monotonic()
            training.seconds["total"] += now - mark
            mark = now
            signum = asked_to_end()
            if signum is not None or training.done or now - saved >= every:
                training.save()
                saved = time.monotonic()
            if signum is not None:
                raise Interrupted(signum, f"step {training.step}")
