"""Whether a store may be served: mgmtd compares how far it has come with what the cluster has seen."""

import logging
import os
from collections.abc import Callable
from typing import Final

from ..clock import Clock
from ..errors import ConfigError
from ..kv import Engine
from ..wire.pb.mgmtd_pb2 import StoreMark
from .bootstrap import format_store, raise_generation
from .cluster import Cluster
from .schema import Superblock

log: Final = logging.getLogger("luciola.meta")

Position = Callable[[], int]
"""Says how far a store has come, as far as it survives power loss: only positions of one kind are compared."""


async def admit_store(  # noqa: PLR0913, what is compared with what
    engine: Engine,
    position: Position,
    cluster: Cluster,
    *,
    cluster_id: str,
    clock: Clock,
    create: bool,
    accept_loss: bool,
) -> Superblock:
    """Return the superblock of the store, once mgmtd has compared it with what the cluster has seen.

    Raises: ConfigError if it is older, unless the operator accepts that; CorruptData if it is empty.
    """
    owner = os.geteuid(), os.getegid()  # the user who runs `luciola up` can write into a new cluster
    superblock = await format_store(
        engine, cluster_id=cluster_id, clock=clock, create=create or accept_loss, owner=owner
    )
    if accept_loss:
        known = superblock.generation
        try:
            await cluster.check_store(mark_of(superblock, position))
        except ConfigError as error:
            if "generation" not in error.fields:
                raise
            known = max(known, int(error.fields["generation"]))
            log.warning("%s; accepted by the operator", error)
        superblock = await raise_generation(engine, known + 1, clock=clock)
    await cluster.check_store(mark_of(superblock, position))
    return superblock


def mark_of(superblock: Superblock, position: Position) -> StoreMark:
    """Return how far the store has come."""
    return StoreMark(store=superblock.store, generation=superblock.generation, position=position())


__all__ = ["Position", "admit_store", "mark_of"]
