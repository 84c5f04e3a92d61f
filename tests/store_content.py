"""All that a key-value store holds, to compare stores."""

from collections.abc import Sequence
from pathlib import Path

from luciola.kv import Engine
from luciola.kv.applied import Applied
from luciola.kv.log.etcd import EtcdLog
from luciola.kv.rocksdb import RocksEngine
from luciola.wire import Cluster
from luciola.wire.etcd import EtcdClient

Content = Sequence[tuple[bytes, bytes]]


def content(engine: Engine) -> Content:
    """All that the store holds, its own keys too."""
    reader = engine.begin()
    try:
        own = [(key, reader.snapshot_get(key) or b"") for key in (b"\xff/log", b"\xff/position")]
        return [*reader.snapshot_range(b"\x00", b"\xff"), *own]
    finally:
        reader.cancel()


async def replicated_content(store: Path, cluster: Cluster, service: str) -> Content:
    """All that the store of a process that has ended holds after the rest of the log of `service`."""
    options = cluster.metadata_options()
    assert options is not None, "it has no log"
    prefix = cluster.log_prefix(service)
    engine = RocksEngine(store, create=False)
    try:
        applied = Applied(engine, log_id=f"{prefix}#{cluster.cluster_id}".encode())
        assert applied.position.index, f"{store} has carried out nothing"
        async with EtcdClient(options) as client:
            log = await EtcdLog.open(client, prefix=prefix, cluster=cluster.cluster_id, create=False)
            try:
                while records := await log.read(applied.position):
                    for record in records:
                        applied.apply(record)
            finally:
                await log.close()
        return content(engine)
    finally:
        engine.close()
