"""Inputs that once reached something new, or broke something, and copies of them with changed bytes."""

import random
from pathlib import Path

import pytest

from .targets import TARGETS

SEEDS = Path(__file__).parent / "seeds"
COPIES = 4


def changed(seed: bytes, dice: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(3 if data else 0):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_no_seed_breaks_a_parser(name):
    seeds = sorted((SEEDS / name).iterdir())
    assert len(seeds) > 3
    dice = random.Random(1)
    for path in seeds:
        seed = path.read_bytes()
        for data in (seed, *(changed(seed, dice) for _ in range(COPIES))):
            try:
                TARGETS[name](data)
            except Exception as error:
                raise AssertionError(f"{path.name}, as {data!r:.300}") from error
