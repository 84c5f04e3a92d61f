"""What `luciola fsck` checks, over names in an `Inventory` and chunks that pass by in order.

names      every entry leads to an inode, every inode has an entry, link counts and parents agree
placement  every chunk belongs to a file (or to one that waits for removal), on its chain, inside its length
replicas   the serving replicas of a chain hold the same chunks: version, length, checksum, nothing pending
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from ..ids import ROOT_INODE
from ..wire.pb import meta_pb2, storage_pb2
from .inventory import Inventory, Owner
from .output import shown

ChunkName: TypeAlias = tuple[int, int]  # content, index
Held: TypeAlias = Mapping[int, storage_pb2.ChunkRecord]  # node → its record of one chunk
# Chain on which a chunk of that layout with that index belongs; None if routing does not know the layout's table.
Locate: TypeAlias = Callable[[meta_pb2.Layout, int], int | None]

KINDS: Final = ("names", "placement", "replicas")
KEPT_MAX: Final = 10_000  # problems of one kind; the rest is counted
STEPS: Final = (  # the node's replicas return behind the others, and are compared with them
    "luciola node disable {0}, luciola node list until it serves none, luciola node enable {0}"
)
NO_COMMAND: Final = "no command mends this: put back a backup of meta/ (docs/operations.md), and report it"


@dataclass(frozen=True)
class Problem:
    """One finding. `key` is the same in every round; `remedy` says what can be done about it."""

    kind: str
    key: tuple[object, ...]
    what: str
    remedy: str
    chain: int = 0
    chunk: ChunkName | None = None
    ahead: frozenset[int] = frozenset()  # nodes with the newest state of the chunk
    behind: frozenset[int] = frozenset()


@dataclass
class Findings:
    """Problems of one round."""

    problems: dict[tuple[object, ...], Problem] = field(default_factory=dict)
    omitted: int = 0

    def add(self, problem: Problem) -> None:
        """Keep a problem, or count it when there are too many."""
        if problem.key in self.problems or len(self.problems) < KEPT_MAX * len(KINDS):
            self.problems[problem.key] = problem
        else:
            self.omitted += 1

    def seen_again(self, later: "Findings") -> "Findings":
        """Return what both rounds found, as the later one saw it. What was only counted cannot be compared."""
        both = {key: problem for key, problem in later.problems.items() if key in self.problems}
        return Findings(both, min(self.omitted, later.omitted))


def check_names(names: Inventory) -> Iterator[Problem]:
    """Entries against inodes."""

    def problem(*key: object, what: str, remedy: str = NO_COMMAND) -> Problem:
        return Problem("names", key, what, remedy)

    if not names.has_root():
        yield problem("root", what="the root directory has no inode")
    for parent, name in names.entries_without_directory():
        label = _entry(parent, name)
        yield problem("parent", parent, name, what=f"{label}: the directory does not exist")
    for parent, name, inode, kind, found, inode_parent in names.entries_with_wrong_inode():
        label = _entry(parent, name)
        if found is None:
            what = f"{label}: inode {inode} does not exist"
        elif found != kind:
            what = f"{label}: says type {kind}, its inode {found}"
        else:
            what = f"{label}: its inode names {inode_parent} as parent"
        yield problem("entry", parent, name, what=what)
    for inode, kind, links, named, below in names.link_counts():
        if named == 0 and inode != ROOT_INODE:
            what, remedy = f"inode {inode}: no entry leads to it", "it is kept; nothing is lost"
        elif kind == meta_pb2.DIRECTORY and named > 1:
            what, remedy = f"directory {inode}: {named} entries lead to it", NO_COMMAND
        else:
            expected = 2 + below if kind == meta_pb2.DIRECTORY else named
            path = shown(names.path_of(inode), terminal=True)
            what, remedy = f"{path} (inode {inode}): link count {links}, but {expected} found", NO_COMMAND
        yield problem("links", inode, what=what, remedy=remedy)


def _entry(parent: int, name: bytes) -> str:
    return f"entry {name.decode(errors='replace')!r} in directory {parent}"


class Placement:
    """Chunks of one chain against files. Feed it records by content and index, then `finish`."""

    def __init__(
        self, names: Inventory, locate: Locate, findings: Findings, *, chain: int, round_number: int
    ) -> None:
        self._names, self._locate, self._findings = names, locate, findings
        self._chain, self._round = chain, round_number
        self._content = 0
        self._owner: Owner | None = None
        self._orphans = self._misplaced = self._beyond = 0
        self._wanted = 0
        self.open_files = 0

    def add(self, content: int, index: int) -> None:
        """Check a chunk that exists."""
        if content != self._content:
            self.finish()
            self._content, self._owner = content, self._names.owner(content)
        owner = self._owner
        if owner is None:
            self._orphans += 1
            return
        if owner.layout is None:
            return
        wanted = self._locate(owner.layout, index)
        if wanted is not None and wanted != self._chain:
            self._misplaced += 1
            self._wanted = wanted
        elif owner.length is not None and index * owner.layout.chunk_bytes >= owner.length:
            self._beyond += 1

    def finish(self) -> None:
        """Report what was found of the content so far."""
        content, owner = self._content, self._owner
        if self._orphans:
            self._names.note_orphan(content, self._chain, self._orphans, round_number=self._round)
        if self._misplaced and owner is not None:
            self._report(
                "misplaced",
                f"{self._misplaced} chunks of content {content} are on chain {self._chain}, "
                f"such as one that belongs on chain {self._wanted}",
                "the file does not read them; once it is removed, --repair takes them",
            )
        if self._beyond and owner is not None:
            if owner.writing:
                self.open_files += 1
            else:
                self._report(
                    "beyond",
                    f"{self._beyond} chunks of content {content} on chain {self._chain} are past the end of the file "
                    f"({owner.length} bytes)",
                    f"on a mount, cut the file there again: truncate -s {owner.length}",
                )
        self._orphans = self._misplaced = self._beyond = 0

    def _report(self, key: str, what: str, remedy: str) -> None:
        assert self._owner is not None, "chunks of no file are orphans"
        path = describe_owner(self._names, self._owner)
        self._findings.add(
            Problem("placement", (key, self._content, self._chain), f"{path}: {what}", remedy, self._chain)
        )


def describe_owner(names: Inventory, owner: Owner | None) -> str:
    """Return the file that a content belongs to, as people call it."""
    if owner is None:
        return "no file"
    return shown(names.path_of(owner.inode), terminal=True) if owner.inode else "a removed file"


def check_chunk(chain: int, name: ChunkName, held: Held, nodes: Iterable[int]) -> Problem | None:
    """Return the serving replicas of one chunk against one another. `held`: of `nodes`, those that have a record."""
    records = {node: held.get(node) for node in sorted(nodes)}
    pending = [node for node, record in records.items() if record is not None and record.pending]
    label = f"chunk {name[1]} of content {name[0]} on chain {chain}"
    key = ("replicas", chain, *name)
    if pending:
        what = f"{label}: an update is not finished on nodes {pending}"
        return Problem("replicas", key, what, "run again when nothing writes", chain, name)
    if len({_state(record) for record in records.values()}) == 1:
        return None
    newest = max(_stamp(record) for record in records.values())
    ahead = frozenset(node for node, record in records.items() if _stamp(record) == newest)
    found = ", ".join(f"node {node} {_describe(record)}" for node, record in records.items())
    what = f"{label}: replicas differ: {found}"
    return Problem("replicas", key, what, "", chain, name, ahead, frozenset(records) - ahead)


def with_remedies(problems: Iterable[Problem]) -> list[Problem]:
    """Problems of replicas that differ with what helps: which depends on where else their nodes are behind."""
    found = list(problems)
    ahead = {node for problem in found if problem.behind for node in problem.ahead}
    return [replace(problem, remedy=problem.remedy or _remedy(problem, ahead)) for problem in found]


def _remedy(problem: Problem, ahead: set[int]) -> str:
    if not problem.behind:
        return "two contents under one version: run with --scrub, which names the damaged one"
    nodes = sorted(problem.behind)
    if ahead & problem.behind:
        return (
            f"nodes {nodes} are behind, and ahead with other chunks: copy the files that are named to another place "
            f"and compare them, then bring one node up to date ({STEPS.format('NODE')})"
        )
    steps = "; ".join(STEPS.format(node) for node in nodes)
    return f"bring the older replica up to date from the newer: {steps}"


def _stamp(record: storage_pb2.ChunkRecord | None) -> tuple[int, int]:
    return (0, 0) if record is None else (record.chain_version, record.version)


def _state(record: storage_pb2.ChunkRecord | None) -> tuple[int, int, int] | None:
    # A tombstone may be purged on one replica before the other.
    if record is None or record.removed:
        return None
    return record.version, record.length, record.crc32c


def _describe(record: storage_pb2.ChunkRecord | None) -> str:
    if record is None:
        return "none"
    version = f"version {record.chain_version}.{record.version}"
    if record.removed:
        return f"removed at {version}"
    return f"{version}, {record.length} bytes, crc {record.crc32c:08x}"


__all__ = [
    "KEPT_MAX",
    "KINDS",
    "ChunkName",
    "Findings",
    "Held",
    "Placement",
    "Problem",
    "check_chunk",
    "check_names",
    "describe_owner",
    "with_remedies",
]
