"""A file system that counts the bytes which are read through it, by whatever method, and passes everything on."""

from typing import Any, Self


class CountingFileSystem:
    """Around a `FileSystem` or a `LocalFileSystem`. `read_bytes` counts what was asked for, `reads` how often."""

    def __init__(self, file_system: Any) -> None:
        self._file_system = file_system
        self.read_bytes = 0
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        if name not in PASSED_ON:
            raise AttributeError(f"{name} is not counted: see how it reads, then pass it on")
        return getattr(self._file_system, name)

    def count(self, size: int) -> None:
        self.read_bytes += size
        self.reads += 1

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        data: bytes = self._file_system.read(path, offset, size)
        self.count(len(data))
        return data

    def open(self, path: str, mode: str = "r", *arguments: Any, **named: Any) -> "CountingFile":
        return CountingFile(self, self._file_system.open(path, mode, *arguments, **named))

    def ring(self, entries: int = 128) -> "CountingRing":
        return CountingRing(self, self._file_system.ring(entries))


PASSED_ON = frozenset({"exists", "isdir", "isfile", "listdir", "stat"})  # they read no file


class CountingFile:
    def __init__(self, counter: CountingFileSystem, file: Any) -> None:
        self._counter = counter
        self.file = file
        self.name = file.name

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.file.read(size)
        self._counter.count(len(data))
        return data

    def pread_into(self, buffer: Any, offset: int) -> int:
        count: int = self.file.pread_into(buffer, offset)
        self._counter.count(count)
        return count

    def stat(self) -> Any:
        return self.file.stat()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()


class CountingRing:
    def __init__(self, counter: CountingFileSystem, ring: Any) -> None:
        self._counter = counter
        self._ring = ring

    @property
    def in_flight(self) -> int:
        return int(self._ring.in_flight)

    def submit(self, operations: list[Any]) -> int:
        taken: int = self._ring.submit([one._replace(file=one.file.file) for one in operations])
        for one in operations[:taken]:
            length = memoryview(one.buffer).nbytes - one.buffer_offset if one.length is None else one.length
            self._counter.count(length)
        return taken

    def drain(self, *arguments: Any, **named: Any) -> Any:
        return self._ring.drain(*arguments, **named)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._ring.close()
