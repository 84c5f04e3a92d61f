"""Power loss at every change that a storage node makes to its own files: node.json, marks, what is noted beside them.

Whatever is left, the directory opens, says of itself what it said at some moment since the last call that returned, and
is never new or lost where it was not.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from luciola.ids import NodeId, TargetId
from luciola.states import Data
from luciola.storage.directory import Directory, Record
from luciola.wire.pb.mgmtd_pb2 import Chain, Routing, StoreMark
from power_disk import PowerDisk, can_mount, every_state

pytestmark = [pytest.mark.mount, pytest.mark.crate("build", "--example", "power_disk")]
NODE = NodeId(3)
TARGETS = (TargetId(31), TargetId(32))
CUTS_MIN = 900  # with recoveries; fewer: a part of the workload is not tested any more


class Node:
    """A storage node's use of its directory over several lives, each on another kernel unless it is `killed`."""

    def __init__(self, disk: PowerDisk, name: str) -> None:
        self._disk, self._name = disk, name
        self._path = disk.record(name) / "storage-3"
        self.records: list[tuple[int, Record | None]] = [(0, None)]  # from when on each may be there
        self.positions: list[int] = [0]  # from when on each must be
        self.marks: list[tuple[int, int]] = []  # chain versions that were saved, and when
        self._boot = 0

    def start(self, *, killed: bool = False) -> None:
        self._boot += not killed
        begun = self._disk.position(self._name)
        self.directory = Directory(self._path, node=NODE, cluster_id="c", boot=f"kernel-{self._boot}")
        self._did(begun)

    def do(self, act) -> None:
        begun = self._disk.position(self._name)
        act(self.directory)
        self._did(begun)

    def _did(self, begun: int) -> None:
        self.records.append((begun, self.directory._record))
        self.positions.append(self._disk.position(self._name))

    def mark(self, version: int) -> None:
        routing = Routing(version=(version << 32) + 1, manager=7, chains=[Chain(id=1, version=version)])
        routing.chains[0].targets.add(id=TARGETS[0], node=NODE)
        self.directory.marks.raise_to(routing)
        self.directory.marks.raise_meta_store(StoreMark(store=5, generation=1, position=version))
        self.directory.marks.save()
        self.marks.append((self._disk.position(self._name), version))

    def stop(self, *, clean: bool) -> None:
        if clean:
            self.do(Directory.set_clean)
        self.directory.close()

    def allowed(self, cut: int) -> list[Record | None]:
        """What node.json may say after power was lost before change number `cut`."""
        first = max(number for number, position in enumerate(self.positions) if position <= cut)
        return [record for begun, record in self.records[first:] if begun <= cut]

    def promises(self, cut: int) -> tuple[int, int]:
        return sum(position <= cut for position in self.positions), self.marked(cut)

    def marked(self, cut: int) -> int:
        """The chain version that must be remembered."""
        return max((version for position, version in self.marks if position <= cut), default=0)


def live(node: Node) -> None:
    """Join, serve, fall behind, be restored, stop cleanly and not, be killed, lose the disk's trust."""
    node.start()
    node.do(lambda directory: directory.begin(1))
    node.do(lambda directory: directory.acknowledge(1))
    node.do(lambda directory: directory.join(TARGETS))
    node.mark(1)
    node.do(lambda directory: directory.restore(TARGETS[0]))
    node.do(lambda directory: directory.set_scrubbed_at(1.0))
    node.mark(2)
    node.stop(clean=True)
    node.start()
    node.do(lambda directory: directory.begin(2))
    node.do(lambda directory: directory.join(TARGETS))
    node.do(lambda directory: directory.acknowledge(2))
    node.mark(3)
    node.stop(clean=False)
    node.start(killed=True)
    node.do(lambda directory: directory.begin(3))
    node.do(lambda directory: directory.acknowledge(3))
    node.do(Directory.set_suspect)
    node.stop(clean=False)
    node.start()
    node.do(lambda directory: directory.begin(4))
    node.do(lambda directory: directory.acknowledge(4))
    node.do(lambda directory: directory.join(TARGETS))
    node.do(lambda directory: directory.restore(TARGETS[1]))
    node.mark(4)
    node.stop(clean=True)


def open_after(path: Path) -> Directory:
    return Directory(path / "storage-3", node=NODE, cluster_id="c", boot="the kernel after")


def check(node: Node, path: Path, cut: int) -> None:
    directory = open_after(path)
    try:
        found, allowed = directory._record, node.allowed(cut)
        assert found is not None
        # What opening changes: another kernel runs, and the end before was not clean unless that is noted.
        expected = [_opened(record) for record in allowed if record is not None]
        if None in allowed and not any(record.engine == found.engine for record in expected):
            expected.append(Record(NODE, "c", found.engine, boot="the kernel after"))
        assert found in expected, f"{found} is none of {expected}"
        marked = max((chain.version for chain in directory.marks.marks.chains), default=0)
        assert marked >= node.marked(cut), f"chain version {marked} instead of {node.marked(cut)}"
        lost = {target for target, data in directory.data.items() if data is Data.LOST}
        assert all(lost <= {*map(TargetId, record.lost)} for record in expected if record == found)
    finally:
        directory.close()


def _opened(record: Record) -> Record:
    lost_power = record.joined and not record.is_clean
    return replace(
        record, boot="the kernel after", is_clean=False, is_suspect=record.is_suspect or lost_power
    )


@pytest.mark.skipif(not can_mount(), reason="needs root and /dev/fuse")
def test_directory_opens_as_it_was_whenever_power_is_lost(tmp_path):
    with PowerDisk(tmp_path / "disk") as disk:
        node = Node(disk, "node")
        live(node)
        report = every_state(
            disk,
            "node",
            lambda path, cut: check(node, path, cut),
            promises=node.promises,
            recover=lambda path: open_after(path).close(),
            recoveries_every=4,
        )
        print(report)
        assert report.cuts >= CUTS_MIN, report
