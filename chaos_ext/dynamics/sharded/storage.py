"""Checkpoints of a spread run: a file for each rank, of which one whole set is always there.

The step is part of a file's name. A set is complete once every rank has written its file, and only then are older ones
removed: but for the one before, so that a rank that is killed between two removals leaves a set behind, too.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from ...base.files import read_sealed, write_sealed
from ...distributed.ranks import Ranks
from ...errors import CheckpointError
from ..checkpoint import moment

_log = logging.getLogger("chaos_ext")


class RankFiles:
    """Those of this rank.

    Args:
        ranks: of the group.
        path: what all names begin with; the folder exists.
    """

    def __init__(self, ranks: Ranks, path: Path) -> None:
        self._ranks, self._path = ranks, path

    def write(self, step: int, content: Any, before: int | None) -> None:
        """Every rank's state of this step.

        Args:
            step: which.
            content: the own state.
            before: the step of the last set of this run, which is kept; None: none is.

        Raises:
            OSError: it could not be written here; RankFailedError: elsewhere. Older files are still there.
        """
        with self._ranks.together("save"):
            write_sealed(self._named(step), content)
        for old in self._steps():
            if old not in (step, before):
                self._named(old).unlink(missing_ok=True)

    def read(self) -> tuple[int, Any]:
        """Step and own state of the newest set that is whole.

        Raises:
            FileNotFoundError: there is no file on any rank. CheckpointError: no whole set, or one of another number of
            ranks.
        """
        steps = self._ranks.gather_objects(self._steps(), "the checkpoints of all ranks")
        common = set(steps[0]).intersection(*steps)
        for step in sorted(common, reverse=True):
            content, why = self._try(step)
            said = self._ranks.gather_objects((why, None if content is None else _key(content)), "a checkpoint")
            if all(s == (None, said[0][1]) for s in said):
                return step, content
            _log.warning("%s: the files of step %d are no set (%s); looking for older ones", self._path, step, said)
        if not any(steps) and not any(self._ranks.gather_objects(self._others(), "other checkpoints")):
            raise FileNotFoundError(f"{self._named('N')}: no such file, whatever the step N, on any rank")
        raise CheckpointError(self._refusal(steps))

    def _try(self, step: int) -> tuple[Any, str | None]:
        try:
            return read_sealed(self._named(step)), None
        except (CheckpointError, OSError) as error:
            return None, str(error)

    def _refusal(self, steps: list[list[int]]) -> str:
        others = self._others()
        if others:
            return (
                f"{self._path}: expected the files of {self._ranks.size} ranks, got those of {', '.join(others)}: each "
                "has other columns; resume with as many ranks as saved"
            )
        return f"{self._path}: expected a step of which every rank has a whole file, got steps {steps} by rank"

    def _named(self, step: int | str) -> Path:
        rank, size = self._ranks.rank, self._ranks.size
        return self._path.with_name(f"{self._path.name}.rank{rank}-of-{size}.step{step}")

    def _steps(self) -> list[int]:
        pattern = re.compile(re.escape(self._named("").name) + r"(\d+)")
        found = (pattern.fullmatch(p.name) for p in self._path.parent.iterdir())
        return sorted(int(m[1]) for m in found if m)

    def _others(self) -> list[str]:
        """Numbers of ranks that have left files here, without ours."""
        pattern = re.compile(re.escape(self._path.name) + r"\.rank\d+-of-(\d+)\.step\d+")
        found = {m[1] for p in self._path.parent.iterdir() if (m := pattern.fullmatch(p.name))}
        return sorted(found - {str(self._ranks.size)})


def _key(content: Any) -> Any:
    """What files of one moment have in common."""
    try:
        return moment(content)
    except (TypeError, KeyError, AttributeError):
        return "no state of a LyapunovAnalyzer"
