"""A shuffle for records in blocks: each block is needed for a short stretch of an epoch, and not for each of its rows.

Blocks are put in a random order, and the samples of every `mixed` consecutive blocks are shuffled together.
A reader in that order needs `mixed` blocks at a time, and each block once an epoch.

X1  Within one pass every sample comes exactly once (`permute` is a bijection, of blocks and of samples).
X2  The sample at a position depends on sizes of blocks, `mixed`, key and pass alone.
"""

import hashlib
import operator
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .permutation import Indices, permute

MIXED_BLOCKS: Final = 8  # whose samples are shuffled together: as many are kept decoded
PASSES_KEPT: Final = 2  # orders of blocks: that of an epoch, and of the one that begins


class BlockShuffle:
    """The samples of one data set, whose blocks have these sizes.

    Takes 24 bytes a block, and about 9 for each pass that is cached.
    """

    def __init__(self, sizes: npt.ArrayLike, mixed: int, key: bytes) -> None:
        given = np.asarray(sizes, np.int64)
        self._sizes: Indices = given[given > 0]
        self._starts: Indices = np.cumsum(self._sizes) - self._sizes
        self._mixed, self._key = operator.index(mixed), key
        if self._mixed < 1:
            raise ValueError(f"at least one block is shuffled at a time, not {mixed}")
        self._passes: dict[int, tuple[Indices, Indices]] = {}

    def samples(self, positions: Indices, passes: npt.ArrayLike) -> Indices:
        """Compute the samples at positions of passes: one pass for all, or one for each."""
        flat = positions.reshape(-1)
        turns = np.broadcast_to(np.asarray(passes, np.int64), positions.shape).reshape(-1)
        result = np.empty_like(flat)
        for turn in np.unique(turns):
            order, ends = self._pass(int(turn))
            mine = np.flatnonzero(turns == turn)
            stretches = np.searchsorted(ends, flat[mine], side="right")
            for stretch in np.unique(stretches):
                chosen = mine[stretches == stretch]
                start = int(ends[stretch - 1]) if stretch else 0
                result[chosen] = self._within(
                    order, int(stretch), flat[chosen] - start, int(turn) * len(ends)
                )
        return result.reshape(positions.shape)

    def _within(self, order: Indices, stretch: int, places: Indices, turn: int) -> Indices:
        """Compute the samples at places of the blocks that are shuffled together."""
        blocks = order[stretch * self._mixed : (stretch + 1) * self._mixed]
        ends = np.cumsum(self._sizes[blocks])
        within = permute(places, int(ends[-1]), self._key + b" samples", turn + stretch)
        owners = np.searchsorted(ends, within, side="right")
        result: Indices = self._starts[blocks[owners]] + within - (ends - self._sizes[blocks])[owners]
        return result

    def _pass(self, turn: int) -> tuple[Indices, Indices]:
        """Return (blocks in their order, where each stretch of `mixed` blocks ends)."""
        found = self._passes.get(turn)
        if found is None:
            count = len(self._sizes)
            order = permute(np.arange(count), count, self._key + b" blocks", turn)
            lasts = np.minimum(np.arange(self._mixed, count + self._mixed, self._mixed), count) - 1
            while len(self._passes) >= PASSES_KEPT:
                self._passes.pop(next(iter(self._passes)))
            found = self._passes[turn] = (order, np.cumsum(self._sizes[order])[lasts])
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_passes": {}}


def digest(blocks: Sequence[npt.ArrayLike]) -> str:
    """Hash the sizes of blocks of data sets."""
    found = hashlib.sha256()
    for each in blocks:
        sizes = np.asarray(each, "<i8")
        found.update(len(sizes).to_bytes(8, "little") + sizes.tobytes())
    return found.hexdigest()[:32]


__all__ = ["MIXED_BLOCKS", "BlockShuffle", "digest"]
