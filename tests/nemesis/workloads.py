"""A program that works on one kind of object through one kind of client, and records every call. Runs as a program.

usage: python -m nemesis.workloads KIND CLIENT PLACE --history FILE --seed N --began-ns T

Objects change every few seconds, for all programs at the same moment, so that histories stay short. It ends after
SIGTERM, when the call in flight has returned.

| KIND | object | calls |
|---|---|---|
| register | a block of a preallocated file | direct write and read of the whole block, fsync |
| log | a file | append of a record, read of everything, length; direct |
| names | names in one directory | create (O_EXCL), rename*, unlink, stat, list; fsync of the directory |
| close | a file | open, write, close; open, read, close |

* Not on a mount: its kernel asks for both names before, and moves the file that it knows by the old one, another one
by now, and does nothing if it takes both names for one file.

| CLIENT | PLACE | |
|---|---|---|
| mount | directory | a mount with `--consistency strict` |
| cached | directory | a mount with close-to-open consistency; registers with O_DIRECT |
| python | data directory | `luciola.connect` |
| ring | data directory | `luciola.connect`, reads and writes by a ring |
| reader | data directory | `luciola.connect`, opened for reading: makes durable what others have written |
| threads | data directory | `luciola.connect`, threads of one client, whose syncs overlap |
"""

import argparse
import contextlib
import errno
import mmap
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from nemesis.histories import EVERY_KEY, Recorder

KINDS: Final = ("register", "log", "names", "close")
CLIENTS: Final = ("mount", "cached", "python", "ring", "reader", "threads")
THREADS: Final = 6
EPOCH_S: Final = 6  # of one set of objects
BLOCK: Final = 4096  # of a register: a quarter of the engine's page
CHUNK: Final = 1 << 20
LOOK_BACK: Final = 12  # epochs
REGISTERS: Final = 3  # at a time, in chunks of their own
REGISTER_CHUNKS: Final = 60
RECORD: Final = 64  # of a log
SMALL: Final = 100  # of a file that lives in its inode
BEYOND_INODE: Final = 8192
NAMES: Final = ("a", "b", "c")
PAUSE_S: Final = 0.05  # between calls, at most
SHORT_PAUSE_S: Final = 0.01  # of `threads`
RETRY_S: Final = 0.2  # after an error
REGISTER_FILE: Final = "registers"
DIRECTORY: Final = "names"


class OpenFile(Protocol):
    """An open file, of a mount or of Python."""

    def read(self, length: int, offset: int) -> bytes: ...
    def write(self, data: bytes, offset: int) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class MountedFile:
    """A descriptor, used through memory that is aligned where it was opened with O_DIRECT."""

    def __init__(self, descriptor: int, *, is_direct: bool) -> None:
        self._file = descriptor
        self._block = mmap.mmap(-1, BLOCK) if is_direct else None

    def read(self, length: int, offset: int) -> bytes:
        if self._block is None:
            return os.pread(self._file, length, offset)
        count = os.preadv(self._file, [self._block], offset)
        return self._block[:count]

    def write(self, data: bytes, offset: int) -> None:
        if self._block is not None:
            self._block[: len(data)] = data
            moved = os.pwritev(self._file, [self._block], offset)
        else:
            moved = os.pwrite(self._file, data, offset)
        check_moved(moved, len(data))

    def append(self, data: bytes) -> None:
        check_moved(os.write(self._file, data), len(data))

    def sync(self) -> None:
        os.fsync(self._file)

    def inode(self) -> int:
        return os.fstat(self._file).st_ino

    def close(self) -> None:
        os.close(self._file)


class Mounted:
    """Files of a mount, by a descriptor of its top: where nothing is mounted there are none."""

    def __init__(self, top: str, *, is_direct: bool) -> None:
        self._path = top
        self._direct = os.O_DIRECT if is_direct else 0
        self._descriptor = -1

    @property
    def _top(self) -> int:
        """Raises: OSError while nothing is mounted."""
        if self._descriptor < 0:
            if not os.path.ismount(self._path):
                raise OSError(errno.ENOTCONN, "not mounted", self._path)
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
            if os.fstat(self._descriptor).st_dev == os.stat(os.path.dirname(self._path)).st_dev:
                self.reconnect()
                raise OSError(errno.ENOTCONN, "not mounted", self._path)
        return self._descriptor

    def reconnect(self) -> None:
        """The mount may be another one by now."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _open(self, path: str, flags: int) -> MountedFile:
        return MountedFile(os.open(path, flags, 0o644, dir_fd=self._top), is_direct=bool(flags & os.O_DIRECT))

    def open_register(self, path: str) -> MountedFile:
        return self._open(path, os.O_RDWR | self._direct)

    def open_log(self, path: str) -> MountedFile:
        return self._open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def open_file(self, path: str, *, write: bool) -> MountedFile:
        return self._open(path, os.O_RDWR | os.O_CREAT if write else os.O_RDONLY)

    def create(self, path: str) -> MountedFile:
        return self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def read_all(self, path: str) -> bytes:
        file = self.open_file(path, write=False)
        try:
            return file.read(CHUNK, 0)
        finally:
            file.close()

    def stat(self, path: str) -> os.stat_result:
        return os.stat(path, dir_fd=self._top)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target, src_dir_fd=self._top, dst_dir_fd=self._top)

    def unlink(self, path: str) -> None:
        os.unlink(path, dir_fd=self._top)

    def list(self, path: str) -> list[str]:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._top)
        try:
            return os.listdir(directory)
        finally:
            os.close(directory)

    def sync_directory(self, path: str) -> None:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._top)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class NativeFile:
    """A `luciola.File`, through a ring if there is one."""

    def __init__(self, file: Any, ring: Any = None) -> None:
        self._file, self._ring = file, ring

    def read(self, length: int, offset: int) -> bytes:
        if self._ring is None:
            return bytes(self._file.pread(length, offset))
        data = bytearray(length)
        return bytes(data[: self._moved(offset, data, write=False)])

    def write(self, data: bytes, offset: int) -> None:
        if self._ring is None:
            check_moved(self._file.pwrite(data, offset), len(data))
        else:
            check_moved(self._moved(offset, data, write=True), len(data))

    def _moved(self, offset: int, data: bytes | bytearray, *, write: bool) -> int:
        from luciola.client import Operation

        self._ring.submit([Operation(self._file, offset, data, write=write)])
        (completion,) = self._ring.drain(least=1)
        return int(completion.moved)

    def append(self, data: bytes) -> None:
        check_moved(self._file.write(data), len(data))

    def sync(self) -> None:
        self._file.fsync()

    def inode(self) -> int:
        return int(self._file.stat().st_ino)

    def close(self) -> None:
        self._file.close()


class Native:
    """Files of `luciola.connect`."""

    def __init__(self, data: str, client: str) -> None:
        import luciola

        self._fs = luciola.connect(data, config=Path(data).parent / "config.toml")
        self._ring = self._fs.ring(16) if client == "ring" else None
        self._mode = "rb" if client == "reader" else "r+b"

    def open_register(self, path: str) -> NativeFile:
        return NativeFile(self._fs.open(path, self._mode, buffering=0, direct=True), self._ring)

    def open_log(self, path: str) -> NativeFile:
        return NativeFile(self._fs.open(path, "ab", buffering=0, direct=True))

    def open_file(self, path: str, *, write: bool) -> NativeFile:
        if write:
            self._fs.open(path, "ab").close()
        return NativeFile(self._fs.open(path, "r+b" if write else "rb", buffering=0))

    def create(self, path: str) -> NativeFile:
        return NativeFile(self._fs.open(path, "xb", buffering=0))

    def read_all(self, path: str) -> bytes:
        with self._fs.open(path, "rb", buffering=0, direct=True) as file:
            return bytes(file.pread(CHUNK, 0))

    def stat(self, path: str) -> os.stat_result:
        return self._fs.stat(path)

    def rename(self, source: str, target: str) -> None:
        self._fs.rename(source, target)

    def unlink(self, path: str) -> None:
        self._fs.remove(path)

    def list(self, path: str) -> list[str]:
        return self._fs.listdir(path)

    def reconnect(self) -> None:
        """It connects again by itself."""


def connected(place: str, client: str) -> Any:
    """Files through that kind of client, as soon as the cluster answers."""
    if client in ("mount", "cached"):
        return Mounted(place, is_direct=client == "cached")
    while True:
        try:
            return Native(place, client)
        except OSError:
            time.sleep(RETRY_S)


class ShortMove(OSError):
    """Fewer bytes were moved than asked for: the outcome of the rest is unknown."""


def check_moved(moved: int, length: int) -> None:
    if moved != length:
        raise ShortMove(errno.EIO, f"{moved} of {length} bytes")


class TornError(Exception):
    """A read saw parts of several writes."""


def pattern(value: int, length: int) -> bytes:
    """Bytes that say in each of their parts which write they are of."""
    return (value.to_bytes(8, "little") * (length // 8 + 1))[:length]


def value_of(data: bytes, length: int) -> int:
    """Which write it is of; 0 where nothing was written. A file may be shorter before its first write."""
    value = int.from_bytes(data[:8], "little")
    if value == 0:
        data = data.ljust(length, b"\0")
    if data != pattern(value, length):
        raise TornError(f"{len(data)} bytes that begin with {value}")
    return value


class Program:
    """One workload: `step` is one call, with what it takes to record it."""

    def __init__(self, options: argparse.Namespace, files: Any, thread: int = 0) -> None:
        self.choose = random.Random(options.seed + thread)
        self.recorder = Recorder(options.history)
        self._writer = self.recorder.life * len(CLIENTS) + CLIENTS.index(options.client)
        self._began_ns = options.began_ns
        self._calls = 0
        self.files = files
        self.client: str = options.client
        self.open: Any = None  # the file that it works on, and its name
        self.open_name = ""

    @property
    def epoch(self) -> int:
        """Which objects are worked on now."""
        return int((time.monotonic_ns() - self._began_ns) // (EPOCH_S * 10**9))

    def earlier_epoch(self) -> int:
        """Objects that are looked at once more: a fault may have ended since."""
        return max(0, self.epoch - self.choose.randrange(1, LOOK_BACK))

    def value(self) -> int:
        """A number that no other write has."""
        self._calls += 1
        return (self._writer << 40) | self._calls

    def call(self, key: str, kind: str, argument: Any, act: Callable[[], Any], *, reads: bool) -> None:
        """Record one call. An error has no effect if it `reads`, an unknown one if not."""
        number = self.recorder.invoke(key, kind, argument)
        try:
            result = act()
        except OSError as error:
            self.recorder.note_error(number, error)
            if reads:
                self.recorder.forget(number)
            self.reset(has_failed=True)
            time.sleep(RETRY_S)
            return
        except TornError as error:
            result = f"torn: {error}"
        self.recorder.complete(number, result)

    def reset(self, *, has_failed: bool = False) -> None:
        """Close what is open: a client that has failed it may work with another."""
        file, self.open = self.open, None
        if file is not None:
            with contextlib.suppress(OSError):  # its error belongs to a call that was recorded before
                file.close()
        if has_failed:
            self.files.reconnect()

    def opened(self, name: str, how: Callable[[str], Any]) -> Any:
        """The file of that name, opened once."""
        if self.open is None or self.open_name != name:
            self.reset()
            self.open, self.open_name = how(name), name
        return self.open

    def step(self) -> None:
        raise NotImplementedError


class RegisterProgram(Program):
    def step(self) -> None:
        dice = self.choose.random()
        epoch = self.epoch if dice < 0.8 else self.earlier_epoch()
        index = self.choose.randrange(REGISTERS)
        key = f"{epoch}-{index}"
        chunk = (epoch // (CHUNK // BLOCK) * REGISTERS + index) % REGISTER_CHUNKS
        offset = chunk * CHUNK + epoch % (CHUNK // BLOCK) * BLOCK
        writes, syncs = {"reader": (0.0, 0.3), "threads": (0.4, 0.5)}.get(self.client, (0.35, 0.02))
        if dice < writes:
            value = self.value()
            self.call(key, "write", value, lambda: self._write(value, offset), reads=False)
        elif dice < writes + syncs:
            self.call(EVERY_KEY, "sync", None, lambda: self._file().sync(), reads=False)
        else:
            self.call(key, "read", None, lambda: self._read(offset), reads=True)

    def _write(self, value: int, offset: int) -> None:
        self._file().write(pattern(value, BLOCK), offset)

    def _read(self, offset: int) -> int:
        return value_of(self._file().read(BLOCK, offset), BLOCK)

    def _file(self) -> Any:
        return self.opened(REGISTER_FILE, self.files.open_register)


class LogProgram(Program):
    def step(self) -> None:
        dice = self.choose.random()
        key = str(self.epoch if dice < 0.7 else self.earlier_epoch())
        name = f"log-{key}"
        if dice < 0.4:
            value = self.value()
            self.call(key, "append", value, lambda: self._append(name, value), reads=False)
        elif dice < 0.6 or dice > 0.8:
            self.call(key, "read", None, lambda: self._records(name), reads=True)
        else:
            self.call(key, "length", None, lambda: self._length(name), reads=True)

    def _append(self, name: str, value: int) -> None:
        self.opened(name, self.files.open_log).append(pattern(value, RECORD))

    def _records(self, name: str) -> list[int]:
        try:
            data = self.files.read_all(name)
        except FileNotFoundError:
            return []
        return [value_of(data[at : at + RECORD], RECORD) for at in range(0, len(data), RECORD)]

    def _length(self, name: str) -> int:
        try:
            length = self.files.stat(name).st_size
        except FileNotFoundError:
            return 0
        if length % RECORD:
            raise TornError(f"a length of {length} bytes")
        return int(length // RECORD)


class NamesProgram(Program):
    def step(self) -> None:
        dice = self.choose.random()
        key = str(self.epoch if dice < 0.8 else self.earlier_epoch())
        name, other = self.choose.sample(NAMES, 2)
        path = f"{DIRECTORY}/{key}-{name}"
        if dice < 0.25:
            self.call(key, "create", name, lambda: self._create(path), reads=False)
        elif dice < 0.4:
            act = self._unless_absent(lambda: self.files.unlink(path))
            self.call(key, "unlink", name, act, reads=False)
        elif dice < 0.55 and self.client == "python":
            target = f"{DIRECTORY}/{key}-{other}"
            act = self._unless_absent(lambda: self.files.rename(path, target))
            self.call(key, "rename", [name, other], act, reads=False)
        elif dice < 0.6 and self.client != "python":
            self.call(EVERY_KEY, "sync", None, lambda: self.files.sync_directory(DIRECTORY), reads=False)
        elif dice < 0.7 or dice > 0.9:
            self.call(key, "list", "", lambda: self._list(key), reads=True)
        else:
            act = self._unless_absent(lambda: int(self.files.stat(path).st_ino))
            self.call(key, "stat", name, act, reads=True)

    def _create(self, path: str) -> int | str:
        try:
            file = self.files.create(path)
        except FileExistsError:
            return "EEXIST"
        try:
            return int(file.inode())
        finally:
            file.close()

    def _unless_absent(self, act: Callable[[], Any]) -> Callable[[], Any]:
        def tried() -> Any:
            try:
                return act()
            except FileNotFoundError:
                return "ENOENT"

        return tried

    def _list(self, key: str) -> list[str]:
        names = self.files.list(DIRECTORY)
        return sorted(name.rpartition("-")[2] for name in names if name.startswith(f"{key}-"))


class CloseProgram(Program):
    def step(self) -> None:
        dice = self.choose.random()
        epoch = self.epoch if dice < 0.8 else self.earlier_epoch()
        key, name = str(epoch), f"close-{epoch}"
        offset, length = (0, SMALL) if epoch % 2 else (BEYOND_INODE, BLOCK)
        if dice < 0.35:
            value = self.value()
            self.call(key, "write", value, lambda: self._write(name, value, offset, length), reads=False)
        else:
            self.call(key, "read", None, lambda: self._read(name, offset, length), reads=True)

    def _write(self, name: str, value: int, offset: int, length: int) -> None:
        file = self.files.open_file(name, write=True)
        try:
            file.write(pattern(value, length), offset)
        finally:
            file.close()

    def _read(self, name: str, offset: int, length: int) -> int | str:
        try:
            file = self.files.open_file(name, write=False)
        except FileNotFoundError:
            return "ENOENT"
        try:
            return value_of(file.read(length, offset), length)
        finally:
            file.close()


PROGRAMS: Final = {
    "register": RegisterProgram,
    "log": LogProgram,
    "names": NamesProgram,
    "close": CloseProgram,
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("place")
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--began-ns", type=int, required=True)
    options = parser.parse_args()
    files = connected(options.place, options.client)
    count, pause_s = (THREADS, SHORT_PAUSE_S) if options.client == "threads" else (1, PAUSE_S)
    programs = [PROGRAMS[options.kind](options, files, thread) for thread in range(count)]
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())

    def work(program: Program) -> None:
        while not ending.wait(program.choose.uniform(0, pause_s)):
            program.step()

    others = [threading.Thread(target=work, args=(program,), daemon=True) for program in programs[1:]]
    for thread in others:
        thread.start()
    work(programs[0])
    for thread in others:
        thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
