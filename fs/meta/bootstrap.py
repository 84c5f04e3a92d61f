"""Assemble a meta service over a store, and create or check the store."""

import asyncio
import secrets
from typing import Final

from ..clock import Clock
from ..config import MetaConfig
from ..errors import ConfigError, CorruptData
from ..ids import ROOT_INODE, new_incarnation
from ..kv import Durability, Engine, Transaction, run
from ..wire.pb.meta_pb2 import DIRECTORY, Inode
from . import schema
from .allocator import CONTENTS, INODES, Allocator
from .collector import Collector, Membership
from .context import DIRECTORY_LINKS, SharedState
from .dependencies import Dependencies
from .dump import Dumps
from .inode_counter import InodeCounter
from .layout import Placer
from .lengths import Lengths
from .load import Load
from .quarantine import Quarantine
from .removal_clock import RemovalClock, skip_changes
from .requests import Requests
from .schema import Superblock
from .service import MetaService
from .sessions import Holds, Writers
from .storage import Chunks, StorageControl
from .truncation import Truncations

FIRST_GENERATION: Final = 1


async def format_store(
    engine: Engine, *, cluster_id: str, clock: Clock, create: bool, owner: tuple[int, int] = (0, 0)
) -> Superblock:
    """Check that the store is this cluster's; with `create`, make the root directory in an empty one.

    The root directory belongs to `owner`, (uid, gid).

    Raises: ConfigError if it belongs to another cluster; CorruptData if it is empty and may not be created.
    """
    made = Superblock(secrets.randbits(63) | 1, FIRST_GENERATION, cluster_id)

    def prepare(txn: Transaction) -> Superblock:
        value = txn.get(schema.SUPERBLOCK)
        if value is not None:
            found = schema.decode_superblock(value)
            if found.cluster_id != cluster_id:
                raise ConfigError(f"the metadata belong to cluster {found.cluster_id!r}, not {cluster_id!r}")
            return found
        if not create:
            raise CorruptData("the metadata store holds nothing, not even a root directory")
        txn.put(schema.SUPERBLOCK, schema.encode_superblock(made))
        txn.put(schema.inode_key(ROOT_INODE), schema.encode_inode(_root(clock.unix_ns(), owner)))
        return made

    return await run(engine, prepare, durability=Durability.SYNC, clock=clock)


async def raise_generation(engine: Engine, generation: int, *, clock: Clock) -> Superblock:
    """Begin `generation`: what a newer state of this store held is given up.

    Its ids and its numbers of changes are not handed out again.
    """

    def begin(txn: Transaction) -> Superblock:
        value = txn.get(schema.SUPERBLOCK)
        assert value is not None, "the store was formatted"
        found = schema.decode_superblock(value)
        raised = found._replace(generation=max(generation, found.generation))
        txn.put(schema.SUPERBLOCK, schema.encode_superblock(raised))
        for kind in (INODES, CONTENTS):
            key = schema.allocator_key(kind)
            value = txn.get(key)
            # Quarantine may have moved it beyond a content of any generation.
            first = 0 if value is None else schema.decode_next(value)
            txn.put(key, schema.encode_next(max(first, generation << schema.GENERATION_BITS)))
        txn.delete_range(*schema.kind_range(schema.RESERVATIONS))  # the newer state may have used them
        skip_changes(txn)
        return raised

    return await run(engine, begin, durability=Durability.SYNC, clock=clock)


def _root(now_ns: int, owner: tuple[int, int]) -> Inode:
    return Inode(
        id=ROOT_INODE,
        type=DIRECTORY,
        permissions=0o755,
        uid=owner[0],
        gid=owner[1],
        link_count=DIRECTORY_LINKS,
        parent=ROOT_INODE,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        birth_ns=now_ns,
        change=1,
    )


async def build(  # noqa: PLR0913, the seams of the service
    engine: Engine,
    control: StorageControl,
    membership: Membership,
    *,
    config: MetaConfig,
    clock: Clock,
    cluster_id: str,
    session_timeout_s: float,
    history_s: float = 0.0,
    placer: Placer | None = None,
    create: bool = True,
) -> tuple[MetaService, Collector, Dependencies]:
    """Put together a service and its collector over `engine`. `create`: an empty store is a new cluster's.

    `history_s`: how far back a state may be restored, which needs the chunks of files that were removed since.
    """
    await format_store(engine, cluster_id=cluster_id, clock=clock, create=create)
    placer = placer or Placer(config)
    chunks = Chunks(control, placer)
    lengths = Lengths(chunks, clock)
    removal_clock = RemovalClock(engine, clock)
    inodes = Allocator(engine, INODES, clock)
    contents = Allocator(engine, CONTENTS, clock)
    # One record of the log, and one wait: a service that takes over serves nothing before.
    await asyncio.gather(removal_clock.start(), inodes.refill(), contents.refill())
    truncations = Truncations(engine, chunks, clock, removal_clock)
    writers = Writers()
    holds = Holds()
    requests = Requests()
    inode_counter = InodeCounter()
    quarantine = Quarantine(engine, clock, contents=contents, chunks=chunks)
    load = Load(
        engine,
        clock,
        placer,
        inodes=inodes,
        contents=contents,
        removal_clock=removal_clock,
        quarantine=quarantine,
        inode_counter=inode_counter,
    )
    load.resume()
    shared = SharedState(config, placer, inodes, contents, removal_clock, truncations)
    truncations.load()
    writers.load(engine)
    requests.load(engine, now_s=clock.monotonic())
    dependencies = Dependencies(
        engine=engine,
        clock=clock,
        shared=shared,
        control=control,
        lengths=lengths,
        truncations=truncations,
        writers=writers,
        holds=holds,
        requests=requests,
        inode_counter=inode_counter,
        quarantine=quarantine,
        dumps=Dumps(engine, clock, lengths),
        load=load,
        incarnation=new_incarnation(),
    )
    collector = Collector(
        engine,
        clock,
        config,
        chunks=chunks,
        quarantine=quarantine,
        writers=writers,
        holds=holds,
        requests=requests,
        inode_counter=inode_counter,
        removal_clock=removal_clock,
        membership=membership,
        session_timeout_s=session_timeout_s,
        history_s=history_s,
    )
    return MetaService(dependencies), collector, dependencies


__all__ = ["build", "format_store", "raise_generation"]
