"""The folder an experiment writes to: who may write there, and what is in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..base.files import TEMPORARY_PREFIX, atomic_write
from .settings import Recorded, Unit

log = logging.getLogger("chaos_ext")

MANIFEST = "manifest.json"
METRICS, SUMMARY = "metrics.csv", "summary.csv"
PARTS = "parts"
_DIGEST = "sha256"  # of the rest of the manifest


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
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise UsageError(f"--out {self.path} cannot be written: {error.strerror or error}") from error

    def begin(self, experiment: str, settings: Recorded) -> dict[str, Any]:
        """The manifest of the run in this folder; a new one in an empty folder.

        Where a table of a finished run is missing, or not the one that was written, the status is "running" again.

        Raises:
            UsageError: the folder holds another experiment, other settings, or no experiment at all.
        """
        if not any(self.path.iterdir()):
            self.write_manifest({"experiment": experiment, "status": "running", "settings": settings.to_json()})
        manifest = self._read_manifest()
        stored, found = manifest["settings"], manifest["experiment"]
        if found != experiment:
            raise UsageError(f"--out {self.path} holds a run of {found}, not of {experiment}; give another --out")
        if differences := settings.differences(stored):
            raise UsageError(f"--out {self.path} holds other settings ({'; '.join(differences)}); give another --out")
        self.parts.mkdir(exist_ok=True)
        tables = self._tables()
        damaged = [name for name, sha in manifest.get("tables", {}).items() if tables.get(name) != sha]
        if damaged:
            text = "%s is missing, or not the one that was written; it is computed anew"
            log.warning(text, ", ".join(str(self.path / name) for name in damaged))
            return {**manifest, "status": "running"}
        return manifest

    def _tables(self) -> dict[str, str]:
        """SHA-256 of every table that does not follow from another one."""
        paths = sorted(p for p in self.path.glob("*.csv") if p.name != SUMMARY)
        return {p.name: sha256(p) for p in paths}

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replaces manifest.json, whole or not at all; hashes of the tables and of the rest are its last entries."""
        if manifest["status"] != "running":
            manifest = {**manifest, "tables": self._tables()}
        atomic_write(self.path / MANIFEST, json.dumps({**manifest, _DIGEST: digest(manifest)}, indent=1) + "\n")

    def _read_manifest(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        try:
            manifest = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(
                f"--out {self.path} holds no run to resume: no readable {MANIFEST}; give another"
            ) from error
        whole = isinstance(manifest, dict) and manifest.pop(_DIGEST, None) == digest(manifest)
        needed = {"settings": dict, "experiment": str, "status": str}
        if not whole or not all(isinstance(manifest.get(name), kind) for name, kind in needed.items()):
            raise UsageError(
                f"--out {self.path} holds no run to resume: its {MANIFEST} is damaged, edited, or of an older version; "
                "give another"
            )
        own: dict[str, Any] = manifest
        return own


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    sha = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(1 << 20):
            sha.update(piece)
    return sha.hexdigest()


def digest(manifest: dict[str, Any]) -> str:
    """Of the values, however they are laid out in the file."""
    plain = {name: value for name, value in manifest.items() if name != _DIGEST}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


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
