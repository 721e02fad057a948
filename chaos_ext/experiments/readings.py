"""A training that is looked at every so many steps: rows are readings, of which one moment may give several."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

import chaos_ext as ce

from ..base.contents import count
from ..data import Dataset
from ..data.batches import derive_seed
from ..errors import NonFiniteError
from .rows import format_row
from .settings import Settings, Unit
from .training import Training

# What rows of readings begin with.
READINGS = {
    "run": "what is done in training, or looked at, as the study names it",
    "seed": "decides initialisation, batches and all that is drawn",
    "step": "t: optimizer steps taken; the row is of theta(t)",
}
Rows = list[tuple[Any, ...]]


class ReadTraining(Training):
    """SGD of torch, and readings of theta(t) at t = 0, ``every``, 2 ``every`` ... and at the end.

    Args:
        settings, unit, data: as of ``Training``.
        every: steps between readings.

    Attributes:
        written: rows so far.
    """

    plain = (*Training.plain, "written")

    def __init__(self, settings: Settings, unit: Unit, data: Dataset, every: int) -> None:
        self.every, self.written = every, 0
        self._found: Rows = []
        super().__init__(settings, unit, data)

    def due(self, t: int) -> bool:
        """Whether theta(t) is read, the end aside."""
        return t % self.every == 0

    @abstractmethod
    def read(self, t: int) -> Rows:
        """Rows of theta(t), the parameters now, beside run, seed and step."""

    def make_optimizer(self) -> Optimizer:
        """torch.optim.SGD."""
        return SGD(self.model.parameters(), lr=self.settings.lr, momentum=self.settings.momentum)

    def take_step(self, x: Tensor, y: Tensor) -> None:
        """To theta(t+1) by backpropagation.

        Raises:
            NonFiniteError: the loss is NaN or infinite.
        """
        self.optimizer.zero_grad()
        loss = self.loss_fn(self.model(x), y)
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(f"loss: expected a finite number, got {loss.item()}")
        loss.backward()
        self.optimizer.step()

    def measure_and_step(self, x: Tensor, y: Tensor) -> Sequence[float | int | None]:
        """A reading where one is due, the step, and after the last one the reading at the end."""
        found = self._headed(self.step, self.read(self.step)) if self.due(self.step) else []
        self.take_step(x, y)
        if self.step + 1 == self.total:
            found += self._headed(self.total, self.read(self.total))
        self._found = found
        return ()

    def _headed(self, t: int, found: Rows) -> Rows:
        return [(self.unit.run, self.unit.seed, t, *row) for row in found]

    def lines(self, values: Sequence[float | int | None], val_loss: float | None, val_accuracy: float | None) -> bytes:
        """The readings of this step."""
        self.written += len(self._found)
        return b"".join(map(format_row, self._found))

    def evaluate(self) -> tuple[float, float]:
        """Not asked for by rows of readings."""
        return float("nan"), float("nan")

    @property
    def rows(self) -> int:
        """As many as were written."""
        return self.written

    def check(self, state: Any) -> None:
        """As of every training, and the number of rows."""
        super().check(state)
        count("written", state["written"])


def reference_operator(training: Training, size: int) -> ce.HessianOperator:
    """The Hessian at the parameters now of a batch that is the same at every step: ``size`` training samples.

    Args:
        training: whose seed decides which ones.
        size: how many; at most as many as there are.
    """
    generator = torch.Generator().manual_seed(derive_seed("reference", training.unit.seed))
    samples = len(training.data.y_train)
    index = torch.randperm(samples, generator=generator, device="cpu")[:size].to(training.settings.device)
    d = training.batch_data
    return ce.HessianOperator(training.model, training.loss_fn, d.x_train[index], d.y_train[index])


def refused_reference(size: int, data: Dataset) -> str | None:
    """What is wrong with this ``--reference``, or None."""
    most = len(data.y_train)
    return None if size <= most else f"argument --reference: expected at most {most} samples, got {size}"
