"""Shared by writers of all formats: a file that takes its name when it is complete and durable, written in large
pieces, and removed after an error."""

from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from ...client.location import AnyFileSystem, replacing

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

WRITE_BYTES: Final = 4 << 20  # small records are gathered into writes of this size


class NewFile:
    """A file while it is being made, from byte `start` on."""

    def __init__(self, file_system: AnyFileSystem, path: str, *, start: int = 0) -> None:
        self.path = path
        self.position = start
        self._pending = bytearray()
        self._replacing = replacing(file_system, path)
        self._file = self._replacing.__enter__()

    def put(self, data: "ReadableBuffer") -> None:
        """Append bytes."""
        view = memoryview(data)
        if view.nbytes >= WRITE_BYTES:
            self._flush()
            self.position += self._file.pwrite(view, self.position)
            return
        self._pending += view
        if len(self._pending) >= WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self.position += self._file.pwrite(self._pending, self.position)
            self._pending = bytearray()

    def complete(self, head: bytes = b"") -> None:
        """Complete the file: what was put, behind `head`."""
        try:
            self._flush()
            if head:
                self._file.pwrite(head, 0)
        except BaseException as error:
            self.abandon(error)
            raise
        self._replacing.__exit__(None, None, None)

    def abandon(self, error: BaseException) -> None:
        """Remove what was written; the old file of that name, if there is one, stays."""
        try:
            self._replacing.__exit__(type(error), error, error.__traceback__)
        except BaseException as raised:
            if raised is not error:
                raise


class Writer:
    """The life of a writer: `close` completes, an error in a `with` block abandons."""

    path: str
    _open = True
    _file: NewFile

    def close(self) -> None:
        """Complete the file."""
        if self._open:
            self._open = False
            self._complete()

    def _complete(self) -> None:
        raise NotImplementedError

    def _abandon(self, error: BaseException) -> None:
        self._file.abandon(error)

    def _require_open(self) -> None:
        if not self._open:
            raise ValueError(f"{self.path}: the writer is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is None:
            self.close()
        elif self._open:
            self._open = False
            self._abandon(value)


def as_bytes(data: "ReadableBuffer") -> memoryview:
    """View the bytes of any contiguous buffer."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


__all__ = ["NewFile", "Writer", "as_bytes"]
