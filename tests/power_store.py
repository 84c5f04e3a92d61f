"""A key-value store on a recorded disk: which transactions it held when, and which of them it promised to keep."""

from pathlib import Path
from typing import Final

from luciola.errors import CorruptData
from luciola.kv import Transaction
from luciola.kv.rocksdb import WRITE_BUFFER_BYTES, RocksEngine
from power_disk import PowerDisk

BEGIN: Final = b""
END: Final = b"\xff"
Pairs = dict[bytes, bytes]


class RecordedStore(RocksEngine):
    """The engine, in a recorded volume; every transaction and every finished sync is noted.

    Lives of one store follow one another: pass the earlier one as `before`.
    """

    def __init__(
        self,
        disk: PowerDisk,
        name: str,
        directory: Path,
        *,
        before: "RecordedStore | None" = None,
        write_buffer_bytes: int = WRITE_BUFFER_BYTES,
    ) -> None:
        self._disk, self._name = disk, name
        # Of each transaction: what was recorded when it began, and all pairs after it.
        self.transactions = [(0, Pairs())] if before is None else before.transactions
        # Of each sync and acknowledgement: what was recorded when it had ended, how many transactions it covers, and
        # the position up to which the store says that it survives power loss.
        self.synced = [] if before is None else before.synced
        super().__init__(
            directory,
            create=before is None,
            sync_interval_s=3600.0,  # syncs are those that are asked for
            write_buffer_bytes=write_buffer_bytes,
        )
        self.created = disk.position(name) if before is None else before.created

    def apply(self, transaction: Transaction) -> int:
        pairs = dict(self.transactions[-1][1])
        for begin, end in transaction.cleared:
            for key in [key for key in pairs if begin <= key < end]:
                del pairs[key]
        for key, value in transaction.writes.items():
            if value is None:
                pairs.pop(key, None)
            else:
                pairs[key] = value
        self.transactions.append((self._disk.position(self._name), pairs))
        return super().apply(transaction)

    async def sync(self) -> None:
        covered = len(self.transactions) - 1
        await super().sync()
        self._note(covered)

    def acknowledge(self) -> None:
        """The service has just answered, and promised that what it did survives power loss."""
        self._note(len(self.transactions) - 1)

    def _note(self, covered: int) -> None:
        """So many transactions survive power loss from now on."""
        position = (
            self.synced_position
        )  # before the disk is asked: a sync in the background may end meanwhile
        self.synced.append((self._disk.position(self._name), covered, position))

    def promises(self, cut: int) -> tuple[int, int, bool]:
        """What must be there after power was lost before change number `cut`: a transaction's number, a position of the
        store, and the store.
        """
        ended = [(covered, position) for at, covered, position in self.synced if at <= cut]
        return (*(ended[-1] if ended else (0, 0)), self.created <= cut)

    def check(self, directory: Path, cut: int) -> None:
        """The store opens, and is what it was after one of the transactions that may be the last."""
        first, position, exists = self.promises(cut)
        try:
            engine = RocksEngine(directory, create=not exists)
        except CorruptData as error:
            raise AssertionError(f"the store does not open: {error}") from error
        try:
            found = dict(engine.look().iterate(BEGIN, END))
            allowed = [pairs for at, pairs in self.transactions[first:] if at <= cut]
            assert found in allowed, self._explain(found, first, len(allowed))
            assert engine.version >= position, (
                f"position {engine.version} of a store that reported {position}"
            )
        finally:
            engine.close()

    def _explain(self, found: Pairs, first: int, count: int) -> str:
        """How what was found differs from the transactions that may be the last."""
        known = [number for number, (_, pairs) in enumerate(self.transactions) if pairs == found]
        if known:
            return f"the last transaction is {known[-1]}, not one of {first} to {first + count - 1}"
        differences = (
            (len(dict(found.items() ^ pairs.items())), number)
            for number, (_, pairs) in enumerate(self.transactions)
        )
        least, number = min(differences)
        return f"no transaction leaves these {len(found)} pairs; {least} keys differ from number {number}"


__all__ = ["RecordedStore"]
