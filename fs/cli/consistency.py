"""What `luciola fsck` checks, as pure functions over what was collected.

names      every entry leads to an inode, every inode has an entry, link counts and parents agree
placement  every chunk belongs to a file (or to one that waits for collection), lies on its chain, inside its length
replicas   the serving replicas of a chain hold the same chunks: version, length, checksum, nothing pending
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ..ids import ROOT_INODE
from ..wire.pb import meta_pb2, storage_pb2

ChunkName: TypeAlias = tuple[int, int]  # content, index
Chunks: TypeAlias = Mapping[ChunkName, storage_pb2.ChunkRecord]
# Chain on which a chunk of that layout with that index lies; None if routing does not know the layout's table.
Locate: TypeAlias = Callable[[meta_pb2.Layout, int], int | None]

KINDS: Final = ("names", "placement", "replicas")


@dataclass(frozen=True)
class Problem:
    """One finding. `remedy` says what can be done about it."""

    kind: str
    what: str
    remedy: str
    chain: int = 0
    chunk: ChunkName | None = None


@dataclass
class Names:
    """Inodes and entries, as meta's store has them."""

    inodes: dict[int, meta_pb2.Inode] = field(default_factory=dict)
    entries: list[meta_pb2.ScannedDentry] = field(default_factory=list)
    removed: list[meta_pb2.RemovedContent] = field(default_factory=list)
    quarantined: list[meta_pb2.QuarantinedContent] = field(default_factory=list)


def check_names(names: Names) -> Iterator[Problem]:
    """Entries against inodes."""
    if ROOT_INODE not in names.inodes:
        yield Problem("names", "the root directory has no inode", "restore meta's store from a copy")
    for scanned in names.entries:
        yield from _check_entry(names, scanned)
    yield from _check_links(names)


def _check_entry(names: Names, scanned: meta_pb2.ScannedDentry) -> Iterator[Problem]:
    entry, parent = scanned.entry, scanned.parent
    label = f"entry {entry.name.decode(errors='replace')!r} in directory {parent}"
    if parent not in names.inodes:
        yield Problem("names", f"{label}: the directory does not exist", "restore meta's store from a copy")
    inode = names.inodes.get(entry.inode)
    if inode is None:
        yield Problem("names", f"{label}: inode {entry.inode} does not exist", "unlink the entry")
    elif inode.type != entry.type:
        yield Problem("names", f"{label}: says type {entry.type}, its inode {inode.type}", "unlink the entry")
    elif inode.type == meta_pb2.DIRECTORY and inode.parent != parent:
        yield Problem("names", f"{label}: its inode names {inode.parent} as parent", "rename the directory")


def _check_links(names: Names) -> Iterator[Problem]:
    links = Counter(scanned.entry.inode for scanned in names.entries)
    subdirectories = Counter(
        scanned.parent for scanned in names.entries if scanned.entry.type == meta_pb2.DIRECTORY
    )
    # Removed while open: no entry, and their content already waits for collection.
    waiting = {record.inode for record in names.removed}
    for number, inode in names.inodes.items():
        if number in waiting or inode.link_count == 0:
            continue
        is_directory = inode.type == meta_pb2.DIRECTORY
        expected = 2 + subdirectories[number] if is_directory else links[number]
        if links[number] == 0 and number != ROOT_INODE:
            yield Problem("names", f"inode {number}: no entry leads to it", "it is kept; nothing is lost")
        elif is_directory and links[number] > 1:
            yield Problem(
                "names", f"directory {number}: {links[number]} entries lead to it", "remove all but one"
            )
        elif inode.link_count != expected:
            found = f"link count {inode.link_count}, but {expected} found"
            yield Problem("names", f"inode {number}: {found}", "add and remove a hard link")


def check_placement(names: Names, chains: Mapping[int, Chunks], locate: Locate) -> Iterator[Problem]:
    """Chunks against files. `chains`: the chunks of each chain, on its head."""
    owners: dict[int, tuple[meta_pb2.Layout, int | None]] = {
        record.content: (record.layout, None) for record in names.removed
    }
    for inode in names.inodes.values():
        if inode.type == meta_pb2.REGULAR and inode.content:
            # One without a name is open still; nobody needs the length of what its writer has not told.
            owners[inode.content] = (inode.layout, inode.length if inode.link_count else None)
    quarantined = {record.content for record in names.quarantined}
    for chain, chunks in chains.items():
        for (content, index), record in chunks.items():
            if record.removed or content in quarantined:
                continue
            label = f"chunk {index} of content {content} on chain {chain}"
            owner = owners.get(content)
            if owner is None:
                yield Problem(
                    "placement",
                    f"{label}: belongs to no file",
                    "--repair puts it into quarantine, and removes it later",
                    chain,
                    (content, index),
                )
                continue
            layout, length = owner
            wanted = locate(layout, index)
            if wanted is not None and wanted != chain:
                yield Problem(
                    "placement", f"{label}: should lie on chain {wanted}", "copy the file and remove it"
                )
            if length is not None and index * layout.chunk_bytes >= length:
                yield Problem(
                    "placement",
                    f"{label}: lies past the end of its file ({length} bytes)",
                    "its writer has not told its length, or has just died: run again in a minute, or truncate it",
                )


def check_replicas(chain: int, replicas: Mapping[int, Chunks]) -> Iterator[Problem]:
    """The serving replicas of one chain (node → chunks) against one another."""
    names: set[ChunkName] = set()
    for chunks in replicas.values():
        names.update(chunks)
    for name in sorted(names):
        records = {node: chunks.get(name) for node, chunks in replicas.items()}
        states = {_state(record) for record in records.values()}
        pending = sorted(node for node, record in records.items() if record is not None and record.pending)
        label = f"chunk {name[1]} of content {name[0]} on chain {chain}"
        if pending:
            yield Problem(
                "replicas",
                f"{label}: an update is not finished on nodes {pending}",
                "run again when nothing writes",
                chain,
                name,
            )
        elif len(states) > 1:
            found = ", ".join(f"node {node} {_describe(record)}" for node, record in sorted(records.items()))
            yield Problem("replicas", f"{label}: replicas differ: {found}", "run with --repair", chain, name)


def _state(record: storage_pb2.ChunkRecord | None) -> tuple[int, int, int] | None:
    # A tombstone may be purged on one replica before the other.
    if record is None or record.removed:
        return None
    return record.version, record.length, record.crc32c


def _describe(record: storage_pb2.ChunkRecord | None) -> str:
    if record is None:
        return "none"
    if record.removed:
        return f"removed at version {record.version}"
    return f"version {record.version}, {record.length} bytes, crc {record.crc32c:08x}"


def index_chunks(records: Iterable[storage_pb2.ChunkRecord]) -> dict[ChunkName, storage_pb2.ChunkRecord]:
    """Records by the chunk they describe."""
    return {(record.chunk.content, record.chunk.index): record for record in records}


__all__ = [
    "KINDS",
    "Chunks",
    "Names",
    "Problem",
    "check_names",
    "check_placement",
    "check_replicas",
    "index_chunks",
]
