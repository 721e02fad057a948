"""How the ranks of a group come together: all are at the same call, or all raise."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ..errors import ChaosExtError, RankFailedError, RanksDisagreeError
from .groups import require_group
from .line import Line, line_of
from .said import failed, misplaced
from .shapes import LENGTH

_T = TypeVar("_T")


class Meetings:
    """What ``Ranks`` is built on; arguments and errors as there."""

    def __init__(self, group: Any, *, timeout: float) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < 1e8:
            raise ValueError(f"timeout: expected a number of seconds > 0, got {timeout!r}")
        self.group, self.timeout = require_group(group), float(timeout)
        self._line: Line = line_of(self.group)
        self.rank, self.size = self._line.rank, self._line.size
        self._whose = ""

    @contextlib.contextmanager
    def together(self, what: str, *, meets: bool = False) -> Iterator[None]:
        """A ``with`` block that all ranks leave in the same way: where one raises, all do.

        The rank itself raises its own error. Inside, collectives may be called; one that waits there while another rank
        raises is told so.

        Args:
            what: what is done there, for messages.
            meets: the last that is done there is a collective, after which all ranks do the same: they need not meet
                once more at its end.

        Raises:
            RankFailedError: another rank has raised.
        """
        self._line.depth += 1
        try:
            yield
        except Exception as e:
            self._tell(e, what)
            raise
        except BaseException as e:
            self._line.leave(f"rank {self.rank} was interrupted in {what} ({type(e).__name__})")
            raise
        else:
            if not meets:
                with self._meeting(what, "end"):
                    pass
        finally:
            self._line.depth -= 1
            if not self._line.depth:
                self._line.announced = None

    def _or_all_raise(self, make: Callable[[], _T], what: str) -> _T:
        """``make()``; what it raises, the others, who are about to meet, are told."""
        try:
            return make()
        except Exception as e:
            self._tell(e, what)
            raise

    def _tell(self, e: Exception, what: str) -> None:
        """Tells the others that this rank has raised, at the meeting to which they come next."""
        line, cause = self._line, e
        while cause is not None and cause is not line.announced:
            cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
        if cause is None and not line.broken:
            with contextlib.suppress(ChaosExtError), self._meeting(what, "end", error=e):
                pass
            self._keep(e)

    def _announce(self, e: ChaosExtError) -> None:
        """Raises what all ranks raise."""
        self._keep(e)
        raise e

    def _keep(self, e: Exception) -> None:
        if self._line.depth:
            self._line.announced = e

    @contextlib.contextmanager
    def _meeting(
        self, what: str, kind: str, signature: str = "", aux: list[int] | None = None, error: Exception | None = None
    ) -> Iterator[list[list[int]]]:
        """The ranks see that all are at the same call, and what the others add; then they move their data.

        Args:
            what, kind, signature: in words; they have to be the same.
            aux: a few numbers of this rank.
            error: instead of a call.
        """
        line, said = self._line, " ".join(filter(None, (kind, f"({what})", self._whose, signature)))
        line.begin(self.group, what)
        own = [error is not None, line.number, zlib.crc32(said.encode()), *(aux or [])]
        rows = line.numbers(self.group, [*map(int, own), *([0] * (3 + LENGTH - len(own)))], what, self.timeout)
        if any(row[0] for row in rows):
            text = "" if error is None else f"{type(error).__name__}: {error}"
            texts = line.texts(self.group, text, what, self.timeout)
            raised = [r for r, row in enumerate(rows) if row[0]]
            self._announce(RankFailedError(failed(what, raised, texts), tuple(raised)))
        if any(row[1:3] != rows[0][1:3] for row in rows):
            self._announce(RanksDisagreeError(misplaced(line.texts(self.group, said, what, self.timeout))))
        try:
            yield [row[3:] for row in rows]
        except RankFailedError:
            raise
        except BaseException as e:  # the others wait for this rank's data
            line.leave(f"rank {self.rank} raised in {what} ({type(e).__name__}: {e})")
            raise
