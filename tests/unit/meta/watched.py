"""A metadata service whose store follows a log in memory, and a watcher's copy of the names that it is shown."""

from dataclasses import dataclass, field

from luciola.kv import MemoryEngine
from luciola.kv.applied import Applied
from luciola.kv.grouped import Group, GroupedEngine
from luciola.kv.log import MemoryLog, Record
from luciola.meta import schema
from luciola.meta.feed import Feed
from luciola.wire.pb import meta_pb2 as pb
from luciola.wire.pb.common_pb2 import Caller

from .world import ROOT, World


class LoggedEngine(GroupedEngine):
    """What `Feed` sees of a `PrimaryEngine`: its commits are records of `log`."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.applied = Applied(MemoryEngine(), log_id=b"test", create=True)
        self.is_leased = True
        super().__init__(self.applied.engine, self._append)

    async def _append(self, group: Group) -> None:
        claim = await self.log.claim() or await self.log.create_claim("test", lease_s=1.0)
        assert claim is not None
        record = Record.create(group.record(), after=self.applied.position, epoch=claim.epoch)
        await self.log.append(record)
        self.applied.apply(record)


class WatchedWorld(World):
    """`World`, with a feed."""

    def __init__(self, **config: object) -> None:
        super().__init__(LoggedEngine(), **config)

    def start(self) -> None:
        self.clock.advance(1.0)  # so that no two changes have one time
        super().start()
        self.feed = self.uncommitted.feed = Feed(self.engine)

    crash = start

    def watch(
        self, path=b"", *, at=1, after="", children_only=False, wait_ms=0, user=ROOT, groups=()
    ) -> pb.WatchReply:
        request = pb.WatchRequest(
            user=Caller(uid=user[0], gid=user[1], groups=groups),
            path=pb.Path(at=at, path=path),
            after=after,
            children_only=children_only,
            wait_ms=wait_ms,
        )
        return self.call_plain("watch", request)

    def call_plain(self, name: str, request):
        """Sends a request that has no caller."""
        return self.run(getattr(self.service, name)(request, self.identity))


@dataclass
class Copy:
    """The names below a directory: path → inode, changed by what the feed says alone."""

    names: dict[bytes, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def take(self, change: pb.NamespaceChange) -> None:
        path = change.path if change.HasField("path") else None
        old = change.old_path if change.HasField("old_path") else None
        if change.kind == pb.CHANGE_ATTRIBUTES:
            if path is not None and path and self.names.get(path) != change.inode:
                self._refuse(change, f"{path!r} is {self.names.get(path)}")
        elif change.kind == pb.CHANGE_REMOVE:
            assert path is not None
            self._drop(path, change)
        elif change.kind == pb.CHANGE_RENAME:
            self._move(old, path, change)
        else:
            assert path is not None
            if path in self.names:
                self._refuse(change, f"{path!r} is there")
            self.names[path] = change.inode

    def _move(self, old: bytes | None, path: bytes | None, change: pb.NamespaceChange) -> None:
        moving = {} if old is None else self._cut(old)
        back = {} if path is None else self._cut(path)
        if old is not None and moving.get(b"") != change.inode:
            self._refuse(change, f"{old!r} is {moving.get(b'')}")
        if path is not None and change.replaced != back.get(b"", 0):
            self._refuse(change, f"{path!r} is {back.get(b'', 0)}")
        if path is not None:
            self._paste(path, moving or {b"": change.inode})
        if change.exchanged and old is not None:
            self._paste(old, back or {b"": change.replaced})

    def _drop(self, path: bytes, change: pb.NamespaceChange) -> None:
        gone = self._cut(path)
        if gone.get(b"") != change.inode:
            self._refuse(change, f"{path!r} is {gone.get(b'')}")

    def _cut(self, path: bytes) -> dict[bytes, int]:
        taken = {
            name: inode for name, inode in self.names.items() if name == path or name.startswith(path + b"/")
        }
        for name in taken:
            del self.names[name]
        return {name[len(path) :]: inode for name, inode in taken.items()}

    def _paste(self, path: bytes, tree: dict[bytes, int]) -> None:
        for name, inode in tree.items():
            self.names[path + name] = inode

    def _refuse(self, change: pb.NamespaceChange, why: str) -> None:
        self.wrong.append(f"{change}: {why}")


def names_below(pairs: dict[bytes, bytes], directory: int = 1, path: bytes = b"") -> dict[bytes, int]:
    """The names in a store below a directory: path → inode."""
    begin, end = schema.entry_range(directory)
    found = {}
    for key, value in pairs.items():
        if begin <= key < end:
            name, entry = key[9:], schema.decode_entry(value)
            found[path + name] = entry.inode
            if entry.type == pb.DIRECTORY:
                found |= names_below(pairs, entry.inode, path + name + b"/")
    return found


__all__ = ["Copy", "LoggedEngine", "WatchedWorld", "names_below"]
