"""What a large cluster costs its manager: time to decide, bytes of routing, memory.

    PYTHONPATH=src python benchmarks/mgmtd_scale.py [--nodes 1000] [--chains 100000] [--clients 100000] [--racks 40]

The manager's own code, without network and disk: the chains are placed as for a new table, every node sends its
heartbeats, one fails, and every client has a session. Times are of one processor.
"""

import argparse
import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count

from luciola.config import MgmtdConfig
from luciola.ids import NodeId
from luciola.mgmtd.domains import Domain
from luciola.mgmtd.model import Model
from luciola.mgmtd.placement import Site, place
from luciola.mgmtd.records import Records
from luciola.mgmtd.routing import Publisher
from luciola.mgmtd.sessions import Sessions
from luciola.states import Local
from luciola.wire import CLIENT, Identity
from luciola.wire.pb import mgmtd_pb2 as pb

TABLE = 1
FIRST_NODE = 201
CLUSTER = "00000000-0000-0000-0000-000000000000"


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Carry out one step, and print how long it took."""
    begun_s = time.perf_counter()
    yield
    print(f"{what:58} {(time.perf_counter() - begun_s) * 1000:10.1f} ms", flush=True)


def report_bytes(what: str, size: int) -> None:
    print(f"{what:58} {size / 2**20:10.2f} MiB", flush=True)


def resident_bytes() -> int:
    """Now, of this process."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


class Nodes:
    """All storage nodes, which report what the manager knows of them."""

    def __init__(self, model: Model, ids: Iterable[int]) -> None:
        self._model = model
        self._ids = list(ids)
        self._sequence = count(1)

    def register(self) -> None:
        for node in self._ids:
            record = pb.Node(
                id=node,
                kind=pb.NODE_STORAGE,
                host=f"host-{node}.example",
                incarnation=1,
                grpc_address=f"10.0.{node // 256}.{node % 256}:7001",
                data_address=f"10.0.{node // 256}.{node % 256}:7002",
            )
            self._model.apply(self._model.registration(record))

    def heartbeats(self, *, without: int = 0) -> list[pb.HeartbeatRequest]:
        """One of each node, with all its replicas."""
        sequence = next(self._sequence)
        requests = []
        for node in self._ids:
            if node == without:
                continue
            request = pb.HeartbeatRequest(
                node=self._model.records.nodes[NodeId(node)].to_pb(), sequence=sequence
            )
            request.disk.capacity_bytes, request.disk.free_bytes = 10 << 40, 5 << 40
            for chain in self._model.records.chains_of(node):
                member = next(member for member in chain.members if member.node == node)
                request.targets.add(
                    id=member.target,
                    chain=chain.id,
                    chain_version=chain.version,
                    state=pb.LocalState.Name(Local.UPTODATE),
                    used_bytes=1 << 30,
                )
            requests.append(request)
        return requests


def received(model: Model, requests: Iterable[pb.HeartbeatRequest], *, now_s: float) -> None:
    for request in requests:
        model.receive(request, now_s=now_s)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--chains", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--racks", type=int, default=40)
    parser.add_argument("--replicas", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    config = MgmtdConfig()
    ids = range(FIRST_NODE, FIRST_NODE + options.nodes)

    def domain(node: int) -> Domain:
        return ("", f"rack-{node % options.racks}")

    sites = [Site(node, domain(node)) for node in ids]
    with timed("chains are placed"):
        placed = place(sites, replicas=options.replicas, chains=options.chains)
    before = resident_bytes()
    model = Model(config, Records(), now_s=0.0)
    Nodes(model, ids).register()
    request = pb.CreateChainTableRequest(table=TABLE, replicas=options.replicas)
    model.apply(model.new_table(request, placed, now_s=0.0))
    with timed("a manager starts with these records"):
        model = Model(config, model.records, now_s=0.0)
        publisher = Publisher(model, cluster_id=CLUSTER, term=1)
    nodes = Nodes(model, ids)

    requests = nodes.heartbeats()
    with timed("the first heartbeats of all nodes"):
        received(model, requests, now_s=0.1)
    with timed("the look that follows"):
        look(model, publisher, now_s=0.2)
    requests = nodes.heartbeats()
    with timed("a heartbeat of each node"):
        received(model, requests, now_s=1.0)
    with timed("a look at nothing new"):
        look(model, publisher, now_s=1.1)
    with timed("routing for a new client"):
        everything = publisher.since(0, now_s=1.2).SerializeToString()
    report_bytes("routing for a new client", len(everything))

    failed = ids[0]
    silent_s = 1.0 + 2 * config.lease_ms / 1000
    model.looked_s = silent_s - 0.1
    received(model, nodes.heartbeats(without=failed), now_s=silent_s - 0.1)
    known = publisher.version
    with timed("a node has failed: the look"):
        look(model, publisher, now_s=silent_s)
    with timed("what that changes, for a client"):
        changes = publisher.since(known, now_s=silent_s)
        delta = changes.SerializeToString()
    print(f"{'chains that it changes':58} {len(changes.chains):10}")
    report_bytes("what that changes, for a client", len(delta))
    report_bytes(f"what that changes, for {options.clients} clients", len(delta) * options.clients)

    sessions = Sessions(timeout_s=60, now_s=0.0)
    without = resident_bytes()
    with timed(f"{options.clients} clients extend their sessions"):
        extend(sessions, options.clients)
    report_bytes("their sessions", resident_bytes() - without)
    report_bytes("resident, placement not counted", resident_bytes() - before)
    report_bytes("resident at most", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def look(model: Model, publisher: Publisher, *, now_s: float) -> None:
    change = model.look(now_s=now_s)
    model.apply(change)
    publisher.publish(change)


def extend(sessions: Sessions, clients: int) -> None:
    for client in range(1, clients + 1):
        request = pb.ExtendClientRequest(
            client=client, host=f"host-{client}", description="/mnt/luciola", kind=pb.NODE_MOUNT, pid=client
        )
        sessions.extend(request, Identity(CLIENT, uid=1000, gid=1000, groups=()), now_s=1.0, unix_ms=1)


if __name__ == "__main__":
    main()
