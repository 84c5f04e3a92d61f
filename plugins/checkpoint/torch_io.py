"""torch.save and torch.load on locations: files that appear complete, streams that torch reads and seeks in."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final

from luciola.client import Location, open_location, replacing
from luciola.errors import InvalidArgument

from .tensorfile import explained

if TYPE_CHECKING:
    import torch

BUFFER_BYTES: Final = 1 << 20  # one chunk: small pieces of a pickle are not requests


@contextmanager
def open_stream(
    location: str | os.PathLike[str] | Location,
    mode: str = "rb",
    *,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
) -> Iterator[IO[bytes]]:
    """Open a buffered, seekable binary file for a `with` block. A new file gets its name, durable, when the block ends.

    `mode`: "rb" or "wb". After an error in the block the name refers to the old file.
    """
    file_system, path = open_location(location, secret_file=secret_file, token=token, token_file=token_file)
    if mode == "rb":
        raw: Any = file_system.open(path, "rb")
        with io.BufferedReader(raw, BUFFER_BYTES) as reader:
            yield reader
    elif mode == "wb":
        with explained(path), replacing(file_system, path) as file:
            kept = _Unclosed(file)
            writer = io.BufferedWriter(kept, BUFFER_BYTES)
            try:
                yield writer
                writer.close()
            except BaseException as error:
                kept.is_given_up = True
                writer.close()
                # torch's own error says only that its archive has a wrong length.
                if kept.error is not None and kept.error is not error:
                    raise kept.error from error
                raise
    else:
        raise ValueError(f"mode is 'rb' or 'wb', not {mode!r}")


class _Unclosed(io.RawIOBase):
    """A file that stays open for `replacing` when its buffer is closed; it keeps the first error of a write."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None
        self.is_given_up = False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self.is_given_up:
            return memoryview(data).nbytes
        try:
            return int(self._file.write(data))
        except OSError as error:
            self.error = self.error or error
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())


def save_object(
    value: Any,
    location: str | os.PathLike[str] | Location,
    *,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
) -> None:
    """Call `torch.save` with a location; the file gets its name when it is complete and durable."""
    import torch

    with open_stream(location, "wb", secret_file=secret_file, token=token, token_file=token_file) as file:
        torch.save(value, file)


def load_object(  # noqa: PLR0913 (parameters of torch.load, and credentials)
    location: str | os.PathLike[str] | Location,
    *,
    map_location: "str | torch.device | None" = None,
    weights_only: bool = True,
    mmap: bool = False,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
) -> Any:
    """Call `torch.load` with a location. `mmap`: of files of this machine and mounts only; pages are read on access."""
    import torch

    file_system, path = open_location(location, secret_file=secret_file, token=token, token_file=token_file)
    if mmap:
        from luciola.client import LocalFileSystem

        if not isinstance(file_system, LocalFileSystem):
            raise InvalidArgument(
                "mmap=True needs a file of this machine: give the path on a mount", path=path
            )
        return torch.load(path, map_location=map_location, weights_only=weights_only, mmap=True)
    with open_stream(location, "rb", secret_file=secret_file, token=token, token_file=token_file) as file:
        return torch.load(file, map_location=map_location, weights_only=weights_only)


__all__ = ["load_object", "open_stream", "save_object"]
