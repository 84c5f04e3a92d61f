"""One open file, as `open` of the standard library gives for local ones, without a buffer of its own.

Small writes are merged and small sequential reads are read ahead by the native client, so there is no need to wrap a
`File` into a buffered one. `readinto` into a `luciola.client.Buffer` lets storage nodes on this machine place the
bytes there themselves.
"""

import io
import os
from typing import IO, TYPE_CHECKING, Any, Final, TypeAlias

import luciola_core

from .attributes import stat_result
from .connection import naming

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

AnyIO: TypeAlias = IO[Any]
"""An open file of text or of bytes, as the mode says: what the built-in `open` returns for a mode it does not know."""

LINE_BYTES: Final = 8 << 10  # read at a time in search of the end of a line


class File(io.RawIOBase):
    """An open file with a position. `read` returns fewer bytes than asked only at the end.

    Not for several threads at once where they share the position; `pread`, `pread_into` and `pwrite` are.
    """

    def __init__(self, native: luciola_core.File, name: str, mode: str) -> None:
        self._native = native
        self._position = 0
        self._reads = "r" in mode or "+" in mode
        self._writes = "r" not in mode or "+" in mode
        self._appends = "a" in mode
        self._ending = False
        self.name = name
        self.mode = mode

    @property
    def native(self) -> luciola_core.File:
        """For rings. Raises: ValueError when the file is closed."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self._native

    def readable(self) -> bool:
        return self._reads

    def writable(self) -> bool:
        return self._writes

    def seekable(self) -> bool:
        return True

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<luciola.File {self.name!r} mode={self.mode!r}{state}>"

    # At the position.

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, all to the end for -1."""
        if size is None or size < 0:
            return self.readall()
        data = self.pread(size, self._position)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        self._require(reads=True)
        with naming(self.name):
            left = self._native.length() - self._position
            parts = []
            while True:
                # One byte more than is known, to notice that the file has grown meanwhile.
                part = self._native.read(self._position, max(left, 0) + 1)
                self._position += len(part)
                left = self._native.length() - self._position
                if part:
                    parts.append(part)
                if left <= 0:
                    return parts[0] if len(parts) == 1 else b"".join(parts)

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill `buffer` from the position on; return the number of bytes."""
        count = self.pread_into(buffer, self._position)
        self._position += count
        return count

    def readline(self, size: int | None = -1, /) -> bytes:
        limit = -1 if size is None else size
        parts: list[bytes] = []
        length = 0
        while limit < 0 or length < limit:
            wanted = LINE_BYTES if limit < 0 else min(LINE_BYTES, limit - length)
            part = self.pread(wanted, self._position)
            end = part.find(b"\n") + 1
            line = part[:end] if end else part
            self._position += len(line)
            length += len(line)
            parts.append(line)
            if end or len(part) < wanted:
                break
        return b"".join(parts)

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write all of `data`; return its length. It may wait in this client's buffers until `flush` or `close`."""
        self._require(writes=True)
        count = memoryview(data).nbytes
        with naming(self.name):
            offset = self._native.write(data, None if self._appends else self._position)
        if count:
            self._position = offset + count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        native = self.native
        match whence:
            case os.SEEK_SET:
                position = offset
            case os.SEEK_CUR:
                position = self._position + offset
            case os.SEEK_END:
                with naming(self.name):
                    position = native.refresh() + offset
            case _:
                raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        if position < 0:
            raise ValueError(f"a position is not negative: {position}")
        self._position = position
        return position

    def tell(self) -> int:
        _ = self.native
        return self._position

    # At an offset.

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; the position stays."""
        self._require(reads=True)
        with naming(self.name):
            return self._native.read(offset, size)

    def pread_into(self, buffer: "WriteableBuffer", offset: int) -> int:
        """Fill `buffer` from `offset`; return the number of bytes. The position stays."""
        self._require(reads=True)
        with naming(self.name):
            return self._native.read_into(buffer, offset)

    def pwrite(self, data: "ReadableBuffer", offset: int) -> int:
        """Write all of `data` at `offset` (at the end for a file opened to append). The position stays."""
        self._require(writes=True)
        with naming(self.name):
            self._native.write(data, offset)
        return memoryview(data).nbytes

    # The whole.

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or extend to `size` bytes, by default to the position; return the new length."""
        self._require(writes=True)
        length = self._position if size is None else size
        if length < 0:
            raise ValueError(f"a length is not negative: {length}")
        with naming(self.name):
            self._native.truncate(length)
        return length

    def stat(self) -> os.stat_result:
        """Return the attributes, as `os.fstat`."""
        return stat_result(self.native.stat())

    def flush(self) -> None:
        """Write back all data: opens from now on see it. Raises: the error of an earlier write, once."""
        if self._ending and not self.closed:
            return  # `close` does it
        native = self.native
        if self._writes:
            with naming(self.name):
                native.flush()

    def fsync(self, *, data_only: bool = False) -> None:
        """Everything written survives the loss of power. Raises: the error of an earlier write, once."""
        with naming(self.name):
            self.native.fsync(data_only=data_only)

    def close(self) -> None:
        """As `flush`, and the file is closed, also after an error."""
        if self.closed or self._ending:
            return
        self._ending = True
        try:
            with naming(self.name):
                self._native.close()
        finally:
            super().close()

    def _require(self, *, reads: bool = False, writes: bool = False) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if reads and not self._reads:
            raise io.UnsupportedOperation("not open for reading")
        if writes and not self._writes:
            raise io.UnsupportedOperation("not open for writing")


__all__ = ["AnyIO", "File"]
