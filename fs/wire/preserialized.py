"""Replies that are put together in their wire form, from parts that were stored in it."""

from typing import Final, Generic, TypeVar

from google.protobuf.message import Message

Reply = TypeVar("Reply", bound=Message)


class Preserialized(Generic[Reply]):
    """The bytes of a reply, which carriers pass on as they are."""

    __slots__ = ("_bytes", "kind")

    def __init__(self, kind: type[Reply], encoded: bytes) -> None:
        self.kind = kind
        self._bytes = encoded

    def SerializeToString(self) -> bytes:  # noqa: N802, as messages call it
        return self._bytes

    def message(self) -> Reply:
        """The reply taken apart. Raises: DecodeError."""
        return self.kind.FromString(self._bytes)


class Prefixes(dict[int, bytes]):
    """A field's tag, followed by the length of its value: by lengths, of which there are few thousand."""

    def __init__(self, tag: bytes) -> None:
        super().__init__()
        self._tag: Final = tag

    def __missing__(self, length: int) -> bytes:
        prefix = self[length] = self._tag + _varint(length)
        return prefix


def _varint(number: int) -> bytes:
    return bytes((number,)) if number < 0x80 else bytes((number & 0x7F | 0x80,)) + _varint(number >> 7)


def kind_of(reply: object) -> type[object]:
    """The class of a reply, also of one that is encoded."""
    return reply.kind if isinstance(reply, Preserialized) else type(reply)


__all__ = ["Prefixes", "Preserialized", "kind_of"]
