"""Replies that are serialized already: joined from stored bytes that have the wire form."""

from typing import Final, Generic, TypeGuard, TypeVar

from google.protobuf.message import Message

Reply = TypeVar("Reply", bound=Message)


class Preserialized(Generic[Reply]):
    """The bytes of a reply of one kind, which lane and gRPC send as they are."""

    __slots__ = ("_bytes", "kind")

    def __init__(self, kind: type[Reply], encoded: bytes) -> None:
        self.kind = kind
        self._bytes = encoded

    def SerializeToString(self) -> bytes:  # noqa: N802, as messages call it
        return self._bytes

    def message(self) -> Reply:
        """Parse the reply. Raises: DecodeError."""
        return self.kind.FromString(self._bytes)


class Prefixes(dict[int, bytes]):
    """A field's tag, followed by the length of its value: by lengths, of which there are few thousand."""

    def __init__(self, tag: bytes) -> None:
        super().__init__()
        self._tag: Final = tag

    def __missing__(self, length: int) -> bytes:
        prefix = self[length] = self._tag + varint(length)
        return prefix


def varint(number: int) -> bytes:
    """Return the wire form of a number."""
    return bytes((number,)) if number < 0x80 else bytes((number & 0x7F | 0x80,)) + varint(number >> 7)


def is_reply(reply: object, kind: type[Reply]) -> TypeGuard[Reply | Preserialized[Reply]]:
    """Return whether `reply` is a message of this kind, or the bytes of one."""
    return (reply.kind if isinstance(reply, Preserialized) else type(reply)) is kind


__all__ = ["Prefixes", "Preserialized", "is_reply", "varint"]
