"""Two metadata services as processes, over one log in a real etcd."""

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from etcd_members import EtcdMembers
from luciola.ids import EMBEDDED_EPOCH
from luciola.kv.checkpoint.keeper import announcements
from luciola.kv.log.etcd import EtcdLog
from luciola.wire import Metadata, methods, save_cluster
from luciola.wire.pb.common_pb2 import Empty
from luciola.wire.pb.meta_pb2 import MetaStatus
from luciola.wire.pb.mgmtd_pb2 import CONNECTED, NODE_META, Node
from storage_cluster import WAIT_S, StorageCluster
from store_content import Content, replicated_content

METAS = (100, 101)
GC_DELAY_MS = 60_000


@dataclass(frozen=True)
class Positions:
    """Indexes in the log; `checkpoints` by service."""

    first: int
    last: int
    checkpoints: Mapping[int, int]


class Metas(StorageCluster):
    """mgmtd, a storage node, and the metadata services. Only they use etcd."""

    def __init__(
        self, root: Path, members: EtcdMembers, *, gc_delay_ms: int = GC_DELAY_MS, config: str = ""
    ) -> None:
        cluster_id = f"test-{uuid.uuid4().hex}"  # etcd is shared by tests
        config = f"[meta]\ngc_delay_ms = {gc_delay_ms}\n{config}"
        super().__init__(root, nodes=1, replicas=1, config=config, cluster_id=cluster_id)
        self.members = members
        metadata = Metadata(endpoints=tuple(f"http://{each}" for each in members.endpoints))
        self.replicated = replace(self.cluster, metadata=metadata)
        save_cluster(root / "replicated.json", self.replicated)

    def _start_all(self) -> None:
        super()._start_all()
        for number in METAS:
            self.start_meta(number)
        self.wait_primary()

    def end_metas(self) -> list[Content]:
        """Stop them in order; return what the store of each holds after the rest of the log."""
        for number in METAS:
            self.signal(number, signal.SIGTERM)
        stores = map(self.store_of, METAS)
        return [asyncio.run(replicated_content(store, self.replicated, "meta")) for store in stores]

    async def positions(self) -> Positions:
        """Return what the log keeps, and where each service's newest checkpoint is."""
        async with self.open_log() as log:
            bounds = await log.bounds()
            return Positions(
                bounds.first,
                bounds.last.index,
                {int(name): each.position.index for name, each in (await announcements(log)).items()},
            )

    @asynccontextmanager
    async def open_log(self) -> AsyncIterator[EtcdLog]:
        cluster = self.replicated
        async with self.members.client() as client:
            log = await EtcdLog.open(
                client, prefix=cluster.log_prefix("meta"), cluster=cluster.cluster_id, create=False
            )
            try:
                yield log
            finally:
                await log.close()

    def store_of(self, number: int) -> Path:
        return self.root / f"meta-{number}"

    def log_of(self, number: int) -> str:
        return (self.root / f"meta-{number}.log").read_text()

    def start_meta(self, number: int) -> None:
        name = f"meta-{number}"
        options = ["--data", str(self.root / name), "--node-id", str(number), "--create"]
        self._start(name, "luciola.meta", *options, cluster="replicated.json")

    def signal(self, number: int, which: int) -> None:
        process = self._processes[f"meta-{number}"]
        process.send_signal(which)
        if which in (signal.SIGKILL, signal.SIGTERM):
            process.wait(WAIT_S)

    def primary(self) -> Node | None:
        nodes = [each for each in self.routing().nodes if each.kind == NODE_META and each.status == CONNECTED]
        leading = [each for each in nodes if each.epoch > EMBEDDED_EPOCH]
        return max(leading, key=lambda each: each.epoch, default=None)

    def wait_primary(self, *, above: int = EMBEDDED_EPOCH) -> Node:
        def newer() -> bool:
            found = self.primary()
            return found is not None and found.epoch > above

        self.wait(newer, f"a primary with an epoch above {above}: {self.last_words()}")
        found = self.primary()
        assert found is not None
        return found

    def meta_status(self) -> MetaStatus:
        """What the primary counts. Raises: the errors of the call."""
        status: MetaStatus = self.call(self.wait_primary().grpc_address, methods.Meta.status, Empty())
        return status

    def last_words(self) -> str:
        return " | ".join(self.log_of(number)[-600:] for number in METAS)


__all__ = ["METAS", "Metas", "Positions"]
