"""How fast a replicated metadata store could be: this machine, three members of etcd on it, three ways.

    metadata_log.py [--seconds N] [--json FILE] [--postgresql DSN]

    put         a bare put, one after another: what an agreement of three costs here
    log         records of 256 operations, one in flight, by the leader of an ordered log (luciola.kv.log)
    keys        each operation is a transaction of etcd that compares and puts keys; 1, 16 and 64 at a time
    postgresql  each operation is a serializable transaction; DSN names a primary with two synchronous standbys

An operation reads two pairs and writes two, as making a file does: 100 bytes each. The three members share a disk and
two processors with the client: only ratios within one run mean something. docs/decisions/0040-metadata-log.md has them.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from etcd_members import EtcdMembers
from luciola.kv.log import Appender, Contender
from luciola.kv.log.etcd import EtcdLog
from luciola.wire.etcd import EtcdClient, changed_at, created_at, put

RECORD_OPERATIONS = 256
PAIR_BYTES = 100
KEYS = 10_000
ROUNDS = 3
LEASE_S = 60.0


@dataclass(frozen=True)
class Figure:
    """One way, with so many at a time."""

    way: str
    parallel: int
    operations_s: float
    p50_ms: float
    p99_ms: float


async def measure(way: str, parallel: int, seconds: float, act: Callable[[int], Awaitable[int]]) -> Figure:
    """Let `parallel` tasks call `act(task)`, which returns how many operations it did, for so long."""
    latencies: list[float] = []
    done = 0
    end = time.monotonic() + seconds

    async def work(task: int) -> None:
        nonlocal done
        while (begun := time.monotonic()) < end:
            count = await act(task)
            done += count
            latencies.append(time.monotonic() - begun)

    begun = time.monotonic()
    await asyncio.gather(*(work(task) for task in range(parallel)))
    rate = done / (time.monotonic() - begun)
    hundredths = statistics.quantiles(latencies, n=100)
    return Figure(way, parallel, rate, hundredths[49] * 1e3, hundredths[98] * 1e3)


async def bare_put(client: EtcdClient, seconds: float) -> Figure:
    """What one agreement costs."""

    async def act(_task: int) -> int:
        await client.transact([], [put(b"bare", bytes(PAIR_BYTES))])
        return 1

    return await measure("put", 1, seconds, act)


async def log_of_records(client: EtcdClient, seconds: float, prefix: str) -> Figure:
    """Group commits as records of an ordered log."""
    log = await EtcdLog.open(client, prefix=prefix, cluster="benchmark", create=True)
    leadership = await Contender(log, "benchmark", lease_s=LEASE_S).lead()
    appender = Appender(log, leadership, (await log.bounds()).last)
    payload = random.randbytes(RECORD_OPERATIONS * 2 * PAIR_BYTES)

    async def act(_task: int) -> int:
        await appender.append(payload)
        return RECORD_OPERATIONS

    try:
        return await measure("log", 1, seconds, act)
    finally:
        await log.trim(appender.last.index + 1)
        await leadership.resign()
        await log.close()


async def keys_of_etcd(client: EtcdClient, seconds: float, parallel: int) -> Figure:
    """Each operation by itself: read two keys, write two, if both are as they were read; else again."""

    async def act(_task: int) -> int:
        first, second = (b"key/%d" % random.randrange(KEYS) for _ in range(2))
        if first == second:
            return 0
        while True:
            replies = await asyncio.gather(*(client.range(key, limit=1) for key in (first, second)))
            compare = [
                changed_at(key, reply.kvs[0].mod_revision) if reply.kvs else created_at(key, 0)
                for key, reply in zip((first, second), replies, strict=True)
            ]
            reply = await client.transact(compare, [put(key, bytes(PAIR_BYTES)) for key in (first, second)])
            if reply.succeeded:
                return 1

    return await measure("keys", parallel, seconds, act)


async def in_flight(client: EtcdClient, together: int = 4, batches: int = 100) -> float:
    """Return which part of the appends etcd refuses, if several are sent in order without waiting for each other."""
    refused = 0
    number = itertools.count(1)
    await client.transact([], [put(b"flight", b"0")])
    reply = await client.range(b"flight", limit=1)
    for _ in range(batches):
        revision = reply.kvs[0].mod_revision
        # Each expects to be executed directly behind the one before, which is what an ordered log needs.
        calls = [
            client.transact([changed_at(b"flight", revision + step)], [put(b"flight", b"%d" % next(number))])
            for step in range(together)
        ]
        refused += sum(not answer.succeeded for answer in await asyncio.gather(*calls))
        reply = await client.range(b"flight", limit=1)
    return refused / (together * batches)


async def serializable_rows(dsn: str, seconds: float, parallel: int) -> Figure:
    """The same in PostgreSQL (`pip install asyncpg`)."""
    import asyncpg

    pool = await asyncpg.create_pool(dsn, min_size=parallel, max_size=parallel)
    await pool.execute("CREATE TABLE IF NOT EXISTS pairs (key bytea PRIMARY KEY, value bytea)")
    upsert = "INSERT INTO pairs VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value"

    async def act(_task: int) -> int:
        keys = sorted({b"key/%d" % random.randrange(KEYS) for _ in range(2)})
        while True:
            try:
                async with pool.acquire() as connection, connection.transaction(isolation="serializable"):
                    for key in keys:
                        await connection.fetchval("SELECT value FROM pairs WHERE key = $1", key)
                    for key in keys:
                        await connection.execute(upsert, key, random.randbytes(PAIR_BYTES))
            except asyncpg.SerializationError:
                continue
            return 1

    try:
        return await measure("postgresql", parallel, seconds, act)
    finally:
        await pool.close()


async def run(members: EtcdMembers, seconds: float, dsn: str | None) -> tuple[list[Figure], list[float]]:
    """Every way in turn, several rounds."""
    figures, refused = [], []
    async with members.client(request_s=60.0) as client:
        for number in range(ROUNDS):
            figures.append(await bare_put(client, seconds))
            figures.append(await log_of_records(client, seconds, f"luciola/benchmark{number}/"))
            figures += [await keys_of_etcd(client, seconds, parallel) for parallel in (1, 16, 64)]
            refused.append(await in_flight(client))
            if dsn:
                figures += [await serializable_rows(dsn, seconds, parallel) for parallel in (1, 16, 64)]
    return figures, refused


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--postgresql", metavar="DSN", help="a primary with two synchronous standbys")
    options = parser.parse_args()
    quota = ("--quota-backend-bytes", str(4 << 30))
    with (
        tempfile.TemporaryDirectory() as directory,
        EtcdMembers(Path(directory) / "etcd", options=quota) as members,
    ):
        figures, refused = asyncio.run(run(members, options.seconds, options.postgresql))
    print(f"{'way':12}{'at a time':>10}{'operations/s':>14}{'p50 ms':>9}{'p99 ms':>9}")
    for figure in sorted(figures, key=lambda figure: (figure.way, figure.parallel)):
        print(
            f"{figure.way:12}{figure.parallel:10}{figure.operations_s:14.0f}"
            f"{figure.p50_ms:9.1f}{figure.p99_ms:9.1f}"
        )
    print("refused of four in flight:", ", ".join(f"{part:.0%}" for part in refused))
    if options.json:
        options.json.write_text(
            json.dumps({"figures": [asdict(figure) for figure in figures], "refused": refused})
        )


if __name__ == "__main__":
    main()
