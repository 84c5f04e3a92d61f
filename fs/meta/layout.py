"""Which chain holds which chunk of a file (docs/formats.md, "Placement of a file's chunks").

A new file takes the next `stripe` chains of its table, so that files spread evenly over the chains however
large they are; the run is permuted by a seed, so that first chunks do not meet on the same chains.
"""

import random
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Final

from ..config import BOUNDS, MetaConfig
from ..errors import InvalidArgument, Unavailable
from ..ids import ChainId
from ..kv import VALUE_BYTES_MAX
from ..units import KIB, MIB
from ..wire.pb.meta_pb2 import Layout
from ..wire.pb.mgmtd_pb2 import ChainTable

PERMUTATION_VERSION: Final = 1
CHUNK_BYTES_MIN: Final = 64 * KIB  # below, a chunk costs more index than data
CHUNK_BYTES_MAX: Final = 64 * MIB  # core/src/types.rs
STRIPE_MAX: Final = 1024  # chains asked for one file's length
INLINE_BYTES_MAX: Final = 64 * KIB  # a quarter of the store's largest value
CHUNK_COUNT_MAX: Final = 1 << 32  # a chunk's index has 32 bits
_MASK: Final = (1 << 64) - 1
assert BOUNDS[MetaConfig, "chunk_bytes"] == (CHUNK_BYTES_MIN, CHUNK_BYTES_MAX), (
    "a default that callers may ask for"
)
assert BOUNDS[MetaConfig, "stripe"] == (1, STRIPE_MAX), "a default that callers may ask for"
assert BOUNDS[MetaConfig, "inline_bytes"] == (0, INLINE_BYTES_MAX), "a default that callers may ask for"
assert min(CHUNK_BYTES_MIN, VALUE_BYTES_MAX // 4) >= INLINE_BYTES_MAX, (
    "an inline file is stored with its inode"
)


def permute(run: Sequence[int], seed: int) -> tuple[int, ...]:
    """`run` shuffled by Fisher-Yates driven by SplitMix64: permutation version 1, which never changes."""
    shuffled = list(run)
    state = seed
    for last in range(len(shuffled) - 1, 0, -1):
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        other = (mixed ^ (mixed >> 31)) % (last + 1)
        shuffled[last], shuffled[other] = shuffled[other], shuffled[last]
    return tuple(shuffled)


@lru_cache(maxsize=4096)
def _chains(table: tuple[int, ...], *, base: int, stripe: int, seed: int) -> tuple[int, ...]:
    count = min(stripe, len(table))
    return permute([table[(base + place) % len(table)] for place in range(count)], seed)


def chains_of(layout: Layout, table: Sequence[int]) -> tuple[ChainId, ...]:
    """Return the chains of a file in the order of its chunks: chunk i is on element i modulo their number."""
    assert layout.permutation_version == PERMUTATION_VERSION, "validated when the file was made"
    assert table, "a table has chains"
    chains = _chains(tuple(table), base=layout.base, stripe=layout.stripe, seed=layout.seed)
    assert chains, "a stripe has chains"
    return tuple(ChainId(chain) for chain in chains)


def chain_of(layout: Layout, table: Sequence[int], index: int) -> ChainId:
    """Return the chain that holds chunk `index`."""
    chains = chains_of(layout, table)
    return chains[index % len(chains)]


def validate(layout: Layout) -> None:
    """Raises: InvalidArgument, naming the field, if a layout asked for by a caller makes no sense."""
    chunk_bytes = layout.chunk_bytes
    if not CHUNK_BYTES_MIN <= chunk_bytes <= CHUNK_BYTES_MAX or chunk_bytes & (chunk_bytes - 1):
        raise InvalidArgument(
            f"layout.chunk_bytes must be a power of two from {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX}, "
            f"not {chunk_bytes}"
        )
    if not 1 <= layout.stripe <= STRIPE_MAX:
        raise InvalidArgument(f"layout.stripe must be between 1 and {STRIPE_MAX}, not {layout.stripe}")
    if layout.inline_bytes > INLINE_BYTES_MAX:
        raise InvalidArgument(
            f"layout.inline_bytes must be at most {INLINE_BYTES_MAX}, not {layout.inline_bytes}"
        )
    if layout.permutation_version not in (0, PERMUTATION_VERSION):
        raise InvalidArgument(f"layout.permutation_version {layout.permutation_version} is not known")


def length_max(layout: Layout) -> int:
    """Return the longest file with this layout."""
    return min(layout.chunk_bytes * CHUNK_COUNT_MAX, (1 << 63) - 1)


class Placer:
    """Chooses the chains of new files: round robin over each table, from a random start."""

    def __init__(self, config: MetaConfig, *, seed: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311, spreads load, guards nothing
        self._tables: dict[tuple[int, int], tuple[int, ...]] = {}
        self._copies: dict[tuple[int, int], int] = {}
        self._newest: dict[int, int] = {}  # table → version that new files get
        self._next: dict[int, int] = {}
        self._default = 0
        self._template = Layout(
            chunk_bytes=config.chunk_bytes, stripe=config.stripe, inline_bytes=config.inline_bytes
        )

    def set_tables(self, tables: Collection[ChainTable]) -> None:
        """The chain tables as of now, in all their versions; those without chains are of no use."""
        self._tables = {(table.id, table.version): tuple(table.chains) for table in tables if table.chains}
        self._copies = {(table.id, table.version): table.replicas for table in tables}
        self._newest = dict(sorted(self._tables))
        self._default = min(self._newest, default=0)

    @property
    def default(self) -> Layout:
        """The template of new files in a directory that has none; table 0 while no table is known."""
        default = Layout(table=self._default)
        default.MergeFrom(self._template)
        return default

    @property
    def copies(self) -> int:
        """Of every chunk of a new file that asks for no table; 1 while no table is known."""
        return max(1, self._copies.get((self._default, self._newest.get(self._default, 0)), 1))

    def template(self, wanted: Layout | None, inherited: Layout | None) -> Layout:
        """Return the template that new files follow: what the caller wants, or the directory's, or the
        configuration's.

        Fields of `wanted` that are 0, and inline bytes that are unset, are filled from the next one; chains are
        chosen later by `place`. Raises: InvalidArgument, naming the field; Unavailable while no table is known.
        """
        base = self._template if inherited is None else inherited
        if wanted is None:
            return base
        template = Layout(
            table=wanted.table or base.table,
            chunk_bytes=wanted.chunk_bytes or base.chunk_bytes,
            stripe=wanted.stripe or base.stripe,
            inline_bytes=wanted.inline_bytes if wanted.HasField("inline_bytes") else base.inline_bytes,
            permutation_version=wanted.permutation_version,
        )
        validate(template)
        if template.table and template.table not in self._newest:
            raise self._unknown(template.table)
        return template

    def _unknown(self, table: int) -> Unavailable | InvalidArgument:
        if not self._newest:
            return Unavailable("no chain table is known yet")
        known = ", ".join(str(number) for number in self._newest)
        return InvalidArgument(f"layout.table {table} does not exist; the cluster has {known}")

    def place(self, template: Layout) -> Layout:
        """Return a new file's layout. Raises: Unavailable while no chain table is known."""
        number = template.table or self._default
        version = self._newest.get(number)
        if version is None:
            raise Unavailable(
                f"chain table {number} is not known" if number else "no chain table is known yet"
            )
        count = len(self._tables[number, version])
        following = self._next.get(number)
        # The version before may have had more chains.
        base = self._random.randrange(count) if following is None else following % count
        self._next[number] = base + min(template.stripe, count)
        return Layout(
            table=number,
            table_version=version,
            chunk_bytes=template.chunk_bytes,
            stripe=template.stripe,
            permutation_version=PERMUTATION_VERSION,
            seed=self._random.getrandbits(64),
            base=base,
            inline_bytes=template.inline_bytes,
        )

    def knows(self, layout: Layout) -> bool:
        """Return whether the table of a layout exists here, in its version if it names one."""
        if layout.table_version:
            return (layout.table, layout.table_version) in self._tables
        return not layout.table or layout.table in self._newest

    def chains(self, layout: Layout) -> tuple[ChainId, ...]:
        """Return the chains of a file. Raises: Unavailable while its table is not known."""
        table = self._tables.get((layout.table, layout.table_version))
        if table is None:
            raise Unavailable(f"version {layout.table_version} of chain table {layout.table} is not known")
        return chains_of(layout, table)


__all__ = [
    "CHUNK_BYTES_MAX",
    "CHUNK_BYTES_MIN",
    "CHUNK_COUNT_MAX",
    "INLINE_BYTES_MAX",
    "PERMUTATION_VERSION",
    "STRIPE_MAX",
    "Placer",
    "chain_of",
    "chains_of",
    "length_max",
    "permute",
    "validate",
]
