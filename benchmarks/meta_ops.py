"""What one metadata operation costs in Python: handlers called directly, without a carrier.

    PYTHONPATH=src python benchmarks/meta_ops.py [--engine rocksdb|memory] [--count 20000]

Budgets: lookup and stat at most 40 us of this thread's CPU time, create at most 120 us, in the quietest tenth of the
batches: other programs on the machine lengthen both the time on the wall and the time on the processor.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from luciola.clock import SystemClock
from luciola.config import MetaConfig
from luciola.kv import MemoryEngine
from luciola.kv.rocksdb import RocksEngine
from luciola.meta.bootstrap import build
from luciola.meta.fake_control import FakeControl
from luciola.meta.layout import Placer
from luciola.wire import TRUSTED, Identity
from luciola.wire.pb import meta_pb2 as pb
from luciola.wire.pb.common_pb2 import Caller
from luciola.wire.pb.mgmtd_pb2 import ChainTable
from luciola.wire.preserialized import Preserialized

BUDGET_US = {"lookup": 40, "stat": 40, "create": 120}
BATCHES = 40
IDENTITY = Identity(TRUSTED, 0, 0, ())


class NoMembers:
    async def clients(self):
        return None


class Bench:
    """Times handlers; every request is parsed and every reply serialized, as a carrier does."""

    def __init__(self, service):
        self.service = service
        self.sequence = 0

    def caller(self):
        self.sequence += 1
        return Caller(
            uid=1000,
            gid=1000,
            groups=[4, 24, 1000],
            client=77,
            sequence=self.sequence,
            settled_below=self.sequence,  # one request at a time
        )

    async def time(self, name, kind, requests):
        payloads = [request.SerializeToString() for request in requests]
        handler = getattr(self.service, name)
        replies, batches = [], []
        size = max(1, len(payloads) // BATCHES)
        for first in range(0, len(payloads), size):
            batch = payloads[first : first + size]
            begun, cpu_begun = time.perf_counter(), time.thread_time()
            for payload in batch:
                reply = handler(kind.FromString(payload), IDENTITY)
                if asyncio.iscoroutine(reply):
                    reply = await reply
                reply.SerializeToString()
                replies.append(reply.message() if isinstance(reply, Preserialized) else reply)
            batches.append(
                (
                    (time.thread_time() - cpu_begun) / len(batch) * 1e6,
                    (time.perf_counter() - begun) / len(batch) * 1e6,
                )
            )
            await asyncio.sleep(0)
        batches.sort()
        best, middle = batches[len(batches) // 10][0], batches[len(batches) // 2]
        budget = BUDGET_US.get(name)
        verdict = "" if budget is None else ("within" if best <= budget else "ABOVE") + f" {budget} us"
        print(
            f"{name:8} {best:8.1f} us CPU (quiet)  {middle[0]:8.1f} us CPU  {middle[1]:8.1f} us wall   {verdict}"
        )
        return replies


async def main(arguments):
    with tempfile.TemporaryDirectory() as directory:
        engine = MemoryEngine() if arguments.engine == "memory" else RocksEngine(Path(directory), create=True)
        config = MetaConfig()
        placer = Placer(config)
        placer.set_tables([ChainTable(id=1, version=1, chains=range(1, 13), replicas=2)])
        service, _, _ = await build(
            engine,
            FakeControl(),
            NoMembers(),
            config=config,
            clock=SystemClock(),
            cluster_id="bench",
            session_timeout_s=60,
            placer=placer,
        )
        await work(Bench(service), arguments.count)
        engine.close()


async def work(bench, count):
    (root,) = await bench.time(
        "mkdir",
        pb.MkdirRequest,
        [pb.MkdirRequest(caller=Caller(client=77), path=pb.Path(at=1, path=b"d"), permissions=0o777)],
    )
    directory = root.inode.id
    names = [b"file-%06d" % number for number in range(count)]
    created = await bench.time(
        "create",
        pb.CreateRequest,
        [
            pb.CreateRequest(
                caller=bench.caller(), path=pb.Path(at=directory, path=name), permissions=0o644, write=True
            )
            for name in names
        ],
    )
    await bench.time(
        "close",
        pb.CloseRequest,
        [
            pb.CloseRequest(
                caller=bench.caller(),
                closes=[
                    pb.CloseOne(inode=each.inode.id, session=each.session, length=pb.LengthHint(length=5))
                ],
            )
            for each in created
        ],
    )
    await bench.time(
        "lookup",
        pb.LookupRequest,
        [pb.LookupRequest(caller=bench.caller(), parent=directory, name=name) for name in names],
    )
    await bench.time(
        "stat",
        pb.StatRequest,
        [pb.StatRequest(caller=bench.caller(), path=pb.Path(at=each.inode.id)) for each in created],
    )
    await bench.time(
        "open",
        pb.OpenRequest,
        [
            pb.OpenRequest(caller=bench.caller(), path=pb.Path(at=each.inode.id), read=True)
            for each in created
        ],
    )
    await bench.time(
        "list",
        pb.ListRequest,
        [
            pb.ListRequest(
                caller=bench.caller(),
                inode=directory,
                limit=128,
                with_inodes=True,
                by_cookie=True,
                after_cookie=each.inode.id,
            )
            for each in created[:: max(1, count // 100)]
        ],
    )
    await bench.time(
        "rename",
        pb.RenameRequest,
        [
            pb.RenameRequest(
                caller=bench.caller(),
                source=pb.Path(at=directory, path=name),
                target=pb.Path(at=directory, path=b"x" + name),
            )
            for name in names
        ],
    )
    await bench.time(
        "unlink",
        pb.UnlinkRequest,
        [
            pb.UnlinkRequest(caller=bench.caller(), path=pb.Path(at=directory, path=b"x" + name))
            for name in names
        ],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=("rocksdb", "memory"), default="rocksdb")
    parser.add_argument("--count", type=int, default=20_000)
    asyncio.run(main(parser.parse_args()))
