"""The native module: storage node, client, mount and rings. See `core/src/python`."""

import builtins
import os
from collections.abc import Sequence
from typing import Literal, TypeAlias, TypeVar, final

from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = [
    "Buffer",
    "Client",
    "File",
    "Mount",
    "Ring",
    "StorageNode",
    "__version__",
    "crc32c",
    "crc32s",
    "flag_raise",
    "flag_wait",
    "rdma_ports",
]

__version__: str

_Stat: TypeAlias = tuple[int, int, int, int, int, int, int, int, int, int, int, int]
"""(inode, type, permissions, links, uid, gid, device, length, atime, mtime, ctime, birth), times in nanoseconds."""

_Tuple = TypeVar("_Tuple", bound=tuple[object, ...])

_Layout: TypeAlias = tuple[int | None, int | None, int | None, int | None]
"""(table, chunk bytes, stripe, inline bytes); None: not said."""

_Certificates: TypeAlias = tuple[str, bytes, bytes, bytes]
"""(id of the cluster; PEM of its authority, of the key and of the certificate)"""

@final
class Buffer:
    """Page-aligned shared memory, which storage nodes on this host place bytes into directly.

    Views of it (memoryview, numpy, torch) are recognised by `File` and `Ring`.
    """

    def __new__(cls, length: int) -> Buffer: ...
    def __len__(self) -> int: ...
    def fileno(self) -> int:
        """The descriptor of the memory, for other processes to map. It is open as long as this object lives."""
    def __buffer__(self, flags: int, /) -> memoryview: ...

def crc32c(data: ReadableBuffer) -> int:
    """CRC32C (Castagnoli) of the bytes, computed without the GIL."""

def crc32s(data: ReadableBuffer, offsets: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """The CRC32 (zlib's) of each of the pieces, computed without the GIL."""

def flag_raise(memory: WriteableBuffer, offset: int, value: int) -> None:
    """Raises the 64-bit flag at `offset` of shared memory: what was written before is seen by all who see it.

    Flags are aligned to 8 bytes and only grow.
    """

def flag_wait(memory: WriteableBuffer, offset: int, value: int, timeout_s: float) -> int:
    """Waits, without the GIL, until the flag is at least `value` or the time is over. Returns what it is."""

def rdma_ports(
    devices: Sequence[str] = ..., gid_index: int | None = None
) -> tuple[list[tuple[str, int, str, str, int, int]], list[tuple[str, str]], str]:
    """The ports that connections can use (device, port, link layer, GID, its index, MTU), what cannot be used and why,
    and why there is nothing at all ("" if there is)."""

@final
class Client:
    """One client of a cluster. Raises the classes of `luciola.errors`.

    Names are paths from the root. Refuses use in a process that was forked from its own.
    """

    def __new__(
        cls,
        mgmtd: Sequence[str],
        claims: bytes,
        key: bytes,
        *,
        token_source: str | None = None,
        certificates: _Certificates | None = None,
        description: str = ...,
        mount: bool = False,
        deadline_ms: int = 60_000,
        retry_first_ms: int = 10,
        retry_max_ms: int = 1000,
        connections_per_node: int = 16,
        write_buffer_bytes: int = ...,
        read_ahead_bytes: int = ...,
        attribute_timeout_ms: int = 1000,
        transport: Literal["auto", "shm", "tcp", "rdma"] | str = "auto",
        rdma_devices: Sequence[str] = ...,
        rdma_gid_index: int | None = None,
        rdma_transmissions: int | None = None,
    ) -> Client: ...
    def set_certificates(self, certificates: _Certificates) -> None:
        """Open connections with these from now on. Raises: InvalidArgument if it was made without; ConfigError."""
    def set_token(self, claims: bytes, key: bytes) -> None:
        """Open connections with this token from now on; use those that stand for no other request.

        Raises: InvalidArgument if it is of another role or user than the last.
        """
    @property
    def is_token_refused(self) -> bool:
        """Whether a server has refused the token: it has expired, or was revoked."""
    def counters(self) -> dict[str, int]:
        """Totals since the start: look-ups in caches, write-back; and now: dirty bytes, open files."""
    def rdma_counters(self) -> dict[str, int]:
        """What travelled by RDMA, and what could not; empty where the transport excludes it."""
    @property
    def id(self) -> int: ...
    @property
    def cluster_id(self) -> str: ...
    def open(
        self,
        name: bytes,
        *,
        read: bool = False,
        write: bool = False,
        append: bool = False,
        truncate: bool = False,
        direct: bool = False,
        follow: bool = True,
        permissions: int | None = None,
        exclusive: bool = False,
        layout: _Layout | None = None,
    ) -> File:
        """`permissions`: of a new file, umask applied; `None`: it must exist. `layout`: of a new file."""
    def stat(self, name: bytes, *, follow: bool = True) -> _Stat: ...
    def list(
        self, inode: int, after: bytes, *, with_attributes: bool = False
    ) -> tuple[builtins.list[tuple[bytes, int, int, _Stat | None]], bool]:
        """One page of a directory, after the name `after`: (name, inode, type, attributes), and whether more follow."""
    def mkdir(
        self, name: bytes, permissions: int, *, parents: bool = False, layout: _Layout | None = None
    ) -> None: ...
    def create_small(
        self, files: Sequence[tuple[bytes, bytes]], permissions: int
    ) -> builtins.list[OSError | None]:
        """Make files with their whole contents, in one transaction: at most 64, with 1 MiB. Each has its outcome."""
    def layout(self, name: bytes) -> _Layout | None:
        """That of a file, or what a directory hands on; None: it has none of its own."""
    def default_layout(self) -> _Layout:
        """What new files get in a directory that has none of its own."""
    def set_layout(self, name: bytes, layout: _Layout | None) -> None:
        """Changes what a directory hands on to new files and directories. None: it has no layout of its own any more."""
    def unlink(self, name: bytes) -> None: ...
    def rmdir(self, name: bytes) -> None: ...
    def remove_tree(self, name: bytes) -> None:
        """Remove a directory and everything below it, at the metadata service."""
    def rename(
        self, source: bytes, target: bytes, *, no_replace: bool = False, exchange: bool = False
    ) -> None: ...
    def symlink(self, target: bytes, name: bytes) -> None: ...
    def readlink(self, name: bytes) -> bytes: ...
    def link(self, source: bytes, target: bytes, *, follow: bool = False) -> None: ...
    def set_attributes(
        self,
        name: bytes,
        *,
        follow: bool = True,
        permissions: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        length: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        times_now: bool = False,
    ) -> None:
        """Change what is given; `times_now`: both times become the service's now."""
    def statfs(self) -> tuple[int, int, int]:
        """(capacity, free bytes, inodes)."""
    def get_xattr(self, name: bytes, attribute: bytes, *, follow: bool = True) -> bytes: ...
    def set_xattr(
        self, name: bytes, attribute: bytes, value: bytes, *, flags: int = 0, follow: bool = True
    ) -> None:
        """`flags` of setxattr(2): 1 must not exist, 2 must exist."""
    def list_xattr(self, name: bytes, *, follow: bool = True) -> builtins.list[bytes]: ...
    def remove_xattr(self, name: bytes, attribute: bytes, *, follow: bool = True) -> None: ...
    def real_path(self, name: bytes) -> bytes:
        """The path of a directory without symbolic links, "." and ".."."""
    def read_chunk(self, chain: int, content: int, index: int, into: WriteableBuffer) -> tuple[int, int]:
        """The first bytes of one chunk, as many as fit: (how many it has, its version); (0, 0) if there is none.

        Every replica is tried before an error. Raises: CorruptData if all of them are damaged.
        """
    def write_chunk(self, chain: int, content: int, index: int, data: ReadableBuffer) -> None:
        """Write the first bytes of one chunk; committed on every replica when this returns."""
    def sync_chains(self, chains: Sequence[int]) -> None:
        """Make everything acknowledged on these chains durable against power loss on every replica."""
    def ring(self, entries: int) -> Ring: ...
    def flush(self) -> None:
        """Everything written through this client so far is acknowledged and seen by others."""
    def close(self) -> None:
        """Write back what is dirty, end the session, send mgmtd a leave notice. Idempotent."""

@final
class File:
    """One open file. May be used by several threads. Refuses use in a forked process."""

    def read_into(self, buffer: WriteableBuffer, offset: int) -> int:
        """Bytes placed: fewer than fit only at the end of the file."""
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, data: ReadableBuffer, offset: int | None) -> int:
        """Write all of `data`, at the end for `None`. Returns the offset it went to."""
    def truncate(self, length: int) -> None: ...
    def flush(self) -> None:
        """Other clients that open the file now see everything. Raises the first error of a write-back, once."""
    def fsync(self, *, data_only: bool = False) -> None: ...
    def length(self) -> int:
        """As this client knows it."""
    def refresh(self) -> int:
        """The length, as the metadata service says now."""
    def stat(self) -> _Stat: ...
    @property
    def inode(self) -> int: ...
    def close(self) -> None: ...

@final
class Ring:
    """Reads and writes in flight. Made by `Client.ring`."""

    def submit(self, queue: list[_Tuple], waiting: dict[int, object]) -> int:
        """Take operations from the front of a list while there is room, and remove them from it; how many.

        The user data of each is kept in `waiting` until it is drained.
        """
    def drain(
        self,
        into: list[_Tuple],
        waiting: dict[int, object],
        kind: type[_Tuple],
        most: int,
        least: int,
        timeout_s: float | None = None,
    ) -> None:
        """Append up to `most` results, as kind(user data, bytes or negative errno), once there are `least` of them.

        Raises what a signal handler raises while it waits; nothing was taken then.
        """
    def fileno(self) -> int:
        """An eventfd that is readable while there are results."""
    @property
    def entries(self) -> int: ...
    @property
    def in_flight(self) -> int:
        """Submitted and not drained yet."""
    def close(self) -> None:
        """Wait for what is in flight; its results may still be drained."""

@final
class Mount:
    """A cluster on a directory. Mounted when this returns; programs that use it wait until `run`.

    Raises OSError (of the subclass for its errno) about the mountpoint.
    """

    def __new__(
        cls,
        client: Client,
        mountpoint: str | os.PathLike[str],
        *,
        source: str = ...,
        allow_other: bool = False,
        read_only: bool = False,
        strict: bool = False,
        threads: int = 16,
        request_bytes: int = ...,
        read_ahead_bytes: int = ...,
        grace_ms: int = 10_000,
        io_uring: Literal["auto", "always", "never"] | str = "never",
    ) -> Mount: ...
    def run(self) -> None:
        """Serve the mount until it is gone, by whichever call; then write back what is dirty. Once."""
    def channel(self) -> tuple[str, str]:
        """Where requests come from, "io_uring" or "/dev/fuse", and why not over io_uring. Waits for `run`."""
    def requests(self) -> list[tuple[str, str, int]]:
        """(operation, outcome, how many) of the requests that were answered. Waits for nothing."""
    def durations(self) -> tuple[list[float], list[tuple[str, list[int], float]]]:
        """Upper bounds in seconds; for each operation how many requests fell below each and the last one, and their sum."""
    def bytes(self) -> tuple[int, int]:
        """Bytes that programs have read through the kernel, and written. Waits for nothing."""
    def unmount(self) -> None:
        """Unmount: `run` returns. Programs that still use the mount may continue for `grace_ms`, then get errors."""
    def abort(self) -> None:
        """Unmount at once, and cut off every program that uses the mount. What is dirty is still written back."""

@final
class StorageNode:
    """One storage node: the chunks in a directory, served over the data plane.

    Every call releases the GIL while it waits, and raises the classes of `luciola.errors`. All versions are those
    of routing. It decides nothing about membership: it serves what `set_routing` says while `set_lease` lets it.
    """

    def __new__(
        cls,
        node_id: int,
        directory: str | os.PathLike[str],
        *,
        secret: bytes,
        tcp: str = "127.0.0.1:0",
        socket: str | os.PathLike[str] | None = None,
        threads_max: int = 512,
        reserve_bytes: int = ...,
        durability: Literal["write", "sync"] | str = "write",
        index_cache_bytes: int = ...,
        identity: int = 0,
        create: bool = True,
        transport: Literal["auto", "shm", "tcp", "rdma"] | str = "auto",
        rdma_devices: Sequence[str] = ...,
        rdma_gid_index: int | None = None,
        certificates: _Certificates | None = None,
        wire: Literal["encrypt", "mac", "none"] | str = "encrypt",
    ) -> StorageNode:
        """Open the directory and begin to listen; without routing and lease it refuses every request.

        `secret`: the 32 bytes of the cluster secret. `socket`: path of the Unix socket of the shm transport.
        `identity`: of the chunk engine that must be there, 128 bits; 0: any. `create`: make one where none is.
        Raises: Busy if another process has it, ConfigError if it is not what it must be, CorruptData.
        """
    def tcp_address(self) -> str: ...
    def set_certificates(self, certificates: _Certificates) -> None:
        """Open and accept connections with these from now on. Raises: as for `Client`."""
    def set_routing(self, routing: bytes) -> int:
        """Apply a serialized `Routing`, snapshot or delta; the routing version then known.

        Every pending version of a chain that changed is driven on, in the background.
        """
    def set_lease(self, until_s: float, routing_version: int) -> None:
        """Serve until the boot clock shows `until_s`.

        Renewing a lease that still runs takes effect at once. After one has run out, nothing is served before the
        routing has reached `routing_version` (of the heartbeat's reply): chains may have changed meanwhile.
        """
    def oldest_access_s(self) -> float:
        """How long the oldest access to the disk has been under way; 0 if there is none. Waits for nothing."""
    def give_up_disk(self) -> None:
        """Refuse everything from now on, because the disk hangs. Waits for nothing."""
    def drop_lease(self) -> None:
        """Serve nothing from now on. Reads that began before may still be answered: they began under the lease."""
    def lease_left_s(self) -> float: ...
    def targets(self) -> list[tuple[int, int, int, int, int, int, bool]]:
        """This node's replicas: (target, chain, chain version, chunks, used bytes, updates, bad).

        `updates`: the versions of its chunks, summed.
        `bad`: its disk failed; it serves nothing until the node is restarted. Report it OFFLINE.
        """
    def chain_states(self) -> list[tuple[int, int, int, int]]:
        """(chain, chain version, own `PublicState`, pending versions not yet driven to their end)."""
    def list_chunks(
        self, chain: int, after: tuple[int, int] | None, limit: int, since: int = 0
    ) -> list[tuple[int, int, int, int, int, int, bool, bool, int]]:
        """The fields of `ChunkRecord` in order: content, index, version, chain version, length, crc32c, pending,
        removed, pending version; sorted by (content, index), tombstones included. `since`: only those staged since that `round` had begun,
        and pending ones.
        """
    def hold_updates(self, holder: int, limit_s: float) -> None:
        """Keep updates of clients waiting until `release_updates`, at most 8 s; none is under way when this returns.

        Raises: Busy while another one holds; Timeout if updates do not end in time, and then nothing is held.
        """
    def release_updates(self, holder: int) -> bool:
        """End that hold; whether it had lasted until now."""
    def last_chunk(self, chain: int, chain_version: int, content: int) -> tuple[int, int] | None:
        """(index, length) of the last chunk of a content on this chain; `None` if it has none here."""
    def remove_chunks(
        self,
        chain: int,
        chain_version: int,
        removals: Sequence[tuple[int, int]],
        limit: int,
        client: int,
        sequence: int,
        expires_s: float,
    ) -> tuple[int, tuple[int, int] | None]:
        """At the head: remove up to `limit` chunks through the chain; each removal is (content, first index).

        Returns (removed, where to continue): a place in `removals` and an index; `None` when nothing is left.
        None is begun once the boot clock shows `expires_s`. Raises: Timeout.
        """
    def sync_chain(self, chain: int, chain_version: int) -> None:
        """At a serving member: make all that the chain has acknowledged durable against power loss, on all members."""
    def truncate_chunk(
        self,
        chain: int,
        chain_version: int,
        content: int,
        index: int,
        length: int,
        client: int,
        sequence: int,
        expires_s: float,
    ) -> None:
        """At the head: cut or extend one chunk through the chain, if that is begun before `expires_s`."""
    def sync_chunks(
        self, chain: int, chain_version: int, chunks: Sequence[tuple[int, int]]
    ) -> tuple[int, list[tuple[int, int, str]]]:
        """Make the SYNCING successor's copies of these (content, index) equal to this node's.

        Returns (chunks that are equal now, [(content, index, status)] of the others). The status "Stale" means
        that the successor holds something newer than this chain ever had: it must be wiped and synced from nothing.
        Raises `StaleRouting` when the chain has changed: compare again.
        """
    def commit_pending(self, chain: int, timeout_s: float = 10.0) -> int:
        """Drive every pending version of a chain this node is a member of; how many are left."""
    def scrub(
        self, chain: int, after: tuple[int, int] | None, limit: int, repair: bool
    ) -> tuple[int, int, list[tuple[int, int, int]], int, tuple[int, int] | None]:
        """Read and verify up to `limit` chunks: (chunks, bytes, damaged (content, index, version), repaired, last).

        `last`: pass it as `after` to continue; `None` at the end.
        """
    def quarantine(
        self,
        chain: int,
        chain_version: int,
        chunk: tuple[int, int],
        stamp: tuple[int, int],
        folder: str | os.PathLike[str],
    ) -> bool:
        """Put the bytes of (content, index) into a file of `folder` and forget the chunk; whether it did.

        Only while this replica is SYNCING under `chain_version`, and the chunk is committed as `stamp`, which is
        (chain version, version). `stamp` (0, 0): the predecessor cannot read its record. Then the chunk becomes
        unreadable if nothing is committed; whether it is unreadable.
        Raises: StaleRouting; Busy while an update of it is under way; NoSpace.
        """
    def stored_chains(self) -> list[int]:
        """Chains of which this node's disk has chunks, with a replica here or not, in order."""
    def wipe_chain(self, chain: int) -> None:
        """Forget every chunk of a chain this node is not a serving member of."""
    def round(self) -> int:
        """Rounds of sync begun on this disk: what is staged from now on is of this one or a later."""
    def rounds(self) -> tuple[int, int]:
        """Rounds of sync that this directory had completed when it was opened, and has completed by now.

        The first stays the same over any number of openings until `confirm`, although each of them syncs.
        """
    def confirm(self) -> None:
        """This directory is the newest of its node: the next opening counts from what is there then. Durable."""
    def purge_tombstones(
        self, chain: int, after: tuple[int, int] | None, round: int, limit: int
    ) -> tuple[int, tuple[int, int] | None]:
        """Forget old tombstones of a chain with one member; on longer chains they stay and this does nothing."""
    def sync(self) -> None:
        """Make everything acknowledged durable against power loss."""
    def space(self) -> tuple[int, int, int]:
        """(capacity, free for clients, used) in bytes."""
    def counters(self) -> dict[str, int]: ...
    def slow_ops(self, seconds: float) -> list[str]:
        """A line for each chunk that one update has held for so long, the longest first.

        It says what the update waits for, and how many wait for it.
        """
    def stop(self) -> None:
        """Stop listening, end all connections, sync and close the directory. Idempotent."""
