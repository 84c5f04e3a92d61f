"""How long programs wait when the metadata service or etcd loses its primary: two metadata services, one mount.

    takeovers.py [--times N] [--json FILE]

A program makes, renames, looks up and removes files through the mount, one call after another. N times the primary of
meta is killed (`kill -9`) or paused until another serves, in turn; in half of the turns the leading member of etcd,
too, once the cluster is whole again. The pause is the longest call that was in flight after the fault. All services
share one machine.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from cluster import luciola, until
from etcd_members import EtcdMembers
from luciola.kv.log import LEASE_S
from luciola.wire.pb.mgmtd_pb2 import CONNECTED, NODE_META
from meta_processes import Metas

BETWEEN_S = 0.002  # calls: the program leaves processors to the services
CALLS = 50  # that return without a pause before the next fault, and after one
ETCD_EVERY = 4
TARGET_S = LEASE_S + 1


class Program(threading.Thread):
    """Calls of the mount, one after another, with when each began and returned."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self._directory = directory
        self.calls: list[tuple[float, float]] = []
        self.failure: BaseException | None = None
        self.ending = threading.Event()

    def run(self) -> None:
        number = 0
        try:
            while not self.ending.wait(BETWEEN_S):
                self._round(self._directory / f"{number}", self._directory / f"{number}.renamed")
                number += 1
        except OSError as error:
            self.failure = error

    def _round(self, name: Path, other: Path) -> None:
        for act in (name.touch, lambda: name.rename(other), other.stat, other.unlink):
            begun_s = time.monotonic()
            act()
            self.calls.append((begun_s, time.monotonic()))

    def proceed(self) -> None:
        """Return when it has made some more calls. Raises: what a call has failed with."""
        target = len(self.calls) + CALLS
        until(lambda: self.failure or len(self.calls) >= target, what="calls of the program")
        if self.failure is not None:
            raise self.failure

    def longest_s(self, since_s: float) -> float:
        """The longest call that returned after `since_s`, counted from then at the earliest."""
        return max(returned - max(begun, since_s) for begun, returned in self.calls if returned > since_s)


def pause_of_meta_s(cluster: Metas, program: Program, number: int) -> float:
    """Hurt the primary of meta once; return how long the program waited."""
    primary = cluster.wait_primary()
    program.proceed()
    begun_s = time.monotonic()
    cluster.signal(primary.id, number)
    cluster.wait_primary(above=primary.epoch)
    program.proceed()
    if number == signal.SIGKILL:
        cluster.start_meta(primary.id)
    else:
        cluster.signal(primary.id, signal.SIGCONT)
    cluster.wait(lambda: both_connected(cluster), "both metadata services")
    return program.longest_s(begun_s)


def both_connected(cluster: Metas) -> bool:
    nodes = [each for each in cluster.routing().nodes if each.kind == NODE_META]
    return all(each.status == CONNECTED for each in nodes)


def pause_of_etcd_s(members: EtcdMembers, program: Program, number: int) -> float:
    """Hurt the leading member once, until another leads; return how long the program waited."""
    leader = members.leader()
    program.proceed()
    begun_s = time.monotonic()
    if number == signal.SIGKILL:
        members.kill(leader)
    else:
        members.pause(leader)
    program.proceed()
    members.heal()
    return program.longest_s(begun_s)


def measure(cluster: Metas, mountpoint: Path, times: int) -> dict[str, list[float]]:
    """Seconds of each pause, by what was done."""
    pauses: dict[str, list[float]] = defaultdict(list)
    program = Program(mountpoint)
    program.start()
    try:
        for turn in range(times):
            word, number = (("kill", signal.SIGKILL), ("pause", signal.SIGSTOP))[turn % 2]
            found = {f"{word} meta": pause_of_meta_s(cluster, program, number)}
            if turn % ETCD_EVERY < 2:
                found[f"{word} etcd"] = pause_of_etcd_s(cluster.members, program, number)
            for name, value in found.items():
                pauses[name].append(value)
                print(f"{turn:3} {name}: {value:.2f} s", flush=True)
    finally:
        program.ending.set()
        program.join()
    return pauses


def show(pauses: dict[str, list[float]]) -> None:
    everything = {
        "all of meta": [each for name in pauses if "meta" in name for each in pauses[name]],
        **pauses,
    }
    print(f"pauses, s (lease {LEASE_S:.0f} s, target {TARGET_S:.0f} s)")
    for name, values in everything.items():
        ordered = sorted(values)
        p99 = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
        within = sum(value <= TARGET_S for value in ordered)
        print(
            f"{name:12} {len(ordered):3} times: p50 {statistics.median(ordered):.2f}, p99 {p99:.2f}, "
            f"worst {ordered[-1]:.2f}; {within} within the target"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--times", type=int, default=60)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, EtcdMembers(Path(name) / "etcd") as members:
        root, mountpoint = Path(name) / "cluster", Path(name) / "mnt"
        root.mkdir()
        mountpoint.mkdir()
        with Metas(root, members) as cluster:
            secret = str(root / cluster.cluster.secret_file)
            luciola("mount", "--secret-file", secret, cluster.cluster.mgmtd_lane, str(mountpoint))
            try:
                pauses = measure(cluster, mountpoint, arguments.times)
            finally:
                luciola("umount", str(mountpoint))
    show(pauses)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(pauses, indent=1) + "\n")


if __name__ == "__main__":
    main()
