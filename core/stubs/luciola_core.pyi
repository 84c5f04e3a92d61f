"""The native module: storage node, client, mount and rings. See `core/src/python`."""

from collections.abc import Sequence
from typing import Literal, final

__version__: str

@final
class Client:
    """One client of a cluster. Raises the classes of `luciola.errors`."""

    def __new__(
        cls,
        mgmtd: Sequence[str],
        claims: bytes,
        key: bytes,
        *,
        description: str = "",
        mount: bool = False,
        deadline_ms: int = 60_000,
        retry_first_ms: int = 10,
        retry_max_ms: int = 1000,
        connections_per_node: int = 16,
        write_buffer_bytes: int = ...,
        read_ahead_bytes: int = ...,
        attribute_timeout_ms: int = 1000,
        transport: Literal["auto", "shm", "tcp"] | str = "auto",
    ) -> Client: ...
    @property
    def id(self) -> int: ...
    def close(self) -> None: ...
