"""Batches of samples: of records that are read as they are, and of rows whose blocks are read (`blocks`).

    reader = SampleReader(parts)
    reading = reader.start(places)                          # places in the numbering of all parts
    batch = reader.finish(reading)                          # the memory of plain records, and of blocks
    samples = reader.samples(reading, batch)

M1  A block is read once for the batches that are in flight together: the first reads it, the others find it cached.
M2  Of one batch, blocks of WAVE_BYTES are read at a time; of those beyond, only the rows that are asked for are kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .blocks import BlockRecords, Run
from .pool import POOL_BYTES
from .reader import Batch, BatchReader, Pending
from .records import Bytes, Integers, Numbering, Records, Shares

WAVE_BYTES: Final = 256 << 20  # stored bytes of blocks that one batch reads together


@dataclass(eq=False)
class Reading:
    """A batch in flight."""

    pending: Pending
    places: Integers
    plain: Integers
    """Places in the batch of the plain records, which are the first that `pending` reads."""
    blocks: dict[tuple[int, int], range] = field(default_factory=dict)
    """(part, block), and which of the records that `pending` reads are its runs."""
    shares: Shares | None = None
    """Of `places`, where that was found already."""


class SampleReader:
    """Reads samples of several data sets, which are numbered one after the other. Belongs to one process."""

    def __init__(
        self,
        parts: list[Records],
        *,
        check: bool = True,
        pin: Callable[[Bytes], None] | None = None,
        pool_bytes: int = POOL_BYTES,
    ) -> None:
        self.parts = parts
        stored = [part.stored for part in parts]
        self.stored = BatchReader(stored, check=check, pin=pin, pool_bytes=pool_bytes)
        self._has_blocks = any(isinstance(part, BlockRecords) for part in parts)
        self._numbering = Numbering.of("samples", map(len, parts))
        self._firsts = Numbering.of("stored records", map(len, stored)).starts
        self._in_flight: set[tuple[int, int]] = set()
        self._damaged: set[tuple[int, int]] = set()

    def shares(self, places: Integers) -> Shares:
        """Find the data sets that these places are in. Raises: IndexError."""
        return self._numbering.shares(places)

    def record_at(self, place: int) -> tuple[Records, int]:
        """Find (data set, number in it) of one sample. Raises: IndexError."""
        part, number = self._numbering.split_one(place)
        return self.parts[part], number

    def start(self, places: Integers) -> Reading:
        """Submit the reads of a batch. Raises: IndexError; what opening a file raises."""
        if not self._has_blocks:
            return Reading(self.stored.start(places), places, np.arange(len(places)))
        shares = self.shares(places)
        stored = np.full(len(places), -1)
        for part, mine, numbers in shares:
            if not isinstance(self.parts[part], BlockRecords):
                stored[mine] = self._firsts[part] + numbers
        plain = np.flatnonzero(stored >= 0)
        wanted = stored[plain].tolist()
        blocks: dict[tuple[int, int], range] = {}
        room = WAVE_BYTES
        for key in self._blocks_of(shares):
            records = self._blocked(key[0])
            if key in self._in_flight or key[1] in records.cache:
                continue
            size = records.block_bytes(key[1])
            if blocks and size > room:
                break
            room -= size
            runs = records.runs_of(key[1])
            blocks[key] = range(len(wanted), len(wanted) + len(runs))
            wanted += [int(self._firsts[key[0]]) + run for run in runs]
        reading = Reading(self.stored.start(wanted), places, plain, blocks, shares)
        self._in_flight.update(blocks)
        return reading

    def _blocks_of(self, shares: Shares) -> list[tuple[int, int]]:
        """List (part, block) of rows, those of a part in the order in which they are first asked for."""
        found: list[tuple[int, int]] = []
        for part, _, numbers in shares:
            records = self.parts[part]
            if isinstance(records, BlockRecords) and records.names:
                blocks, _ = records.block_of(numbers)
                found += [(part, block) for block in dict.fromkeys(blocks.tolist())]
        return found

    def _blocked(self, part: int) -> BlockRecords:
        records = self.parts[part]
        assert isinstance(records, BlockRecords), "the others have no blocks"
        return records

    def finish(self, reading: Reading) -> Batch:
        """Wait for a batch. Raises: OSError; CorruptData, which names file and record."""
        try:
            return self.stored.finish(reading.pending, samples=len(reading.places))
        finally:
            self._in_flight.difference_update(reading.blocks)

    def cancel(self, reading: Reading) -> None:
        """Drop a batch that is not going to be finished."""
        self._in_flight.difference_update(reading.blocks)
        self.stored.cancel(reading.pending)

    def samples(self, reading: Reading, batch: Batch) -> list[Any]:
        """Make the samples, as the formats do. Raises: OSError; CorruptData."""
        arrays = batch.arrays()
        result: list[Any] = [None] * len(reading.places)
        array_of = dict(zip(reading.plain.tolist(), arrays, strict=False))
        for part, places, numbers in reading.shares or self.shares(reading.places):
            records = self.parts[part]
            if isinstance(records, BlockRecords):
                made = self._rows(part, numbers, reading, arrays)
            else:
                made = records.samples(numbers, [array_of[place] for place in places.tolist()])
            for place, sample in zip(places.tolist(), made, strict=True):
                result[place] = sample
        return result

    def _rows(self, part: int, numbers: Integers, reading: Reading, arrays: list[Bytes]) -> list[Any]:
        records = self._blocked(part)
        if not records.names:
            return [{} for _ in numbers]
        result: list[Any] = [None] * len(numbers)
        blocks, rows = records.block_of(numbers)
        for block in dict.fromkeys(blocks.tolist()):
            own = reading.blocks.get((part, block))
            table = records.decoded(block, partial(self._runs, part, block, own, arrays))
            mine = np.flatnonzero(blocks == block)
            for place, sample in zip(mine.tolist(), records.rows(block, table, rows[mine]), strict=True):
                result[place] = sample
        return result

    def _runs(self, part: int, block: int, own: range | None, arrays: list[Bytes]) -> list[Run]:
        """Return the bytes of a block: those that this batch has read, or read now."""
        records = self._blocked(part)
        numbers = np.array(records.runs_of(block), np.int64)
        offsets = records.stored.locate(numbers).offsets.tolist()
        if own is None:
            arrays = self.stored.read(self._firsts[part] + numbers).arrays()
            own = range(len(arrays))
        return [Run(offset, arrays[place]) for offset, place in zip(offsets, own, strict=True)]

    # ---- blocks that are damaged

    def is_damaged(self, places: Integers) -> npt.NDArray[np.bool_]:
        """Mark the samples in blocks that were found damaged."""
        found = np.zeros(len(places), bool)
        if self._damaged:
            for part, mine, numbers in self.shares(places):
                damaged = [block for owner, block in self._damaged if owner == part]
                if damaged:
                    found[mine] = np.isin(self._blocked(part).block_of(numbers)[0], damaged)
        return found

    def note_damage(self, place: int) -> None:
        """Remember that the block of a sample is damaged: it is not read again, where bad records are skipped."""
        part, number = self._numbering.split_one(place)
        records = self.parts[part]
        if isinstance(records, BlockRecords):
            self._damaged.add((part, int(records.block_of(np.array([number]))[0][0])))

    def verify(self, part: int, block: int) -> None:
        """Read and decode a whole block. Raises: OSError; CorruptData."""
        records = self._blocked(part)
        with records.decoding(block):
            records.decode(block, self._runs(part, block, None, [])).validate(full=True)

    def close(self) -> None:
        """Wait for the reads in flight, and close the files."""
        self.stored.close()


__all__ = ["Reading", "SampleReader"]
