"""Filling an empty namespace with what a dump holds.

G1  From `begin` until `finish` or `discard` the namespace is closed, also after a restart of the service: a record in
    the store says so. Nothing is collected meanwhile, and operations that had begun fail.
G2  A load that breaks off is begun again, from the first record: every record is stored under the key that it had
    before, so nothing is there twice. Another dump is refused until the first is finished or discarded.
G3  No id of the dump's namespace is handed out again: the allocators are moved beyond all that it had handed out, and
    what it handed out after the dump is of an older generation of ids (decision 0016), or of this very store.
G4  No inode gets a number of changes that it had before, in the dump or after it, here or in the store that was lost:
    clients would take it for the state that they know. All count on from numbers above those (`RemovalClock`).
G5  What a quarantine had found to belong to no file is looked at again: a loaded file may name it.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from typing import Final

from ..clock import Clock
from ..errors import AlreadyExists, Busy, InvalidArgument, NotEmpty, NotFound, Unavailable
from ..ids import ROOT_INODE
from ..kv import Durability, Engine, Transaction, run
from ..wire.pb import meta_pb2 as pb
from ..wire.pb.meta_pb2 import DIRECTORY, REGULAR, DumpHeader, DumpRecord, DumpTrailer, Inode, LoadState
from . import schema
from .allocator import FIRST_ID, Allocator
from .context import DIRECTORY_LINKS
from .dump import FORMAT, kind_of
from .inode_counter import InodeCounter
from .layout import Placer
from .load_checks import RecordChecks
from .quarantine import CONTENT_MAX, Quarantine
from .removal_clock import RemovalClock
from .retry import RetryAfterRefill

log: Final = logging.getLogger("luciola.meta")

RECORDS_MAX: Final = 1024  # of one request: five milliseconds
REFUSAL: Final = (
    "the namespace is being loaded from a dump: `luciola load` with the same dump finishes that, and "
    "`luciola load --discard` gives it up"
)
# What a namespace consists of, besides the root.
CONTENT_KINDS: Final = (b"C", b"D", b"I", b"N", b"O", b"P", b"S", b"T", b"X")


class Load:
    """The load of one namespace. Its beginning and its end, and each round of the collector, hold `lock`."""

    def __init__(  # noqa: PLR0913, what a load changes
        self,
        engine: Engine,
        clock: Clock,
        placer: Placer,
        *,
        inodes: Allocator,
        contents: Allocator,
        removal_clock: RemovalClock,
        quarantine: Quarantine,
        inode_counter: InodeCounter,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._placer = placer
        self._inodes = inodes
        self._contents = contents
        self._removal_clock = removal_clock
        self._quarantine = quarantine
        self._inode_counter = inode_counter
        self._attempt = 0  # the one that may continue; 0: none
        self._checks: RecordChecks | None = None
        self.lock = asyncio.Lock()
        self.is_active = False

    def resume(self) -> None:
        """Keep the namespace closed if an earlier process has left a load unfinished."""
        self.is_active = self._is_stored()
        if self.is_active:
            log.warning("%s", REFUSAL)

    def require_open(self) -> None:
        """Raises: Unavailable while the namespace is being loaded."""
        if self.is_active:
            raise Unavailable(REFUSAL, loading=True)

    async def begin(self, request: pb.BeginLoadRequest) -> pb.BeginLoadReply:
        """Close the namespace, which must be empty, or holds an unfinished load of the same dump.

        Raises: InvalidArgument for a dump that cannot be loaded here; NotEmpty; Busy while removed files wait for
        collection; AlreadyExists if the load of another dump is not finished.
        """
        header = request.header
        _check_header(header)
        if not self._placer.default.table:
            raise Unavailable("no chain table is known yet: try again in a moment")
        async with self.lock:
            self.is_active = True
            self._end_attempt()
            try:
                again = await run(
                    self._engine,
                    lambda txn: self._close(txn, request),
                    durability=Durability.SYNC,
                    clock=self._clock,
                )
            except BaseException:
                self.is_active = self._is_stored()
                raise
            self._quarantine.look_again()  # G5
            await self._inodes.skip_past(header.next_inode - 1)  # G3
            await self._contents.skip_past(header.next_content - 1)
            assert self._inodes.upcoming >= header.next_inode, "G3: no id of the dump is handed out again"
            assert self._contents.upcoming >= header.next_content, "G3: no id of the dump is handed out again"
            self._checks = RecordChecks(
                header, new_contents=request.new_contents, is_known=self._placer.knows
            )
            attempt = self._attempt = secrets.randbits(63) | 1
        log.info("load of a dump of cluster %s begins%s", header.cluster, " again" if again else "")
        return pb.BeginLoadReply(load=attempt, again=again)

    async def put(self, request: pb.LoadRequest) -> pb.LoadReply:
        """Store records, which follow those of the request before.

        Raises: InvalidArgument with the field `record`, the index of the one that is refused. Then, as after every
        failure, only `begin` is accepted.
        """
        checks = self._take(request.load)
        if len(request.records) > RECORDS_MAX:
            raise InvalidArgument(f"at most {RECORDS_MAX} records in one request")
        placed = []
        for index, record in enumerate(request.records):
            try:
                checks.check(record)
                if record.inode.type == REGULAR and not record.inode.content:
                    await self._place(record.inode)
                    placed.append(record.inode)
            except InvalidArgument as error:
                raise InvalidArgument(error.message, record=index) from error

        def store(txn: Transaction) -> None:
            self._require_current(checks)
            self._store(txn, request.records)

        await run(self._engine, store, clock=self._clock)
        self._engine.forget_commits()  # no other transaction may write, and a million write sets are memory
        self._attempt = request.load
        return pb.LoadReply(placed=placed)

    async def finish(self, request: pb.FinishLoadRequest) -> None:
        """Open the namespace. Raises: InvalidArgument if the trailer counts other records than were stored."""
        checks = self._take(request.load)
        if request.trailer != checks.seen or not checks.seen.inodes:
            raise InvalidArgument(
                f"the dump ends with other counts ({_counts(request.trailer)}) than it has records "
                f"({_counts(checks.seen)}): it is damaged"
            )
        async with self.lock:
            self._require_current(checks)
            await self._removal_clock.skip_changes(checks.change_max)  # G4
            await run(
                self._engine,
                lambda txn: txn.delete(schema.LOAD),
                durability=Durability.SYNC,
                clock=self._clock,
            )
            await self._inode_counter.count_all(self._engine)
            self.is_active = False
        log.info("load finished: %s", _counts(checks.seen))

    async def discard(self) -> None:
        """Empty the namespace again, and open it. Raises: NotFound if nothing is being loaded."""
        async with self.lock:
            self._end_attempt()
            await run(self._engine, _empty, durability=Durability.SYNC, clock=self._clock)
            await self._inode_counter.count_all(self._engine)
            self.is_active = False
        log.info("load discarded")

    def _is_stored(self) -> bool:
        return self._engine.begin().snapshot_get(schema.LOAD) is not None

    def _take(self, attempt: int) -> RecordChecks:
        """Return the checks of the attempt, which ends here unless its caller names it again."""
        if not self._attempt or attempt != self._attempt or self._checks is None:
            raise _interrupted()
        assert self.is_active, "G1: the namespace is closed while records are stored"
        self._attempt = 0
        return self._checks

    def _require_current(self, checks: RecordChecks) -> None:
        """Raises: Unavailable if the load was discarded, or begun again, since `_take`."""
        if self._checks is not checks:
            raise _interrupted()

    def _end_attempt(self) -> None:
        self._attempt, self._checks = 0, None

    def _close(self, txn: Transaction, request: pb.BeginLoadRequest) -> bool:
        """Return whether the namespace holds an earlier attempt at the same dump; else it is prepared for the first."""
        value = txn.get(schema.LOAD)
        if value is not None:
            stored = LoadState.FromString(value)
            if (stored.header, stored.new_contents) != (request.header, request.new_contents):
                raise AlreadyExists(
                    f"the load of another dump is not finished ({_describe(stored.header)}): finish it with that dump, "
                    "or give it up with `luciola load --discard`"
                )
            return True
        self._admit(txn, request)
        root = _require_empty(txn)
        for kind in (b"N", b"T", b"X", schema.RESERVATIONS):  # of the root; and ids that the dump may have
            txn.delete_range(*schema.kind_range(kind))
        state = LoadState(header=request.header, new_contents=request.new_contents, root=root)
        txn.put(schema.LOAD, state.SerializeToString())
        return False

    def _admit(self, txn: Transaction, request: pb.BeginLoadRequest) -> None:
        """Raises: InvalidArgument if the dump's chunks are not here, or its ids could be handed out again (G3)."""
        value = txn.snapshot_get(schema.SUPERBLOCK)
        assert value is not None, "the store was formatted"
        own, header = schema.decode_superblock(value), request.header
        if request.new_contents:
            return
        if header.cluster != own.cluster_id:
            raise InvalidArgument(
                f"the dump is of cluster {header.cluster!r}, and this is {own.cluster_id!r}: the chunks of its files "
                "are not here; `luciola load --names-only` loads everything but them"
            )
        if header.store != own.store and header.generation >= own.generation:
            raise InvalidArgument(
                f"the dump is of generation {header.generation} of the metadata, and this is {own.generation}: ids "
                "could be handed out twice; stop the cluster, and start it with `luciola up --accept-metadata-loss`"
            )

    def _store(self, txn: Transaction, records: Sequence[DumpRecord]) -> None:
        for record in records:
            match kind_of(record):
                case "inode":
                    self._store_inode(txn, record.inode)
                case "attribute":
                    attribute = record.attribute
                    txn.put(schema.attribute_key(attribute.inode, attribute.name), attribute.value)
                case "entry":
                    _store_entry(txn, record.entry.parent, record.entry.entry)

    def _store_inode(self, txn: Transaction, loaded: Inode) -> None:
        inode = Inode()
        inode.CopyFrom(loaded)
        for name in ("bytes_withheld", "open_for_writing", "others_write"):
            inode.ClearField(name)
        if inode.type == DIRECTORY and inode.link_count:
            count = inode.link_count - DIRECTORY_LINKS
            inode.link_count = DIRECTORY_LINKS
            if count:
                txn.put(schema.subdirectories_key(inode.id), schema.encode_count(count))
        if not inode.link_count:
            # A second attempt leaves two records: the collector forgets the one that leads to nothing.
            txn.put(schema.orphan_key(self._removal_clock.now_ms(), inode.id), b"")
        txn.put(schema.inode_key(inode.id), schema.encode_inode(inode))

    async def _place(self, inode: Inode) -> None:
        """Give a file a content and chains of this cluster. Raises: InvalidArgument, Unavailable."""
        inode.layout.CopyFrom(self._placer.place(self._placer.template(inode.layout, None)))
        if len(inode.inline_data) > inode.layout.inline_bytes:
            raise InvalidArgument(
                f"more than {inode.layout.inline_bytes} inline bytes, which the layout allows"
            )
        while True:
            try:
                inode.content = self._contents.take()
            except RetryAfterRefill:
                await self._contents.refill()
            else:
                return


def _interrupted() -> Unavailable:
    return Unavailable("this load was interrupted, or begun again elsewhere: begin it again")


def _check_header(header: DumpHeader) -> None:
    if header.format != FORMAT:
        raise InvalidArgument(f"the dump has format {header.format}, and this release loads format {FORMAT}")
    for number in (header.next_inode, header.next_content):
        if not FIRST_ID <= number <= CONTENT_MAX:
            raise InvalidArgument(f"the header's next_inode and next_content are {FIRST_ID} to {CONTENT_MAX}")


def _require_empty(txn: Transaction) -> Inode:
    """Return the root of an empty namespace. Raises: NotEmpty, Busy."""
    if txn.get_range(*schema.kind_range(b"D"), limit=1):
        raise NotEmpty(
            "the namespace is not empty: a dump is loaded into an empty one; remove what is there, or stop the cluster "
            'and start it with an empty metadata store (docs/operations.md, "Losing the metadata store")'
        )
    inodes = txn.get_range(*schema.kind_range(b"I"), limit=2)
    if len(inodes) > 1 or any(
        txn.get_range(*schema.kind_range(kind), limit=1) for kind in (b"O", b"P", b"S")
    ):
        raise Busy("removed files are open, or wait for collection: try again in a minute")
    assert inodes, "every namespace has a root"
    return schema.decode_inode(inodes[0][1])


def _empty(txn: Transaction) -> None:
    value = txn.get(schema.LOAD)
    if value is None:
        raise NotFound("no load is in progress: there is nothing to discard")
    txn.may_use_reserve = True
    for kind in CONTENT_KINDS:
        txn.delete_range(*schema.kind_range(kind))
    txn.put(schema.inode_key(ROOT_INODE), schema.encode_inode(LoadState.FromString(value).root))
    txn.delete(schema.LOAD)


def _store_entry(txn: Transaction, directory: int, loaded: pb.Dentry) -> None:
    entry = schema.Entry(loaded.inode, loaded.type, loaded.cookie or loaded.inode)
    value = schema.encode_entry(entry, loaded.name)
    by_cookie = schema.cookie_key(directory, entry.cookie)
    other = txn.snapshot_get(by_cookie)
    if other is not None and schema.decode_dentry(other).name != loaded.name:  # the same: a second attempt
        raise InvalidArgument(f"two entries of directory {directory} have the cookie {entry.cookie}")
    txn.put(schema.entry_key(directory, loaded.name), value)
    txn.put(by_cookie, value)


def _counts(trailer: DumpTrailer) -> str:
    return f"{trailer.inodes} inodes, {trailer.attributes} attributes, {trailer.entries} entries"


def _describe(header: DumpHeader) -> str:
    return f"cluster {header.cluster}, generation {header.generation}, moment {header.moment_ns}"


__all__ = ["RECORDS_MAX", "Load"]
