"""Opening one process's replica of a store whose log is in etcd.

    async with open_replica(options, prefix="luciola/c1/mgmtd/", cluster_id="c1", data=path, owner="a:1") as replica:
        await replica.run(serve)

The directory at `data` may be new or lost: the log is the truth, and the replica takes it all from there.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from ..errors import MaybeCommitted, NoSpace, Timeout, Unavailable
from ..wire.etcd import EtcdClient, EtcdOptions
from .applied import Applied
from .log import LEASE_S
from .log.etcd import EtcdLog
from .replica import Replica
from .rocksdb import RocksEngine

log = logging.getLogger(__name__)

RETRY_S: Final = 0.5  # between attempts to open the log: etcd may be starting


@asynccontextmanager
async def open_replica(  # noqa: PLR0913 (it puts five pieces together)
    options: EtcdOptions,
    *,
    prefix: str,
    cluster_id: str,
    data: Path,
    owner: str,
    create: bool,
    cached: bytes = b"",
    lease_s: float = LEASE_S,
) -> AsyncGenerator[Replica]:
    """The store at `data`, equal to the log at `prefix`. It waits for etcd, however long that takes.

    `create`: the log may be new. `owner` says to others how to reach the process. `cached`: see `RocksEngine`.
    Raises: NotFound if there is no log; InvalidArgument if it is another cluster's; Diverged; CorruptData.
    """
    engine = RocksEngine(data, create=True, cached=cached)
    try:
        applied = Applied(engine, log_id=f"{prefix}#{cluster_id}".encode(), create=True)
        async with EtcdClient(options) as client:
            ordered = await _open_log(client, prefix=prefix, cluster_id=cluster_id, create=create)
            try:
                yield Replica(ordered, applied, owner=owner, lease_s=lease_s)
            finally:
                await ordered.close()
    finally:
        engine.close()


async def _open_log(client: EtcdClient, *, prefix: str, cluster_id: str, create: bool) -> EtcdLog:
    last = ""
    while True:
        try:
            return await EtcdLog.open(client, prefix=prefix, cluster=cluster_id, create=create)
        except (Unavailable, Timeout, MaybeCommitted, NoSpace) as error:
            if str(error) != last:
                last = str(error)
                log.warning("the metadata log cannot be opened yet: %s; trying again", error)
        await asyncio.sleep(RETRY_S)


__all__ = ["open_replica"]
