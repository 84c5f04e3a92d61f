"""Families of the cluster manager: whether it is primary, and then what it knows of nodes, chains and clients."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Final

from ..metrics import Family, Kind, gauge
from ..metrics.families import by_label
from ..states import Public
from ..wire.pb import mgmtd_pb2 as pb
from .model import Model
from .records import ChainRecord
from .service import Service

CHAINS_SLICE: Final = 2000  # looked at, about a millisecond, before other work has its turn
NODE_KINDS: Final[dict[int, str]] = {pb.NODE_MGMTD: "mgmtd", pb.NODE_META: "meta", pb.NODE_STORAGE: "storage"}
COMPLETE: Final = "complete"  # states of chains: all of its replicas serve, some, or none
DEGRADED: Final = "degraded"
DOWN: Final = "down"


async def manager_families(service: Service | None, *, now_s: float) -> Sequence[Family]:
    """Return the metrics of `service`, the manager of this process while it is one of a term."""
    term = None if service is None else service.current_term
    families = [
        gauge("luciola_mgmtd_primary", "Whether this process manages the cluster.", float(term is not None))
    ]
    if term is None:
        return families
    model = term.model
    return [
        *families,
        gauge("luciola_mgmtd_term", "Number of the term of this manager.", term.lease.term),
        gauge(
            "luciola_mgmtd_bootstrapping",
            "Whether nodes are still given time to report, as after every start.",
            float(model.is_bootstrapping(now_s)),
        ),
        gauge(
            "luciola_client_sessions",
            "Clients and mounts whose session has not expired.",
            term.sessions.count(now_s=now_s),
        ),
        *_node_families(model, now_s),
        *await _chain_families(model),
    ]


def _node_families(model: Model, now_s: float) -> list[Family]:
    known: Counter[tuple[str, ...]] = Counter()
    for node in model.records.nodes.values():
        status = pb.NodeStatus.Name(model.lives[node.id].status).lower()
        known[NODE_KINDS.get(node.kind, "other"), status] += 1
    return [
        Family(
            "luciola_nodes",
            Kind.GAUGE,
            "Registered processes by kind and status.",
            ("kind", "status"),
            tuple((labels, float(count)) for labels, count in sorted(known.items())),
        ),
        gauge(
            "luciola_node_leases",
            "Storage nodes that may hold a lease, by which they serve.",
            model.lease_count(now_s),
        ),
    ]


async def _chain_families(model: Model) -> list[Family]:
    chains: Counter[str] = Counter({COMPLETE: 0, DEGRADED: 0, DOWN: 0})
    targets: Counter[str] = Counter({state.name.lower(): 0 for state in Public})
    left = iter(list(model.records.chains.values()))
    while some := list(islice(left, CHAINS_SLICE)):
        for chain in some:
            chains[_state_of(chain)] += 1
            targets.update(member.state.name.lower() for member in chain.members)
        await asyncio.sleep(0)
    return [
        by_label(
            Kind.GAUGE, "luciola_chains", "Chains by how many of their replicas serve.", "state", chains
        ),
        by_label(Kind.GAUGE, "luciola_targets", "Replicas of chains by state.", "state", targets),
    ]


def _state_of(chain: ChainRecord) -> str:
    serving = sum(member.state is Public.SERVING for member in chain.members)
    return COMPLETE if serving == len(chain.members) else DEGRADED if serving else DOWN


__all__ = ["manager_families"]
