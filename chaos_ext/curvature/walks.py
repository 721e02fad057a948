"""Walks through the batches of a data set: each is checked, and recognised in every later walk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..base.batch import Mark, fingerprint
from ..base.randomness import same_random_state
from ..errors import ChaosExtError, StaleOperatorError

Visit = Callable[[int, Any, Any], None]


class Walks:
    """Batches that can be walked again.

    After each walk the global random states, and the generators of a DataLoader, are what they were.

    Args:
        batches: an iterable of pairs (x, y), and no iterator.
        device: of the parameters.

    Attributes:
        count: how many batches there are; 0 before the first walk.

    Raises:
        TypeError: it is none.
    """

    def __init__(self, batches: Iterable[Any], device: torch.device) -> None:
        if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes, dict)):
            raise TypeError(f"batches: expected an iterable of (x, y), got {type(batches).__name__}")
        if hasattr(batches, "__next__"):
            kind = type(batches).__name__
            raise TypeError(
                f"batches: expected an iterable that can be walked again, got a {kind}, which one walk uses up; "
                "pass a DataLoader, a list of (x, y), or an object whose __iter__ starts anew"
            )
        self._batches, self._device, self._marks = batches, device, list[tuple[object, ...]]()

    @property
    def count(self) -> int:
        return len(self._marks)

    def first(self, visit: Visit, may_be_empty: bool = False) -> None:
        """Visits every batch, walks once more to see whether the same batches come again, and remembers them.

        The second walk starts from another random state, if the first has drawn anything: what is shuffled shows.

        Args:
            visit: gets each.
            may_be_empty: whether there may be none.

        Raises:
            ValueError: no batch; another one in the second walk. TypeError: a batch that is no (x, y), or whose dtypes
                or devices are not those of the first.
        """
        marks: list[tuple[object, ...]] = []

        def remember(i: int, x: Any, y: Any) -> None:
            mark = _marked(i, x, y)
            _require_alike(i, mark, marks[0] if marks else mark)
            marks.append(mark)
            visit(i, x, y)

        same = same_random_state(self._device, _generators(self._batches))
        with same, same:
            self._walk(remember)
            if not marks and not may_be_empty:
                raise ValueError("batches: expected at least one batch, got an empty iterable")
            changed = self._compare(marks, lambda i, x, y: None)
        if changed:
            raise ValueError(
                f"batches: {changed} in a second walk, so that there is no one loss: are they shuffled, augmented at "
                "random, or used up by the first walk? pass shuffle=False, or list(batches)"
            )
        self._marks = marks

    def again(self, visit: Visit) -> None:
        """Visits every batch.

        Raises:
            StaleOperatorError: another batch than before.
        """
        same = same_random_state(self._device, _generators(self._batches))
        with same, same:
            changed = self._compare(self._marks, visit)
        if changed:
            raise StaleOperatorError(f"batches: {changed} after the operator was made; make a new DatasetHessian")

    def _walk(self, visit: Visit) -> int:
        """How many batches it has visited."""
        count = 0
        for batch in self._batches:
            visit(count, *_pair(count, batch))
            count += 1
        return count

    def _compare(self, marks: list[tuple[object, ...]], visit: Visit) -> str:
        """Visits batches up to the first that is not the one expected; says what changed, or ""."""

        def compare(i: int, x: Any, y: Any) -> None:
            if i >= len(marks) or _marked(i, x, y) != marks[i]:
                raise _Changed(f"batch {i} was another one" if i < len(marks) else f"there was a batch {i}")
            visit(i, x, y)

        try:
            count = self._walk(compare)
        except _Changed as e:
            return str(e)
        return f"batch {count} was missing ({count} batches instead of {len(marks)})" if count < len(marks) else ""


class _Changed(Exception):  # noqa: N818 - never seen by users
    """Ends a walk."""


def _pair(i: int, batch: object) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        length = f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise TypeError(
            f"batches: expected pairs (x, y), got a {type(batch).__name__}{length} as batch {i}; a model of several "
            "inputs takes them as one x"
        )
    return batch[0], batch[1]


def _marked(i: int, x: object, y: object) -> tuple[object, ...]:
    return of_batch(i, lambda: fingerprint(x, y))


def _require_alike(i: int, mark: tuple[object, ...], first: tuple[object, ...]) -> None:
    kinds, expected = ([(m.dtype, m.device) for m in marks if isinstance(m, Mark)] for marks in (mark, first))
    if kinds != expected:
        raise TypeError(
            f"batches: expected tensors of the dtypes and on the devices of batch 0, {_shown(expected)}, got "
            f"{_shown(kinds)} in batch {i}"
        )


def _shown(kinds: list[tuple[torch.dtype, torch.device]]) -> str:
    return ", ".join(f"{dtype} on {device}" for dtype, device in kinds) or "no tensor"


def _generators(batches: object) -> list[torch.Generator]:
    """Those that a DataLoader draws from."""
    if not isinstance(batches, DataLoader):
        return []
    inner = getattr(batches.batch_sampler, "sampler", None)
    held = [getattr(o, "generator", None) for o in (batches, batches.sampler, batches.batch_sampler, inner)]
    return list({id(g): g for g in held if isinstance(g, torch.Generator)}.values())


def of_batch(i: int, run: Callable[[], Any]) -> Any:
    """``run()``; what it refuses says of which batch."""
    try:
        return run()
    except (ChaosExtError, ValueError, TypeError) as e:
        kind = type(e) if isinstance(e, ChaosExtError) else TypeError if isinstance(e, TypeError) else ValueError
        raise kind(f"batch {i}: {e}") from e
