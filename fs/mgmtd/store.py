"""Records in the key-value store, and who may write them.

    mgmtd/format                        of all these records, a decimal number; absent: 1
    mgmtd/cluster                       the id of the cluster these records belong to
    mgmtd/lease                         who is primary, as JSON: holder, term, renewals, longest lease, addresses
    mgmtd/node/<id>                     Node
    mgmtd/chain/<id>                    Chain
    mgmtd/table/<id><version>           ChainTable
    mgmtd/engine/<id>                   EngineMark: the highest of that node's chunk engine
    mgmtd/meta                          StoreMark: the highest that meta's store was seen with
    mgmtd/revoked/<id of a token>       RevokedToken
    mgmtd/move/<chain>                  Move: a replica that goes to another node
    mgmtd/rebalance                     Rebalance: how moves are made
    mgmtd/minted/<key>                  MintedBefore: tokens made earlier with that key are void
    mgmtd/config/<version>              ConfigVersion: of the cluster's configuration; the last of them is in force

Numbers in keys are 32-bit big-endian. Every commit is durable against power loss before it is believed.

    E1  a term has one holder; terms only grow
    E2  every write reads the lease in its own transaction: who is not primary any more cannot write
    E3  a lease is taken from its holder only after it was not renewed for its whole length, measured by the taker
        on its own clock; the holder stops believing in it earlier, counted from before it renewed it. No wall
        clock is involved. Where one process owns the store no other can take it, and it does not run out; where
        the store follows a log (terms.py), the lease on the log says who owns it
"""

import json
import struct
from dataclasses import asdict, dataclass, replace
from typing import Final

from ..errors import ConfigError, CorruptData, Unavailable
from ..kv import Durability, Engine, Transaction, prefix_end, run
from ..wire.pb import mgmtd_pb2 as pb
from .records import (
    ChainRecord,
    Change,
    EngineMark,
    Move,
    NodeRecord,
    Rebalance,
    Records,
    StoreMark,
    TableRecord,
)

FORMAT_VERSION: Final = 2
FORMAT: Final = b"mgmtd/format"
CLUSTER: Final = b"mgmtd/cluster"
LEASE: Final = b"mgmtd/lease"
NODE: Final = b"mgmtd/node/"
CHAIN: Final = b"mgmtd/chain/"
TABLE: Final = b"mgmtd/table/"
ENGINE: Final = b"mgmtd/engine/"
META_STORE: Final = b"mgmtd/meta"
REVOKED: Final = b"mgmtd/revoked/"
MINTED: Final = b"mgmtd/minted/"
MOVE: Final = b"mgmtd/move/"
REBALANCE: Final = b"mgmtd/rebalance"
CONFIG: Final = b"mgmtd/config/"
PAGE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Lease:
    """Who is primary. It is renewed by counting, so that who watches it sees it live."""

    holder: int
    term: int
    renewals: int = 0
    granted_ms: int = 0  # the longest lease that a node may still have from this term or one before
    lane_address: str = ""
    grpc_address: str = ""


def last_primary(engine: Engine) -> Lease | None:
    """Return who was primary when `engine`, which may be behind, was written to last. Raises: CorruptData."""
    transaction = engine.begin()
    try:
        return _read_lease(transaction)
    finally:
        transaction.cancel()


class Store:
    """The records of one cluster in `engine`. `create`: an empty engine is a new cluster's."""

    def __init__(self, engine: Engine, *, cluster_id: str, create: bool = True) -> None:
        self._engine = engine
        self._cluster_id = cluster_id
        self._create = create

    async def lease(self) -> Lease | None:
        """Return the lease as it is stored."""
        return await run(self._engine, _read_lease)

    async def renew(self, lease: Lease) -> Lease:
        """Return the same lease, renewed, with what it says now. Raises: Unavailable if another manager has it."""

        def operation(transaction: Transaction) -> Lease:
            _require(transaction, lease)
            renewed = replace(lease, renewals=lease.renewals + 1)
            _write_lease(transaction, renewed)
            return renewed

        return await run(self._engine, operation, durability=Durability.SYNC)

    async def take(self, seen: Lease | None, mine: Lease) -> Lease | None:
        """Return the next term for `mine.holder`, if the stored lease is still exactly what was `seen`; else None."""

        def operation(transaction: Transaction) -> Lease | None:
            found = _read_lease(transaction)
            taken = replace(mine, term=(seen.term if seen else 0) + 1, renewals=0)
            if found == taken:  # an earlier try of ours whose outcome was unknown
                return taken
            if found != seen:
                return None
            self._check_cluster(transaction)
            _write_lease(transaction, taken)
            return taken

        return await run(self._engine, operation, durability=Durability.SYNC)

    async def load(self) -> Records:
        """Return all records. Raises: CorruptData."""
        return await run(self._engine, _load, durability=Durability.SYNC)

    async def rebuild(self, change: Change, term: int) -> None:
        """Write the first records of a store that takes the place of a lost one; `term` was its last."""

        def operation(transaction: Transaction) -> None:
            self._check_cluster(transaction)
            _write_lease(transaction, Lease(holder=0, term=term))
            _write(transaction, change)

        await run(self._engine, operation, durability=Durability.SYNC)

    async def save(self, change: Change, lease: Lease) -> None:
        """Store `change` durably. Raises: Unavailable if `lease` is not valid any more (E2)."""

        def operation(transaction: Transaction) -> None:
            _require(transaction, lease)
            _write(transaction, change)

        await run(self._engine, operation, durability=Durability.SYNC)

    def _check_cluster(self, transaction: Transaction) -> None:
        format_ = transaction.get(FORMAT)
        if format_ is None and not self._create:
            raise CorruptData("the manager's store holds no records")
        if format_ is None:
            transaction.put(FORMAT, str(FORMAT_VERSION).encode())
        elif format_ != str(FORMAT_VERSION).encode():
            raise ConfigError(
                f"the manager's records have format {format_.decode(errors='replace')}, and this release reads format "
                f"{FORMAT_VERSION}: run the release that wrote them"
            )
        found = transaction.get(CLUSTER)
        if found is None:
            transaction.put(CLUSTER, self._cluster_id.encode())
        elif found.decode() != self._cluster_id:
            raise ConfigError(
                f"these records belong to cluster {found.decode()!r}, not to {self._cluster_id!r}"
            )


def _read_lease(transaction: Transaction) -> Lease | None:
    found = transaction.get(LEASE)
    if found is None:
        return None
    try:
        return Lease(**json.loads(found))
    except (ValueError, TypeError) as error:
        raise CorruptData(f"the lease of the primary cannot be read: {error}") from error


def _write_lease(transaction: Transaction, lease: Lease) -> None:
    transaction.may_use_reserve = True
    transaction.put(LEASE, json.dumps(asdict(lease)).encode())


def _require(transaction: Transaction, lease: Lease) -> None:
    found = _read_lease(transaction)
    if found is None or (found.holder, found.term) != (lease.holder, lease.term):
        raise Unavailable(
            "this manager is not the primary any more", primary=found.grpc_address if found else ""
        )


def _write(transaction: Transaction, change: Change) -> None:
    transaction.may_use_reserve = True  # failures must be handled on a full disk, too
    for node in change.nodes:
        transaction.put(NODE + _number(node.id), node.to_pb().SerializeToString())
    for removed in change.removed_nodes:
        transaction.delete(NODE + _number(removed))
        transaction.delete(ENGINE + _number(removed))
    for chain in change.chains:
        transaction.put(CHAIN + _number(chain.id), chain.to_pb().SerializeToString())
    for table in change.tables:
        key = TABLE + _number(table.id) + _number(table.version)
        transaction.put(key, table.to_pb().SerializeToString())
    for engine_node, engine in change.engines:
        transaction.put(ENGINE + _number(engine_node), engine.to_pb().SerializeToString())
    if change.meta_store is not None:
        transaction.put(META_STORE, change.meta_store.to_pb().SerializeToString())
    _write_moves(transaction, change)
    _write_revocations(transaction, change)
    for forgotten in change.forgotten_configs:
        transaction.delete(CONFIG + _number(forgotten))
    for config in change.configs:
        transaction.put(CONFIG + _number(config.version), config.SerializeToString())


def _write_moves(transaction: Transaction, change: Change) -> None:
    for chain in change.ended_moves:
        transaction.delete(MOVE + _number(chain))
    for move in change.moves:
        transaction.put(MOVE + _number(move.chain), move.to_pb().SerializeToString())
    if change.rebalance is not None:
        transaction.put(REBALANCE, change.rebalance.to_pb().SerializeToString())


def _write_revocations(transaction: Transaction, change: Change) -> None:
    for token, end in change.revoked:
        revoked = pb.RevokedToken(id=token, expires_unix_s=end)
        transaction.put(REVOKED + token, revoked.SerializeToString())
    for token in change.forgotten_tokens:
        transaction.delete(REVOKED + token)
    for key_id, time in change.minted_before:
        minted = pb.MintedBefore(key_id=key_id, minted_unix_s=time)
        transaction.put(MINTED + _number(key_id), minted.SerializeToString())


def _load(transaction: Transaction) -> Records:
    records = Records()
    for value in _values(transaction, NODE):
        node = NodeRecord.from_pb(pb.Node.FromString(value))
        records.nodes[node.id] = node
    for value in _values(transaction, CHAIN):
        chain = ChainRecord.from_pb(pb.Chain.FromString(value))
        records.add_chain(chain)
    for value in _values(transaction, TABLE):
        table = TableRecord.from_pb(pb.ChainTable.FromString(value))
        records.tables[table.id, table.version] = table
    for known in records.nodes:
        engine = transaction.get(ENGINE + _number(known))
        if engine is not None:
            records.engines[known] = EngineMark.from_pb(pb.EngineMark.FromString(engine))
    _load_moves(transaction, records)
    for value in _values(transaction, REVOKED):
        revoked = pb.RevokedToken.FromString(value)
        records.revoked[revoked.id] = revoked.expires_unix_s
    for value in _values(transaction, MINTED):
        minted = pb.MintedBefore.FromString(value)
        records.minted_before[minted.key_id] = minted.minted_unix_s
    for value in _values(transaction, CONFIG):
        config = pb.ConfigVersion.FromString(value)
        records.configs[config.version] = config
    mark = transaction.get(META_STORE)
    if mark is not None:
        records.meta_store = StoreMark.from_pb(pb.StoreMark.FromString(mark))
    return records


def _load_moves(transaction: Transaction, records: Records) -> None:
    for value in _values(transaction, MOVE):
        move = Move.from_pb(pb.Move.FromString(value))
        records.moves[move.chain] = move
    rebalance = transaction.get(REBALANCE)
    if rebalance is not None:
        records.rebalance = Rebalance.from_pb(pb.Rebalance.FromString(rebalance))


def _values(transaction: Transaction, prefix: bytes) -> list[bytes]:
    values: list[bytes] = []
    begin, end = prefix, prefix_end(prefix)
    while True:
        page = transaction.snapshot_range(begin, end, limit=PAGE)
        values += [value for _key, value in page]
        if len(page) < PAGE:
            return values
        begin = page[-1][0] + b"\x00"


def _number(number: int) -> bytes:
    return struct.pack(">I", number)


__all__ = ["Lease", "Store", "last_primary"]
