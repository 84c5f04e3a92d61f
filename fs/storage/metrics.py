"""Families of a storage node: what its engine and its background work have counted, its disk, its replicas.

The engine is asked in a thread of its own: a disk that hangs may hold the answer, and nothing else waits for it.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from ..metrics import Family, Kind, counter, gauge
from ..metrics.families import by_label
from ..states import Local, Public
from .membership import Membership
from .quarantine import Quarantine
from .recovery import Recovery
from .scrub import Scrub

if TYPE_CHECKING:
    from luciola_core import StorageNode  # only `node` loads the native module

PREFIX: Final = "luciola_storage"
COUNTED_HELP: Final = "docs/operations.md, Counters of a storage node."
NOW: Final = {  # counters of the engine that are no totals
    "connections": "Connections of clients and nodes.",
    "machines": "Chunks with an update or a read in flight.",
}


@dataclass(frozen=True, slots=True)
class Disk:
    """What the engine says, read together."""

    counters: dict[str, int]
    space: tuple[int, int, int]  # capacity, free for clients, used, in bytes
    chunks: int
    oldest_access_s: float
    lease_left_s: float


class StorageMetrics:
    """Gives the families of one node."""

    def __init__(
        self,
        node: "StorageNode",
        membership: Membership,
        recovery: Recovery,
        scrub: Scrub,
        quarantine: Quarantine,
    ) -> None:
        self._node = node
        self._membership = membership
        self._recovery = recovery
        self._scrub = scrub
        self._quarantine = quarantine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")

    async def engine_families(self) -> Sequence[Family]:
        """Return what the engine says."""
        disk = await asyncio.get_running_loop().run_in_executor(self._thread, self._read)
        capacity, free, used = disk.space
        counted = {name: value for name, value in disk.counters.items() if name not in NOW}
        return [
            *(
                counter(f"{PREFIX}_{name}_total", COUNTED_HELP, value)
                for name, value in sorted(counted.items())
            ),
            *(gauge(f"{PREFIX}_{name}", NOW[name], disk.counters[name]) for name in sorted(NOW)),
            gauge(f"{PREFIX}_capacity_bytes", "Size of the disk.", capacity),
            gauge(f"{PREFIX}_free_bytes", "Free for clients, which leave the reserve.", free),
            gauge(f"{PREFIX}_used_bytes", "Used by chunks.", used),
            gauge(f"{PREFIX}_chunks", "Chunks of all replicas on this node.", disk.chunks),
            gauge(
                f"{PREFIX}_oldest_access_seconds",
                "Age of the oldest access to the disk in progress; 0: there is none.",
                disk.oldest_access_s,
            ),
            gauge(
                f"{PREFIX}_lease_left_seconds",
                "How long the node may serve without another heartbeat to mgmtd.",
                max(0.0, disk.lease_left_s),
            ),
        ]

    def work_families(self) -> Sequence[Family]:
        """Return what recovery, scrub and quarantine have done, and the states of the replicas."""
        done = {f"recovery_{name}": value for name, value in asdict(self._recovery.counters).items()}
        done |= {f"scrub_{name}": value for name, value in asdict(self._scrub.counters).items()}
        done |= {f"quarantine_{name}": value for name, value in asdict(self._quarantine.counters).items()}
        targets = self._membership.state.targets.values()
        public = Counter({state.name.lower(): 0 for state in Public})
        public.update(target.public.name.lower() for target in targets)
        local = Counter({state.name.lower(): 0 for state in Local})
        local.update(target.local.name.lower() for target in targets)
        return [
            *(counter(f"{PREFIX}_{name}_total", COUNTED_HELP, value) for name, value in done.items()),
            gauge(
                f"{PREFIX}_recovery_chains",
                "Chains whose next replica this node is bringing up to date.",
                self._recovery.chain_count,
            ),
            gauge(
                f"{PREFIX}_recovery_pending_bytes",
                "Bytes of chunks that were found to differ, and are not sent yet.",
                self._recovery.pending_bytes,
            ),
            by_label(
                Kind.GAUGE, f"{PREFIX}_targets", "Replicas on this node by published state.", "state", public
            ),
            by_label(
                Kind.GAUGE,
                f"{PREFIX}_local_targets",
                "Replicas on this node by what the node says.",
                "state",
                local,
            ),
        ]

    def close(self) -> None:
        """Ask the engine nothing more."""
        self._thread.shutdown(wait=False)

    def _read(self) -> Disk:
        node = self._node
        return Disk(
            counters=node.counters(),
            space=node.space(),
            chunks=sum(target[3] for target in node.targets()),
            oldest_access_s=node.oldest_access_s(),
            lease_left_s=node.lease_left_s(),
        )


__all__ = ["StorageMetrics"]
