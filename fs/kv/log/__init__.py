"""An ordered log that several processes share and one of them appends to: the truth of a replicated engine.

    ordered_log  the interface: positions, records, claims
    leadership   Contender and Leadership: who may append, and until when
    appender     one record after another, each until its outcome is known
    memory       for tests and simulation
    faulty       wraps a log: refuses, delays, loses, and is cut off

    contender = Contender(log, "meta 2 at 10.0.0.2:7000")
    leadership = await contender.lead()
    last = (await log.bounds()).last                    # no other process appends now: catch up to here
    appender = Appender(log, leadership, last)
    position = await appender.append(payload)           # stored, or an error that says what is known
    if leadership.holds(): ...                          # no other process leads at this moment: read locally

Consensus is the log's: nothing here agrees on anything. Every log passes tests/unit/kv/log/log_contract.py.
"""

from .appender import Appender
from .leadership import DRIFT, LEASE_S, Contender, Leadership
from .memory import MemoryLog
from .ordered_log import (
    RECORD_BYTES_MAX,
    START,
    Bounds,
    Claim,
    Deposed,
    Diverged,
    Ended,
    NotAtEnd,
    OrderedLog,
    Position,
    Record,
    Trimmed,
)

__all__ = [
    "DRIFT",
    "LEASE_S",
    "RECORD_BYTES_MAX",
    "START",
    "Appender",
    "Bounds",
    "Claim",
    "Contender",
    "Deposed",
    "Diverged",
    "Ended",
    "Leadership",
    "MemoryLog",
    "NotAtEnd",
    "OrderedLog",
    "Position",
    "Record",
    "Trimmed",
]
