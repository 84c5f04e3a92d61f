"""How the bytes of a file are spread over the chains of a cluster.

A file has its layout from its creation on. A directory hands one on: to files and directories that are made in it.
"""

from dataclasses import dataclass
from typing import Final, Self

from ..errors import InvalidArgument

NUMBER_MAX: Final = (1 << 32) - 1  # what messages hold

Fields = tuple[int | None, int | None, int | None, int | None]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout, or the part of one that is asked for: None is what the directory has, or else the configuration.

    Raises: InvalidArgument for 0 where nothing can be 0. Tighter bounds are the metadata service's.
    """

    table: int | None = None  # the chain table whose chains hold the chunks
    chunk_bytes: int | None = None  # a power of two
    stripe: int | None = (
        None  # chains that a file is spread over: as many as the table has, if those are fewer
    )
    inline_bytes: int | None = None  # files of at most this many bytes are in the metadata store; 0: none are

    def __post_init__(self) -> None:
        for name, least in (("table", 1), ("chunk_bytes", 1), ("stripe", 1), ("inline_bytes", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value <= NUMBER_MAX:
                raise InvalidArgument(f"layout.{name} must be from {least} to {NUMBER_MAX}, not {value}")

    @classmethod
    def of(cls, fields: Fields) -> Self:
        """Return the layout that the native client describes."""
        table, chunk_bytes, stripe, inline_bytes = fields
        return cls(table=table, chunk_bytes=chunk_bytes, stripe=stripe, inline_bytes=inline_bytes)

    @property
    def fields(self) -> Fields:
        """As the native client takes it."""
        return self.table, self.chunk_bytes, self.stripe, self.inline_bytes


__all__ = ["Fields", "Layout"]
