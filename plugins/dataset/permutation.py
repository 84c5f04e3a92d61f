"""A permutation of any size in constant memory, with random access.

N1  `permute` is a bijection of 0 … size-1 for every size, key and turn.
N2  Its results depend on these alone. They are part of saved states: golden tests hold them (`shuffle`, O4).

A generalized Feistel cipher with cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): a
number below a·b is split into two digits, each round adds to one digit, modulo its base, a keyed hash of the other;
what falls outside the size is sent through again. The hash is the finalizer of SplitMix64.
"""

import hashlib
import math
from typing import Final

import numpy as np
import numpy.typing as npt

ROUNDS: Final = 8  # four for each digit
SMALL: Final = (
    1 << 16
)  # sizes up to this take twice the rounds: of five samples, eight leave some orders too rare
SIZE_MAX: Final = 1 << 53  # positions are exact in every language that may read a state

Indices = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]


def permute(values: npt.ArrayLike, size: int, key: bytes, turns: npt.ArrayLike = 0) -> Indices:
    """Map each of `values` (below `size`) by the permutation of 0 … size-1 that `key` and its turn name.

    `turns`: one number for all, or one for each value. Raises: ValueError for a size that is not 1 … 2**53, IndexError
    for a value that is not below it.
    """
    if not 1 <= size <= SIZE_MAX:
        raise ValueError(f"a permutation has 1 to 2**53 places, not {size}")
    given = np.asarray(values, np.int64)
    if given.size and not 0 <= int(given.min()) <= int(given.max()) < size:
        raise IndexError(f"positions are 0 to {size - 1}, not {int(given.min())} to {int(given.max())}")
    first = math.isqrt(size - 1) + 1
    bases = (np.uint64(first), np.uint64(-(-size // first)))
    keys = _round_keys(key, ROUNDS if size > SMALL else 2 * ROUNDS, turns)
    result = _rounds(given.reshape(-1).astype(np.uint64), bases, keys)
    outside = np.flatnonzero(result >= size)
    while outside.size:  # a·b is below size + 2·sqrt(size), so few walk, and few steps
        own_keys = keys if keys.shape[1] == 1 else keys[:, outside]
        result[outside] = _rounds(result[outside], bases, own_keys)
        outside = outside[result[outside] >= size]
    return result.astype(np.int64).reshape(given.shape)


def _round_keys(key: bytes, rounds: int, turns: npt.ArrayLike) -> _Words:
    """Derive the keys: one row a round; one column for all values, or one for each."""
    words = np.frombuffer(hashlib.shake_256(b"luciola order " + key).digest(8 * rounds), "<u8")
    numbers = np.asarray(turns, np.int64).reshape(1, -1).astype(np.uint64)
    return _hash(words[:, np.newaxis] + _hash(numbers))


def _rounds(values: _Words, bases: tuple[np.uint64, np.uint64], keys: _Words) -> _Words:
    low_base, high_base = bases
    low, high = values % low_base, values // low_base
    for turn in range(0, len(keys), 2):
        low = (low + _hash(high ^ keys[turn]) % low_base) % low_base
        high = (high + _hash(low ^ keys[turn + 1]) % high_base) % high_base
    return high * low_base + low


def _hash(words: _Words) -> _Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


__all__ = ["SIZE_MAX", "Indices", "permute"]
