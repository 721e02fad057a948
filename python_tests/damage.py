"""Damage to files, one kind at a time, the same in every run."""

from __future__ import annotations

import random
from collections.abc import Iterator


def flips_and_cuts(whole: bytes, count: int = 200, seed: int = 0) -> Iterator[bytes]:
    """``count`` copies with one random bit flipped each, a tenth as many cut short somewhere, and nothing at all."""
    chance = random.Random(seed)
    for _ in range(count):
        at = chance.randrange(len(whole))
        yield whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :]
    for _ in range(count // 10):
        yield whole[: chance.randrange(len(whole))]
    yield b""
