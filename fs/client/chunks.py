"""Chunks by their names: what a backup reads and a restore writes. Files are none of its business.

Every call waits, without the GIL; several threads may call at once.
"""

from collections.abc import Sequence
from typing import Final

import luciola_core

from ..config import ClientConfig
from .connection import Connection, Parameters

crc32c: Final = luciola_core.crc32c


class Chunks:
    """The chunks of the cluster of a data directory."""

    def __init__(self, data_dir: str, *, deadline_ms: int) -> None:
        """`deadline_ms`: how long a call is retried before it raises Timeout."""
        config = ClientConfig(deadline_ms=deadline_ms)
        self._connection = Connection(Parameters(data_dir, None, None, config))

    def read(self, chain: int, content: int, number: int, into: memoryview) -> tuple[int, int]:
        """Return the first bytes of a chunk, as many as fit: how many it has, and its version; (0, 0) if there is none.

        Raises: CorruptData if all replicas are damaged; Timeout.
        """
        return self._connection.client.read_chunk(chain, content, number, into)

    def write(self, chain: int, content: int, number: int, data: bytes) -> None:
        """Write the first bytes of a chunk. Raises: NoSpace, Timeout."""
        self._connection.client.write_chunk(chain, content, number, data)

    def sync(self, chains: Sequence[int]) -> None:
        """Everything written to these chains survives the loss of power, on every replica. Raises: Timeout."""
        self._connection.client.sync_chains(chains)

    def close(self) -> None:
        """End the session and close the connections."""
        self._connection.close()


def buffer(length: int) -> memoryview:
    """Memory that storage nodes on this host fill directly."""
    return memoryview(luciola_core.Buffer(max(length, 1)))


__all__ = ["Chunks", "buffer", "crc32c"]
