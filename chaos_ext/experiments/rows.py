"""Rows of metrics: their columns, their text, and a file of them that can be cut back to a known state."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..base.contents import count, parts, refusing
from ..errors import CheckpointError

# A row of a training describes theta(t), before step t, on the mini-batch of step t; val_* are the exception.
TRAINING = {
    "run": "what is done in training, as the study names it",
    "seed": "decides initialisation and batches",
    "step": "t, from 0",
    "loss": "loss of the mini-batch at theta(t)",
    "accuracy": "share of the mini-batch that is classified correctly at theta(t)",
    "val_loss": "mean loss over the test split at theta(t+1), at the end of an epoch or of the run; else empty",
    "val_accuracy": "accuracy over the test split, where val_loss is given",
}
# What a row may have of the mini-batch Hessian.
SPECTRAL = {
    "n_negative": "eigenvalues of the mini-batch Hessian at theta(t) below -zero_tolerance max|lambda|",
    "n_zero": "eigenvalues within zero_tolerance max|lambda| of 0",
    "n_positive": "eigenvalues above zero_tolerance max|lambda|",
    "n_chaotic": "eigenvalues with local Lyapunov exponent above 0: negative ones and those above 2/lr",
    "lambda_min": "smallest eigenvalue",
    "lambda_max": "largest eigenvalue",
    "share_negative": "share of the squared gradient norm in the span of the negative eigenvectors",
    "share_zero": "the same for the zero eigenvectors",
    "share_positive": "the same for the positive eigenvectors",
    "share_chaotic": "the same for the chaotic eigenvectors",
}


def header(columns: Iterable[str]) -> bytes:
    """The first line of a CSV file with these columns."""
    return ",".join(columns).encode() + b"\n"


def format_row(values: Sequence[Any]) -> bytes:
    """One CSV line; None is empty, a float the shortest text that reads back as the same float64."""
    texts = ("" if v is None else repr(v) if isinstance(v, float) else str(v) for v in values)
    return ",".join(texts).encode() + b"\n"


def roll(hashes: Iterable[str]) -> str:
    """One hash of a sequence of hashes."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


class RowFile:
    """Rows of one unit, appended, with the length and SHA-256 of what was written so far.

    Only one process at a time holds it open: a worker that outlives its killed parent for a moment must have let go
    before the next process cuts the file back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        wait_for_lock(self._file.fileno())
        self._length, self._sha = 0, hashlib.sha256()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def append(self, row: bytes) -> None:
        """Adds one line or several; they are safe from a kill after ``flush`` only."""
        self._file.write(row)
        self._sha.update(row)
        self._length += len(row)

    def flush(self) -> None:
        """Forces the rows to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def mark(self) -> dict[str, Any]:
        """What ``cut_back`` returns to."""
        return {"length": self._length, "sha256": self._sha.hexdigest()}

    def clear(self) -> None:
        """Drops every row."""
        self.cut_back({"length": 0, "sha256": hashlib.sha256().hexdigest()})

    def cut_back(self, mark: Any) -> int:
        """Drops everything after the mark; returns the number of lines that are left.

        Raises:
            CheckpointError: the rows before the mark are not those that it was made of.
        """
        with refusing(str(self.path)):
            count("length", parts(mark, ("length", "sha256"))["length"])
        self._file.seek(0)
        kept = self._file.read(mark["length"])
        sha = hashlib.sha256(kept)
        if sha.hexdigest() != mark["sha256"]:
            raise CheckpointError(f"{self.path}: its rows are not those that its checkpoint was made with")
        self._file.truncate(len(kept))
        self._file.seek(len(kept))
        self._length, self._sha = len(kept), sha
        return kept.count(b"\n")


def wait_for_lock(handle: int) -> None:
    """Until no other process holds this file; the system lets go of it when it is closed."""
    with contextlib.suppress(ImportError, OSError):  # systems and file systems without locks
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)
