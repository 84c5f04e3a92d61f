"""One replica as a process of its own, which counts: `python -m replica_process DIRECTORY PREFIX OWNER ENDPOINT...`

Reads requests from its standard input, one a line, and answers each with one line:

    count REQUEST   `done VALUE` once it is stored, the same however often it is asked; `refused REASON`
    dump            `at INDEX DIGEST`: its position, and a digest of all that it holds
    role            `primary` or another

Ends with its input, and with the replica.
"""

import asyncio
import sys
from hashlib import sha256
from pathlib import Path

from luciola.errors import Error, Unavailable
from luciola.kv.applied import Applied
from luciola.kv.log.etcd import EtcdLog
from luciola.kv.replica import PrimaryEngine, Replica
from luciola.kv.rocksdb import RocksEngine
from luciola.wire.etcd import EtcdClient, EtcdOptions

LEASE_S = 2.0
OPEN_RETRY_S = 0.1


class Process:
    """The replica and those who ask it."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.primary: PrimaryEngine | None = None

    async def serve(self, engine: PrimaryEngine) -> None:
        self.primary = engine
        try:
            await asyncio.Event().wait()
        finally:
            self.primary = None

    async def answer(self, request: str) -> str:
        match request.split():
            case ["count", name]:
                try:
                    return f"done {await self.count(name.encode())}"
                except Error as error:
                    return f"refused {error}"
            case ["dump"]:
                return f"at {self.replica.applied.position.index} {digest(self.replica.applied)}"
            case ["role"]:
                return self.replica.role.value
        return "refused unknown request"

    async def count(self, name: bytes) -> int:
        engine = self.primary
        if engine is None:
            raise Unavailable(f"it is {self.replica.role.value}")
        transaction = engine.begin()
        done = transaction.get(b"request/" + name)
        value = int(done) if done is not None else int(transaction.get(b"counter") or b"0") + 1
        if done is None:
            transaction.put(b"counter", b"%d" % value)
            transaction.put(b"request/" + name, b"%d" % value)
        transaction.commit()
        await engine.sync()
        return value


def digest(applied: Applied) -> str:
    """Of every pair, in order."""
    reader = applied.engine.begin()
    try:
        pairs = reader.snapshot_range(b"\x00", b"\xff")
        return sha256(repr(list(pairs)).encode()).hexdigest()
    finally:
        reader.cancel()


async def requests(process: Process) -> None:
    """Answer until the input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while line := await reader.readline():
            print(await process.answer(line.decode()), flush=True)
    finally:
        transport.close()


async def open_log(client: EtcdClient, prefix: str) -> EtcdLog:
    while True:
        try:
            return await EtcdLog.open(client, prefix=prefix, cluster="test", create=True)
        except Error as error:
            print(f"the log cannot be opened: {error}", file=sys.stderr, flush=True)
            await asyncio.sleep(OPEN_RETRY_S)


async def main(directory: str, prefix: str, owner: str, *endpoints: str) -> None:
    engine = RocksEngine(Path(directory), create=True)
    try:
        applied = Applied(engine, log_id=prefix.encode(), create=True)
        async with EtcdClient(EtcdOptions(endpoints)) as client:
            log = await open_log(client, prefix)
            process = Process(Replica(log, applied, owner=owner, lease_s=LEASE_S))
            running = asyncio.ensure_future(process.replica.run(process.serve))
            asking = asyncio.create_task(requests(process))
            await asyncio.wait((running, asking), return_when=asyncio.FIRST_COMPLETED)
            for task in (running, asking):
                task.cancel()
            outcomes = await asyncio.gather(running, asking, return_exceptions=True)
            await log.close()
        if isinstance(outcomes[0], Exception):
            raise outcomes[0]
    finally:
        engine.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
