"""A replica that begins behind a trimmed log, or without a store: from its own checkpoints, or another's over gRPC."""

import asyncio
import shutil
from contextlib import asynccontextmanager

import pytest

from luciola.clock import SystemClock
from luciola.config import MetadataConfig
from luciola.errors import InvalidArgument, NotFound, PermissionDenied, Timeout, Unavailable
from luciola.kv.applied import Applied
from luciola.kv.checkpoint import Catalog, DirectorySource
from luciola.kv.checkpoint.catch_up import StoreDisk, open_store
from luciola.kv.checkpoint.keeper import Announcement, Keeper, Member, Policy, StoreCheckpoints, announcements
from luciola.kv.checkpoint.remote import RemoteSource
from luciola.kv.log import START, Diverged, MemoryLog
from luciola.kv.replica_service import ReplicaService
from luciola.kv.rocksdb import RocksEngine
from luciola.wire import RpcServer, methods
from luciola.wire.credentials import ADMIN, CLIENT, SERVICE, mint
from luciola.wire.pb import replicas_pb2 as pb
from luciola.wire.rpc import RpcClients
from store_content import content

from ..records import chain

LOG = b"cluster 1, meta"
SECRET = b"s" * 32


class NoPause(SystemClock):
    """Waits between tries take no time."""

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(0)


async def log_of(records) -> MemoryLog:
    """A log with these records, whose epoch is that of the first claim."""
    log = MemoryLog()
    claim = await log.create_claim("leader", lease_s=5.0)
    assert claim is not None
    assert claim.epoch == records[0].epoch
    for record in records:
        await log.append(record)
    return log


def store(path, records) -> None:
    """A store as `records` give it, closed."""
    engine = RocksEngine(path, create=True)
    try:
        applied = Applied(engine, log_id=LOG, create=True)
        for record in records:
            applied.apply(record)
    finally:
        engine.close()


async def checkpoint(path, catalog: Catalog, log: MemoryLog, name: str) -> None:
    """Make one of the store at `path`, and announce it under `name`."""
    engine = RocksEngine(path, create=True)
    try:
        made = StoreCheckpoints(Applied(engine, log_id=LOG, create=True), catalog)
        keeper = Keeper(
            log, made, member=Member(name, name), policy=Policy.of(MetadataConfig(checkpoint_records=1))
        )
        await keeper.step()
    finally:
        engine.close()


def disk(tmp_path, sources) -> StoreDisk:
    """This replica's."""
    return StoreDisk(tmp_path / "ours", Catalog(tmp_path / "our checkpoints"), LOG, sources, clock=NoPause())


def no_source(address: str):
    raise AssertionError(f"{address} need not be asked")


async def continued(log: MemoryLog, ours: StoreDisk, records) -> None:
    """Open the store, carry out the rest, and compare it with one that has carried out all."""
    applied = await open_store(log, ours, name="ours")
    try:
        assert applied.position.index >= (await log.bounds()).first - 1
        while rest := await log.read(applied.position):
            for record in rest:
                applied.apply(record)
        whole = RocksEngine(ours.store.with_name("whole"), create=True)
        try:
            expected = Applied(whole, log_id=LOG, create=True)
            for record in records:
                expected.apply(record)
            assert applied.position == expected.position
            assert content(applied.engine) == content(whole)
        finally:
            whole.close()
    finally:
        applied.engine.close()


@pytest.mark.parametrize("position", [0, 5, 19])
def test_store_that_the_log_continues_is_opened_as_it_is(tmp_path, position):
    records = chain(30)

    async def scenario():
        log = await log_of(records)
        await log.trim(position + 1)
        store(tmp_path / "ours", records[:position])
        await continued(log, disk(tmp_path, no_source), records)

    asyncio.run(scenario())


@pytest.mark.parametrize("position", [None, 0, 5])
def test_store_behind_a_trimmed_log_begins_with_the_newest_checkpoint_of_another(tmp_path, position):
    records = chain(30)

    async def scenario():
        log = await log_of(records)
        older, newer = Catalog(tmp_path / "older"), Catalog(tmp_path / "newer")
        store(tmp_path / "first", records[:20])
        await checkpoint(tmp_path / "first", older, log, "older")
        store(tmp_path / "second", records[:25])
        await checkpoint(tmp_path / "second", newer, log, "newer")
        await log.trim(15)
        if position is not None:
            store(tmp_path / "ours", records[:position])
        asked = []

        def source(address):
            asked.append(address)
            return DirectorySource({"older": older, "newer": newer}[address])

        await continued(log, disk(tmp_path, source), records)
        assert asked == ["newer"]

    asyncio.run(scenario())


def test_own_checkpoint_is_enough_where_the_log_continues_it(tmp_path):
    records = chain(30)

    async def scenario():
        log = await log_of(records)
        ours = disk(tmp_path, no_source)
        store(tmp_path / "ours", records[:20])
        await checkpoint(tmp_path / "ours", ours.catalog, log, "ours")
        await log.trim(21)
        shutil.rmtree(tmp_path / "ours")  # as of a process that was killed while it replaced the store
        await continued(log, ours, records)

    asyncio.run(scenario())


def test_own_checkpoint_that_is_damaged_is_replaced_by_that_of_another(tmp_path):
    records = chain(30)

    async def scenario():
        log = await log_of(records)
        theirs = Catalog(tmp_path / "theirs")
        ours = disk(tmp_path, lambda address: DirectorySource({"theirs": theirs}[address]))
        for path, catalog in ((tmp_path / "first", theirs), (tmp_path / "ours", ours.catalog)):
            store(path, records[:20])
            await checkpoint(path, catalog, log, catalog.directory.name)
        await log.trim(21)
        damaged = ours.catalog.checkpoints()[-1]
        (damaged.directory / "CURRENT").write_bytes(b"damaged")
        shutil.rmtree(tmp_path / "ours")
        store(tmp_path / "ours", records[:5])
        await continued(log, ours, records)
        assert len(ours.catalog.checkpoints()) == 1
        await ours.catalog.verify(ours.catalog.checkpoints()[-1])

    asyncio.run(scenario())


def test_address_of_a_stranger_costs_no_more_than_a_line_in_the_log(tmp_path):
    """A port may be given to another process."""
    records = chain(30)

    async def scenario():
        log = await log_of(records)
        theirs = Catalog(tmp_path / "theirs")
        store(tmp_path / "first", records[:20])
        await checkpoint(tmp_path / "first", theirs, log, "theirs")
        await log.trim(21)
        server = RpcServer((), secret=b"o" * 32)
        address = await server.start()
        try:
            await log.announce("moved", Announcement(records[25].position, address).encode())
            async with RpcClients(mint(SECRET, role=SERVICE)) as clients:

                def source(found):
                    return DirectorySource(theirs) if found == "theirs" else RemoteSource(clients, found)

                await continued(log, disk(tmp_path, source), records)
        finally:
            await server.stop(grace_s=0.0)

    asyncio.run(scenario())


def test_checkpoint_that_the_log_does_not_continue_is_passed_over(tmp_path):
    records, others = chain(30), chain(29, tag=b"other")

    async def scenario():
        log = await log_of(records)
        ahead, good = Catalog(tmp_path / "ahead"), Catalog(tmp_path / "good")
        store(tmp_path / "first", others)  # of a history that a restored log does not have
        await checkpoint(tmp_path / "first", ahead, await log_of(others), "ahead")
        await log.announce("ahead", Announcement(others[-1].position, "ahead").encode())
        store(tmp_path / "second", records[:25])
        await checkpoint(tmp_path / "second", good, log, "good")
        await log.announce("gone", Announcement(records[27].position, "gone").encode())
        await log.trim(15)
        catalogs = {"ahead": ahead, "good": good, "gone": Catalog(tmp_path / "gone")}
        await continued(log, disk(tmp_path, lambda address: DirectorySource(catalogs[address])), records)

    asyncio.run(scenario())


def test_replica_that_gets_no_checkpoint_says_so_and_keeps_what_it_has(tmp_path):
    records = chain(30)

    async def scenario():
        log = await log_of(records)
        await log.announce("empty", Announcement(START, "empty").encode())
        await log.announce("ours", Announcement(records[20].position, "ours").encode())
        store(tmp_path / "ours", records[:5])
        await log.trim(15)
        with pytest.raises(Unavailable, match="none gives one"):
            await open_store(log, disk(tmp_path, no_source), name="ours")
        engine = RocksEngine(tmp_path / "ours", create=False)
        try:
            assert Applied(engine, log_id=LOG).position.index == 5
        finally:
            engine.close()

    asyncio.run(scenario())


def test_store_of_another_history_is_left_as_it_is(tmp_path):
    records = chain(40)

    async def scenario():
        log = await log_of(records[:30])
        store(tmp_path / "ours", records)
        with pytest.raises(Diverged):
            await open_store(log, disk(tmp_path, no_source), name="ours")
        engine = RocksEngine(tmp_path / "ours", create=False)
        try:
            assert Applied(engine, log_id=LOG).position == records[-1].position
        finally:
            engine.close()

    asyncio.run(scenario())


# Over gRPC.


@asynccontextmanager
async def served(catalog: Catalog, role=SERVICE):
    """The catalog of another replica, and a client with a token for `role`."""
    server = RpcServer(methods.bind(methods.Replicas, ReplicaService(catalog)), secret=SECRET)
    address = await server.start()
    try:
        async with RpcClients(mint(SECRET, role=role)) as clients:
            yield clients, address
    finally:
        await server.stop(grace_s=0.0)


def test_checkpoint_is_fetched_from_another_process(tmp_path):
    records = chain(300)

    async def scenario():
        log = await log_of(records)
        theirs = Catalog(tmp_path / "theirs")
        store(tmp_path / "first", records[:250])
        await checkpoint(tmp_path / "first", theirs, log, "theirs")
        await log.trim(200)
        async with served(theirs) as (clients, address):
            await log.announce("theirs", Announcement(records[249].position, address).encode())
            assert (await announcements(log))["theirs"].address == address
            await continued(log, disk(tmp_path, lambda found: RemoteSource(clients, found)), records)

    asyncio.run(scenario())


@pytest.mark.parametrize("role", [CLIENT, ADMIN])
def test_only_services_are_given_checkpoints(tmp_path, role):
    async def scenario():
        async with served(Catalog(tmp_path / "theirs"), role) as (clients, address):
            source = RemoteSource(clients, address)
            with pytest.raises(PermissionDenied):
                await source.seals()
            with pytest.raises(PermissionDenied):
                await read(source, "0" * 20, "CURRENT")

    asyncio.run(scenario())


async def read(source: RemoteSource, name: str, file: str, offset_bytes: int = 0) -> bytes:
    return b"".join([chunk async for chunk in source.read(name, file, offset_bytes)])


def test_names_lead_to_files_of_checkpoints_only(tmp_path):
    records = chain(20)

    async def scenario():
        theirs = Catalog(tmp_path / "theirs")
        store(tmp_path / "first", records)
        await checkpoint(tmp_path / "first", theirs, await log_of(records), "theirs")
        (tmp_path / "theirs" / "secret").write_bytes(b"secret")
        (tmp_path / "secret").write_bytes(b"secret")
        name = f"{20:020d}"
        whole = (tmp_path / "theirs" / name / "CURRENT").read_bytes()
        async with served(theirs) as (clients, address):
            source = RemoteSource(clients, address)
            assert await read(source, name, "CURRENT") == whole
            assert await read(source, name, "CURRENT", 3) == whole[3:]
            assert await read(source, name, "CURRENT", len(whole) + 1) == b""
            for directory, file in (
                (name, "../secret"),
                (name, "../../secret"),
                (name, ".."),
                (name, str(tmp_path / "secret")),
                (name, ""),
                ("..", "secret"),
                (".", "secret"),
                ("", "secret"),
                (f"{name}/..", "secret"),
                (str(tmp_path), "secret"),
            ):
                with pytest.raises(InvalidArgument):
                    await read(source, directory, file)
            with pytest.raises(NotFound):
                await read(source, f"{21:020d}", "CURRENT")

    asyncio.run(scenario())


class Silent(ReplicaService):
    """Serves the method, and never sends anything."""

    async def list_seals(self, request, identity):
        raise NotFound("nothing")

    async def read_file(self, request, identity):
        await asyncio.Event().wait()
        yield pb.FileBytes()


def test_source_that_sends_nothing_is_given_up(tmp_path):
    async def scenario():
        server = RpcServer(methods.bind(methods.Replicas, Silent(Catalog(tmp_path))), secret=SECRET)
        address = await server.start()
        try:
            async with RpcClients(mint(SECRET, role=SERVICE)) as clients:
                with pytest.raises(Timeout, match="sends nothing"):
                    await read(RemoteSource(clients, address, silence_s=0.1), "0" * 20, "CURRENT")
        finally:
            await server.stop(grace_s=0.0)

    asyncio.run(scenario())
