"""Families of a store: how far it has come, and how it follows its log."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from ..errors import Error
from ..metrics import Family, Histogram, counter, gauge, histogram, states
from ..metrics.exposition import SOURCE_S
from .checkpoint.catalog import Checkpoint
from .log import Bounds
from .replica import Replica, Role
from .rocksdb import RocksEngine

BOUNDS_S: Final = SOURCE_S / 2  # for etcd to answer: the rest does not wait for longer
ROLES: Final = tuple(role.value for role in Role)


def store_families(position: int, durable: int) -> list[Family]:
    """Return how far a store has come. Positions are of its log, or, without one, of its commits."""
    return [
        gauge("luciola_store_position", "Last commit or record in the store.", position),
        gauge(
            "luciola_store_durable_position",
            "Last one that survives a loss of power of this machine.",
            durable,
        ),
    ]


def engine_families(engine: RocksEngine) -> list[Family]:
    """Return how far a store without a log has come."""
    return store_families(engine.version, engine.synced_position)


async def replica_families(
    replica: Replica, newest: Checkpoint | None, appends: Histogram
) -> Sequence[Family]:
    """Return how far a store with a log has come. The log is asked where it ends; if it cannot say that is left out."""
    position = replica.applied.position.index
    families = [
        *store_families(position, replica.applied.durable.index),
        states(
            "luciola_replica_role", "1 for what this process does now.", "role", ROLES, replica.role.value
        ),
        gauge(
            "luciola_replica_epoch",
            "Of the term in which the last record was written.",
            replica.applied.epoch,
        ),
        counter("luciola_replica_terms_total", "Terms in which this process was the primary.", replica.terms),
        histogram(
            "luciola_log_append_duration_seconds",
            "Time of one append of a record to the log in etcd.",
            appends,
        ),
    ]
    if newest is not None:
        families += _checkpoint_families(newest)
    try:
        async with asyncio.timeout(BOUNDS_S):
            bounds = await replica.bounds()
    except (Error, TimeoutError):
        return families
    return [*families, *_log_families(bounds, position)]


def _checkpoint_families(newest: Checkpoint) -> list[Family]:
    age_s = max(0.0, time.time() - newest.directory.stat().st_mtime)
    return [
        gauge(
            "luciola_checkpoint_position",
            "Last record in the newest checkpoint of this process.",
            newest.seal.position.index,
        ),
        gauge("luciola_checkpoint_age_seconds", "Since the newest checkpoint was made.", age_s),
    ]


def _log_families(bounds: Bounds, position: int) -> list[Family]:
    last = max(bounds.last.index, position)  # one may have been appended meanwhile
    return [
        gauge(
            "luciola_log_first_position",
            "First record that the log has: those before were trimmed.",
            bounds.first,
        ),
        gauge("luciola_log_last_position", "Last record of the log.", last),
        gauge(
            "luciola_replica_lag_records",
            "Records of the log that are not in the store yet.",
            last - position,
        ),
    ]


__all__ = ["engine_families", "replica_families", "store_families"]
