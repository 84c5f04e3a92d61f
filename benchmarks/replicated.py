"""What a replicated key-value store costs beside an embedded one: this machine, three members of etcd on it.

    replicated.py [--seconds N] [--rounds N] [--takeovers N] [--json FILE]

    embedded    RocksDB, each operation synced to the disk before it is answered
    replicated  the same store as the primary of a log in etcd, without standbys on this machine
    take-over   three replicas as processes; the primary is killed, and a request is sent until another has stored it

An operation reads two pairs and writes two of 100 bytes, as making a file does. The members of etcd share disk and
processors with the store: only ratios within one run mean something. docs/decisions/0040-metadata-log.md has them.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from etcd_members import EtcdMembers
from luciola.kv import Durability, Engine, Transaction, run
from luciola.kv.applied import Applied
from luciola.kv.log.etcd import EtcdLog
from luciola.kv.replica import PrimaryEngine, Replica
from luciola.kv.rocksdb import RocksEngine
from replica_process import LEASE_S
from replica_processes import ReplicaProcess, count

PAIR_BYTES = 100
KEYS = 10_000
CLIENTS = (1, 16, 64)


def operate(transaction: Transaction) -> None:
    """Read two pairs and write them."""
    for key in (b"%06d" % random.randrange(KEYS), b"%06d" % random.randrange(KEYS)):
        transaction.get(key)
        transaction.put(key, random.randbytes(PAIR_BYTES))


async def rate(engine: Engine, clients: int, seconds: float) -> float:
    """Operations a second of so many clients, each of which waits for its operation to be stored."""
    done = 0
    begun_s = time.monotonic()

    async def client() -> None:
        nonlocal done
        while time.monotonic() - begun_s < seconds:
            await run(engine, operate, durability=Durability.SYNC)
            done += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return done / (time.monotonic() - begun_s)


async def embedded(directory: Path, clients: int, seconds: float) -> float:
    engine = RocksEngine(directory, create=True)
    try:
        return await rate(engine, clients, seconds)
    finally:
        engine.close()


@asynccontextmanager
async def primary(directory: Path, members: EtcdMembers, prefix: str):
    """The engine of a replica that leads a new log."""
    store = RocksEngine(directory, create=True)
    try:
        async with members.client() as client:
            log = await EtcdLog.open(client, prefix=prefix, cluster="benchmark", create=True)
            replica = Replica(log, Applied(store, log_id=b"benchmark", create=True), owner="benchmark")
            leads: asyncio.Future[PrimaryEngine] = asyncio.get_running_loop().create_future()

            async def serve(engine: PrimaryEngine) -> None:
                leads.set_result(engine)
                await asyncio.Event().wait()

            task = asyncio.create_task(replica.run(serve))
            try:
                yield await leads
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await log.close()
    finally:
        store.close()


async def replicated(
    directory: Path, members: EtcdMembers, prefix: str, *, clients: int, seconds: float
) -> float:
    async with primary(directory, members, prefix) as engine:
        return await rate(engine, clients, seconds)


def rates(directory: Path, members: EtcdMembers, *, seconds: float, rounds: int) -> list[dict[str, float]]:
    """Both, in turn."""
    rows = []
    for number in range(rounds):
        for clients in CLIENTS:
            name = f"{number}-{clients}"
            local = asyncio.run(embedded(directory / f"embedded-{name}", clients, seconds))
            agreed = asyncio.run(
                replicated(
                    directory / f"replicated-{name}",
                    members,
                    f"luciola/{name}/",
                    clients=clients,
                    seconds=seconds,
                )
            )
            rows.append({"clients": clients, "embedded_s": local, "replicated_s": agreed})
            print(
                f"{clients:3} clients: embedded {local:8.0f}/s, replicated {agreed:8.0f}/s, ratio {agreed / local:.2f}"
            )
    return rows


def takeovers(directory: Path, members: EtcdMembers, times: int) -> list[float]:
    """Seconds from each `kill -9` to the first request that another has stored."""
    taken = []
    with ExitStack() as stack:
        replicas = []
        for name in ("first", "second", "third"):
            replicas.append(ReplicaProcess(directory, name, members.endpoints))
            stack.callback(replicas[-1].end)
        for turn in range(times):
            _, leader = count(replicas, f"{turn}/before")
            leader.kill()
            begun_s = time.monotonic()
            count([replica for replica in replicas if replica is not leader], f"{turn}/after")
            taken.append(time.monotonic() - begun_s)
            leader.start()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--takeovers", type=int, default=50)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, EtcdMembers(Path(name) / "etcd") as members:
        rows = rates(Path(name), members, seconds=arguments.seconds, rounds=arguments.rounds)
        taken = takeovers(Path(name), members, arguments.takeovers) if arguments.takeovers > 1 else []
    if taken:
        hundredths = statistics.quantiles(taken, n=100, method="inclusive")
        print(
            f"{len(taken)} take-overs with a lease of {LEASE_S:g} s:"
            f" p50 {hundredths[49]:.2f} s, p99 {hundredths[98]:.2f} s, worst {max(taken):.2f} s"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rates": rows, "takeovers_s": taken}, indent=1))


if __name__ == "__main__":
    main()
