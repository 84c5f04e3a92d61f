"""From boxes of tensors to blocks of bytes: what to read, in which pieces. Numbers only, no torch and no I/O.

A box of a row-major tensor is described by its dimensions (size, stride in the file, stride in the target), counted in
elements. Dimensions that are contiguous on both sides are joined, so whole tensors and row shards become one run.
What is left is cut into blocks of at most BLOCK_BYTES:

    a run          contiguous on both sides: may be read straight into the target
    a strided one  gaps of at most GAP_BYTES between its rows: read with the gaps, and copied out of a staging buffer

Blocks may be `aligned`: then strided ones too lie between two multiples of BLOCK_BYTES from the tensor's start, so that
each is part of one block that has a checksum.

A column shard whose gaps are larger becomes one run a row: only needed bytes are read. Gaps up to GAP_BYTES are read,
because a storage node reads and verifies whole pages of that size anyhow, and a larger read costs less than two.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

# Of one read, and of one checksum: large enough to hide its costs, 64 of them fit anywhere.
BLOCK_BYTES: Final = 1 << 20
GAP_BYTES: Final = 16 << 10  # a page of the chunk engine


class Dimension(NamedTuple):
    """One dimension of a box; strides in elements."""

    size: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Block:
    """Part of a box: offsets in elements from its tensor's start and its target's start."""

    source: int
    target: int
    dimensions: tuple[Dimension, ...]  # none for a single element

    @property
    def span(self) -> int:
        """Elements of the file from its first to its last."""
        return span(self.dimensions)

    @property
    def is_run(self) -> bool:
        """Contiguous on both sides."""
        return not self.dimensions or (len(self.dimensions) == 1 and self.dimensions[0][1:] == (1, 1))


def span(dimensions: Sequence[Dimension]) -> int:
    """Elements of the file from the first to the last of a box that is not empty."""
    return 1 + sum((size - 1) * source for size, source, _ in dimensions)


def joined(dimensions: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """The same box in as few dimensions as possible."""
    result: list[Dimension] = []
    for dimension in reversed(dimensions):
        if dimension.size == 1:
            continue
        if result:
            size, source, target = result[-1]
            if (dimension.source, dimension.target) == (size * source, size * target):
                result[-1] = Dimension(size * dimension.size, source, target)
                continue
        result.append(dimension)
    return tuple(reversed(result))


def blocks(
    dimensions: Sequence[Dimension],
    start: int,
    item_bytes: int,
    *,
    gap_bytes: int = GAP_BYTES,
    aligned: bool = False,
) -> Iterator[Block]:
    """The box that starts at element `start` of its tensor, in blocks, in the order of the file.

    Cuts of a run lie at multiples of BLOCK_BYTES from the tensor's start, where checksums begin; all cuts if `aligned`.
    """
    if any(dimension.size == 0 for dimension in dimensions):
        return
    limits = _Limits(BLOCK_BYTES // item_bytes, gap_bytes // item_bytes, aligned=aligned)
    yield from _cut(joined(dimensions), start, 0, limits)


class _Limits(NamedTuple):
    """In elements."""

    block: int
    gap: int
    aligned: bool

    def room(self, source: int) -> int:
        """The most that a strided block that begins there may span."""
        return self.block - source % self.block if self.aligned else self.block


def _cut(dimensions: tuple[Dimension, ...], source: int, target: int, limits: _Limits) -> Iterator[Block]:
    if not dimensions or (
        _is_dense(dimensions, limits)
        and span(dimensions) <= limits.block
        and not _is_cut(dimensions, source, limits)
    ):
        yield Block(source, target, dimensions)
        return
    first, rest = dimensions[0], dimensions[1:]
    if not rest and first.source == 1:
        yield from _cut_run(first, source, target, limits)
        return
    is_dense = _is_dense(dimensions, limits)
    index = 0
    while index < first.size:
        at = source + index * first.source
        room = limits.room(at)
        count = 1
        if is_dense and span(rest) <= room:
            count = min((room - span(rest)) // first.source + 1, first.size - index)
        part = (first._replace(size=count), *rest) if count > 1 else rest
        yield from _cut(part, at, target + index * first.target, limits)
        index += count


def _is_dense(dimensions: tuple[Dimension, ...], limits: _Limits) -> bool:
    """No gap is larger than allowed."""
    return all(
        dimension.source - span(dimensions[index + 1 :]) <= limits.gap
        for index, dimension in enumerate(dimensions)
    )


def _is_cut(dimensions: tuple[Dimension, ...], source: int, limits: _Limits) -> bool:
    """Return whether it is a run, or one of those that must be aligned, that crosses a multiple of the block."""
    is_run = len(dimensions) == 1 and dimensions[0].source == 1
    return (is_run or limits.aligned) and (
        source // limits.block != (source + span(dimensions) - 1) // limits.block
    )


def _cut_run(run: Dimension, source: int, target: int, limits: _Limits) -> Iterator[Block]:
    done = 0
    while done < run.size:
        count = min(run.size - done, limits.block - (source + done) % limits.block)
        yield Block(
            source + done, target + done * run.target, (run._replace(size=count),) if count > 1 else ()
        )
        done += count


__all__ = ["BLOCK_BYTES", "GAP_BYTES", "Block", "Dimension", "blocks", "joined", "span"]
