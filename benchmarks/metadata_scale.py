"""What names cost in bytes, and how many one primary makes: an embedded store, and one that follows a log in etcd.

    metadata_scale.py [--files N] [--log-files N] [--pairs N] [--seconds N] [--json FILE]

    store   files of a cluster made as clients make them; then the store is compacted, and its bytes are divided by them
    log     the same operations by 64 clients through a primary whose log is in three members of etcd: bytes of a
            record, of the members' disks and of their databases, for each operation
    reads   processor time of one read of a pair in a store of N pairs, for caches smaller and larger than the store
    rates   creates with their closes a second, of 1, 16 and 64 clients, in the store and through the log, in turn

The members of etcd share the disk and the processors with the store: only ratios within one run mean something.
docs/scale.md has what follows from it.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import rocksdict

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from etcd_members import EtcdMembers
from luciola.clock import SystemClock
from luciola.config import MetaConfig
from luciola.kv import Engine
from luciola.kv.applied import Applied
from luciola.kv.log import OrderedLog, Record
from luciola.kv.log.etcd import EtcdLog
from luciola.kv.replica import PrimaryEngine, Replica
from luciola.kv.rocksdb import RocksEngine, store_options
from luciola.meta import schema
from luciola.meta.bootstrap import build
from luciola.meta.committed_replies import committed
from luciola.meta.fake_control import FakeControl
from luciola.meta.layout import Placer
from luciola.wire import TRUSTED, Identity
from luciola.wire.pb import meta_pb2 as pb
from luciola.wire.pb.common_pb2 import Caller
from luciola.wire.pb.mgmtd_pb2 import ChainTable
from luciola.wire.preserialized import Preserialized

CLIENTS = (1, 16, 64)
IDENTITY = Identity(TRUSTED, 0, 0, ())
FILES_A_DIRECTORY = 1000
INLINE_BYTES = 2048
LENGTH_BYTES = 64 << 20  # of a file that has chunks: where they lie costs its inode nothing


class NoMembers:
    async def clients(self) -> None:
        """No client is known."""
        return


class Client:
    """One client of a metadata service without a carrier, with one request at a time."""

    def __init__(self, service: object, number: int) -> None:
        self._service = service
        self._number = number
        self._sequence = 0

    async def call(self, method: str, request):
        self._sequence += 1
        request.caller.CopyFrom(
            Caller(client=self._number, sequence=self._sequence, settled_below=self._sequence, groups=[0])
        )
        reply = getattr(self._service, method)(request, IDENTITY)
        reply = await reply if asyncio.iscoroutine(reply) else reply
        return reply.message() if isinstance(reply, Preserialized) else reply

    async def mkdir(self, name: bytes) -> int:
        path = pb.Path(at=1, path=name)
        return (await self.call("mkdir", pb.MkdirRequest(path=path, permissions=0o755))).inode.id

    async def make(self, directory: int, name: bytes, length: pb.LengthHint) -> None:
        """Create a file and close it with that length."""
        path = pb.Path(at=directory, path=name)
        made = await self.call("create", pb.CreateRequest(path=path, permissions=0o644, write=True))
        close = pb.CloseOne(inode=made.inode.id, session=made.session, length=length)
        await self.call("close", pb.CloseRequest(closes=[close]))

    async def rename(self, directory: int, name: bytes) -> None:
        target = pb.Path(at=directory, path=b"renamed-" + name)
        await self.call("rename", pb.RenameRequest(source=pb.Path(at=directory, path=name), target=target))

    async def unlink(self, directory: int, name: bytes) -> None:
        await self.call("unlink", pb.UnlinkRequest(path=pb.Path(at=directory, path=b"renamed-" + name)))


async def open_service(engine: Engine, durability: str = "write") -> object:
    config = MetaConfig(durability=durability)
    placer = Placer(config)
    placer.set_tables([ChainTable(id=1, version=1, chains=range(1, 13), replicas=2)])
    service, _, _ = await build(
        engine,
        FakeControl(),
        NoMembers(),
        config=config,
        clock=SystemClock(),
        cluster_id="benchmark",
        session_timeout_s=60,
        placer=placer,
    )
    return committed(service, engine)


async def fill(
    service: object, files: int, length: pb.LengthHint, clients: int = 64
) -> list[tuple[int, bytes]]:
    """Make so many files, in directories of FILES_A_DIRECTORY; return where."""
    made: list[tuple[int, bytes]] = []

    async def work(number: int) -> None:
        client = Client(service, number + 1)
        directory = 0
        for index in range(number, files, clients):
            if index // clients % FILES_A_DIRECTORY == 0:
                directory = await client.mkdir(b"directory-%d-%d" % (number, index))
            name = b"train-%08d.jpg" % index
            await client.make(directory, name, length)
            made.append((directory, name))

    await asyncio.gather(*(work(number) for number in range(clients)))
    return made


# Bytes.


def compacted_bytes(directory: Path) -> int:
    """Bytes of a closed store when nothing is in it twice."""
    options = store_options()
    database = rocksdict.Rdict(str(directory), options=options)
    database.flush()
    database.compact_range(None, None)
    database.close()
    return disk_bytes(directory, ".sst")


def disk_bytes(directory: Path, suffix: str = "") -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.rglob(f"*{suffix}") if path.is_file())


def store_bytes(directory: Path, files: int) -> dict[str, float]:
    """Bytes of a file's inode and name, of the common kinds."""
    kinds = {
        "empty file": pb.LengthHint(length=0),
        "file with chunks": pb.LengthHint(length=LENGTH_BYTES),
    }
    found = {}
    for kind, length in kinds.items():
        path = directory / kind.replace(" ", "-")

        async def work(path: Path = path, length: pb.LengthHint = length) -> float:
            engine = RocksEngine(path, create=True, cached=schema.INODES)
            begun_s = time.monotonic()
            await fill(await open_service(engine), files, length)
            taken_s = time.monotonic() - begun_s
            engine.close()
            return taken_s

        taken_s = asyncio.run(work())
        found[kind] = compacted_bytes(path) / files
        print(f"store: {kind}: {found[kind]:.0f} bytes each, made {files / taken_s:.0f} a second", flush=True)
    return found


def read_us(directory: Path, pairs: int) -> dict[str, float]:
    """Processor time of one read, by MiB of cache."""

    def key(number: int) -> bytes:
        return (number * 2654435761 % 2**40).to_bytes(8)

    engine = RocksEngine(directory, create=True)
    for first in range(0, pairs, 10_000):
        transaction = engine.begin()
        for number in range(first, first + 10_000):
            transaction.put(key(number), number.to_bytes(8) * 3 + bytes(50))
        transaction.commit()
    engine.close()
    size = compacted_bytes(directory)
    found = {}
    for cache in (16 << 20, 64 << 20, 256 << 20):
        engine = RocksEngine(directory, cache_bytes=cache)
        chosen = random.Random(cache)
        for count in (30_000, 30_000):  # the first fill the cache
            begun_s = time.process_time()
            for _ in range(count):
                assert engine.begin().get(key(chosen.randrange(pairs)))
            found[f"{cache >> 20} MiB"] = (time.process_time() - begun_s) / count * 1e6
        engine.close()
    print(
        f"reads: {pairs} pairs, {size >> 20} MiB:",
        {name: round(us, 1) for name, us in found.items()},
        flush=True,
    )
    return found


class CountingLog:
    """A log that counts what is appended to it."""

    def __init__(self, log: OrderedLog) -> None:
        self._log = log
        self.records = self.bytes = 0

    async def append(self, record: Record) -> None:
        self.records += 1
        self.bytes += len(record.encode())
        await self._log.append(record)

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)


@asynccontextmanager
async def primary(
    directory: Path, members: EtcdMembers, prefix: str
) -> AsyncIterator[tuple[CountingLog, object]]:
    """A metadata service that leads a new log."""
    store = RocksEngine(directory, create=True, cached=schema.INODES)
    try:
        async with members.client() as client:
            log = CountingLog(await EtcdLog.open(client, prefix=prefix, cluster="benchmark", create=True))
            replica = Replica(log, Applied(store, log_id=b"benchmark", create=True), owner="benchmark")
            leads: asyncio.Future[object] = asyncio.get_running_loop().create_future()

            async def serve(engine: PrimaryEngine) -> None:
                leads.set_result(await open_service(engine))
                await asyncio.Event().wait()

            task = asyncio.create_task(replica.run(serve))
            try:
                yield log, await leads
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await log.close()
    finally:
        store.close()


async def log_bytes(directory: Path, members: EtcdMembers, files: int) -> dict[str, dict[str, float]]:
    """Bytes in the log of each kind of operation by 64 clients."""
    found = {}
    async with primary(directory / "logged", members, "scale/log/") as (log, service):
        length = pb.LengthHint(length=LENGTH_BYTES)
        made: list[tuple[int, bytes]] = []

        async def count(kind: str, work: Callable[[], Awaitable[None]]) -> None:
            records, size, before = log.records, log.bytes, database_bytes(members)
            await work()
            found[kind] = {
                "operations_in_a_record": files / (log.records - records),
                "log_bytes": (log.bytes - size) / files,
                "etcd_bytes": (database_bytes(members) - before) / files,
            }
            print("log:", kind, {name: round(value, 1) for name, value in found[kind].items()}, flush=True)

        async def make() -> None:
            made.extend(await fill(service, files, length))

        clients = [Client(service, 1000 + number) for number in range(64)]

        def each(method: str) -> Callable[[], Awaitable[None]]:
            async def work() -> None:
                async def some(number: int, client: Client) -> None:
                    for place in made[number::64]:
                        await getattr(client, method)(*place)

                await asyncio.gather(*(some(number, client) for number, client in enumerate(clients)))

            return work

        await count("create and close", make)
        await count("rename", each("rename"))
        await count("unlink", each("unlink"))
    return found


def database_bytes(members: EtcdMembers) -> int:
    """Bytes of the first member's database: those that count against its quota."""
    return disk_bytes(members.directory / "m0" / "member" / "snap", "db")


# Rates.


async def rate(service: object, clients: int, seconds: float) -> float:
    """Files a second that so many clients make, each of which waits for its file."""
    done = 0
    begun_s = time.monotonic()

    async def work(number: int) -> None:
        nonlocal done
        client = Client(service, number + 1)
        directory = await client.mkdir(b"of-%d" % number)
        while time.monotonic() - begun_s < seconds:
            await client.make(directory, b"%08d" % done, pb.LengthHint(length=INLINE_BYTES))
            done += 1

    await asyncio.gather(*(work(number) for number in range(clients)))
    return done / (time.monotonic() - begun_s)


def rates(directory: Path, members: EtcdMembers, seconds: float) -> list[dict[str, float]]:
    rows = []
    for clients in CLIENTS:

        async def embedded(durability: str, clients: int = clients) -> float:
            engine = RocksEngine(directory / f"{durability}-{clients}", create=True, cached=schema.INODES)
            try:
                return await rate(await open_service(engine, durability), clients, seconds)
            finally:
                engine.close()

        async def replicated(clients: int = clients) -> float:
            async with primary(directory / f"replicated-{clients}", members, f"scale/{clients}/") as (
                _,
                service,
            ):
                return await rate(service, clients, seconds)

        row = {
            "clients": clients,
            "write_s": asyncio.run(embedded("write")),
            "sync_s": asyncio.run(embedded("sync")),
            "replicated_s": asyncio.run(replicated()),
        }
        rows.append(row)
        print(
            f"{clients:3} clients: embedded {row['write_s']:6.0f}/s, synced {row['sync_s']:6.0f}/s, replicated "
            f"{row['replicated_s']:6.0f}/s: {row['replicated_s'] / row['sync_s']:.2f} of synced",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--log-files", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=4_000_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found: dict[str, object] = {"cpus": os.cpu_count(), "store": store_bytes(Path(name), arguments.files)}
        found["read_us"] = read_us(Path(name) / "reads", arguments.pairs)
        with EtcdMembers(Path(name) / "etcd") as members:
            found["log"] = asyncio.run(log_bytes(Path(name), members, arguments.log_files))
            found["rates"] = rates(Path(name), members, arguments.seconds)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
