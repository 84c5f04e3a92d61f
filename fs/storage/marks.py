"""What a storage node remembers of the stores of mgmtd and meta, so that an older one is recognised.

A store that was lost, or put back from a copy, looks healthy to the service that owns it. The nodes know better: each
keeps the term of mgmtd, the highest version of every chain that it holds, all chain tables, how far meta's store had
come, and, for a store that is rebuilt, which tokens are revoked. mgmtd publishes nothing that its own store does not
hold durably, so what a node remembers is never ahead of a healthy store, also after power loss.

    S1  routing is adopted only after the marks that it raises are on this node's disk, unless that hangs or is full
    S2  routing below a mark is not adopted, so nothing is served under it; the next heartbeat says why

Source of the file's bytes: `Marks` in proto/mgmtd.proto, docs/formats.md.
"""

import os
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from ..errors import ConfigError
from ..ids import NodeId
from ..wire.pb.mgmtd_pb2 import Chain, ChainTable, Marks, Routing, StoreMark

FORMAT: Final = 1
NAME: Final = "marks"
TERM_BITS: Final = 32  # lower half of a routing version, above which the term is


class MarkFile:
    """The marks of one node, and the file that they are in."""

    def __init__(self, directory: Path, *, node: NodeId) -> None:
        """Raises: ConfigError if the file cannot be read."""
        self._path = directory / NAME
        self._node = node
        self.marks = self._saved = load(directory) or Marks(format=FORMAT)  # each is replaced, never changed
        self._chains = {chain.id: chain for chain in self.marks.chains}

    def outdated(self, routing: Routing) -> str:
        """Return what this node has seen that `routing` lacks, in words; empty if it lacks nothing (S2)."""
        term = routing.version >> TERM_BITS
        if (term, routing.manager) != (self.marks.term, self.marks.manager) and term <= self.marks.term:
            return f"term {self.marks.term} of mgmtd, not {term}"
        given = {chain.id: chain.version for chain in routing.chains}
        if routing.delta:
            given = {chain: self._chains[chain].version for chain in self._chains} | given
        for chain in self._chains.values():
            if given.get(chain.id, 0) < chain.version:
                return f"version {chain.version} of chain {chain.id}, not {given.get(chain.id, 'none')}"
        return ""

    def raise_to(self, routing: Routing) -> bool:
        """Remember what `routing`, which is not outdated, shows. False if that is remembered and saved already."""
        marks = self.marks
        term = routing.version >> TERM_BITS
        is_news = routing.chains or routing.tables or routing.HasField("revocations")
        if is_news or (term, routing.manager) != (marks.term, marks.manager):
            for chain in routing.chains:
                if any(target.node == self._node for target in chain.targets):
                    self._chains[chain.id] = _stripped(chain)
                else:
                    self._chains.pop(chain.id, None)
            tables = {(table.id, table.version): table for table in (*marks.tables, *routing.tables)}
            raised = Marks(
                format=FORMAT,
                term=term,
                manager=routing.manager,
                chains=(self._chains[chain] for chain in sorted(self._chains)),
                tables=(_published(tables[table]) for table in sorted(tables)),
            )
            if marks.HasField("meta_store"):
                raised.meta_store.CopyFrom(marks.meta_store)
            revocations = routing if routing.HasField("revocations") else marks
            if revocations.HasField("revocations"):
                raised.revocations.CopyFrom(revocations.revocations)
            assert term >= marks.term, "S2: routing of an older term is refused before"
            if raised != marks:
                self.marks = raised
        return not self.is_saved

    def raise_meta_store(self, mark: StoreMark) -> bool:
        """Remember this mark of meta's store. False if it, or a higher one, is remembered and saved already."""
        known = self.marks.meta_store
        if (mark.generation, mark.position) > (known.generation, known.position):
            raised = Marks()
            raised.CopyFrom(self.marks)
            raised.meta_store.CopyFrom(mark)
            self.marks = raised
        return not self.is_saved

    @property
    def is_saved(self) -> bool:
        """Whether the file has the marks."""
        return self.marks is self._saved

    def save(self) -> None:
        """Replace the file durably, in one thread at a time, until it has the marks. Raises: OSError."""
        while (marks := self.marks) is not self._saved:
            temporary = self._path.with_name(NAME + ".new")
            with temporary.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(marks.SerializeToString(deterministic=True))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._saved = marks


def load(directory: Path) -> Marks | None:
    """Return the marks in a storage node's directory; None if it has none. Raises: ConfigError."""
    path = directory / NAME
    try:
        marks = Marks.FromString(path.read_bytes())
    except FileNotFoundError:
        return None
    except DecodeError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if marks.format != FORMAT:
        raise ConfigError(f"{path}: format {marks.format}, and this release reads format {FORMAT}")
    return marks


def _stripped(chain: Chain) -> Chain:
    """Return the chain as it is stored by mgmtd: without what is published for information."""
    kept = Chain(id=chain.id, version=chain.version, preferred_order=chain.preferred_order)
    for target in chain.targets:
        kept.targets.add(id=target.id, node=target.node, state=target.state)
    return kept


def _published(table: ChainTable) -> ChainTable:
    """Return the table as it is stored by mgmtd."""
    kept = ChainTable()
    kept.CopyFrom(table)
    kept.changed_at = 0
    return kept


__all__ = ["MarkFile", "load"]
