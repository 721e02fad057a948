"""The folder an experiment writes to: who may write there, and what is in it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..base.files import TEMPORARY_PREFIX, atomic_write
from .settings import Settings, Unit

MANIFEST = "manifest.json"
METRICS = "metrics.csv"
PARTS = "parts"


class UsageError(Exception):
    """The command cannot start as it was given; the message is one line for the user, the exit status 2."""


class WorkerError(RuntimeError):
    """A worker process died or raised; finished work is kept."""


class OutputFolder:
    """``--out`` of an experiment.

    Attributes:
        path: the folder.
        parts: folder with the rows and checkpoint of each unit, until all are done.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts = path / PARTS

    def rows(self, unit: Unit) -> Path:
        """Where the rows of a unit are until all units are done."""
        return self.parts / f"{unit.name}.csv"

    def checkpoint(self, unit: Unit) -> Path:
        """Where its checkpoint is."""
        return self.parts / f"{unit.name}.ckpt"

    @contextlib.contextmanager
    def claimed(self, resume: bool) -> Iterator[None]:
        """Makes the folder, refuses it if it is in use or not ours to write to, and holds it for this process.

        Raises:
            UsageError: it cannot be written, another process works on it, or it holds files and ``resume`` is False.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise UsageError(f"--out {self.path} cannot be written: {error.strerror or error}") from error
        try:
            _lock(handle, self.path)
            self._remove_temporaries()
            if not resume and any(self.path.iterdir()):
                raise UsageError(f"--out {self.path} is not empty; give --resume to continue its run, or another --out")
            yield
        finally:
            os.close(handle)

    def _remove_temporaries(self) -> None:
        """Removes what a killed process had not yet renamed into place; fails where the folder cannot be written."""
        try:
            for folder in (self.path, self.parts):
                for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
                    path.unlink()
            probe = self.path / f"{TEMPORARY_PREFIX}probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsageError(f"--out {self.path} cannot be written: {error.strerror or error}") from error

    def begin(self, experiment: str, settings: Settings) -> dict[str, Any]:
        """The manifest of the run in this folder; a new one in an empty folder.

        Raises:
            UsageError: the folder holds another experiment, other settings, or no experiment at all.
        """
        if not any(self.path.iterdir()):
            self.write_manifest({"experiment": experiment, "status": "running", "settings": settings.to_json()})
        try:
            manifest: dict[str, Any] = json.loads((self.path / MANIFEST).read_text())
            stored, found = manifest["settings"], manifest["experiment"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"--out {self.path} holds no run to resume: no readable {MANIFEST}; give another"
            ) from error
        if found != experiment:
            raise UsageError(f"--out {self.path} holds a run of {found}, not of {experiment}; give another --out")
        if differences := settings.differences(stored):
            raise UsageError(f"--out {self.path} holds other settings ({'; '.join(differences)}); give another --out")
        self.parts.mkdir(exist_ok=True)
        return manifest

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replaces manifest.json, all of it or not at all."""
        atomic_write(self.path / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _lock(handle: int, path: Path) -> None:
    """Holds the folder while the process lives; the system lets go of it however the process ends."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"--out {path} is in use by another process; wait for it, or give another --out") from error
    except OSError:  # a file system without locks
        pass
