"""Processes of one host: each maps the memory of all.

A region is a memfd, which peers open through /proc and map, and which has no name: nothing is left behind when a
process is killed, and the size of /dev/shm does not limit it. Pages are taken when they are first written.

      0  flags     64-bit words, [source][slot]: raised by `source`, waited for by the owner
         state     a flag: 0 open, 1 closed, 2 failed
         reason    length (uint64) and text of the failure
    page boundary
         data      num_bytes

Order: flags are atomics of the native module, raised with release and read with acquire, on x86-64 and arm64 alike (see
`core/src/buffer/flag.rs`); torch's plain stores before them cannot do that. A waiter sleeps in the kernel (futex),
which matters where there are more ranks than cores, and checks that the peer's process is alive now and then.
"""

import contextlib
import fcntl
import mmap
import os
import select
import time
from typing import ClassVar, Final, Self

import luciola_core
import torch
from torch import Tensor

from ...kernels.quantize import align
from .bootstrap import Bootstrap, NotUsable, all_or_none, require_one_host
from .errors import ENCODED_BYTES_MAX, CommunicationError, PeerLost, decode
from .interface import SLOTS, Transport

LOOK_S: Final = 0.02
"""Between two checks of the peer's process, and of a flag that a kernel raises, which wakes no waiter."""
OPEN, CLOSED, FAILED = range(3)
PAGE: Final = mmap.PAGESIZE
WORD: Final = 8


class SharedMemory(Transport):
    """Regions of processes of one host."""

    name: ClassVar[str] = "shared-memory"
    device_type: ClassVar[str | None] = "cpu"
    compares: ClassVar[bool] = True

    def __init__(self, ranks: Bootstrap, maps: list[mmap.mmap], processes: list[int], *, num_bytes: int,
                 timeout_s: float) -> None:  # fmt: skip
        super().__init__(
            ranks.rank, ranks.size, num_bytes=num_bytes, device=torch.device("cpu"), timeout_s=timeout_s
        )
        self._maps = maps
        self._processes = processes
        """File descriptors by which peers' ends are noticed; -1 for this rank."""
        head = _head_bytes(self.size)
        self._regions = [torch.frombuffer(each, dtype=torch.uint8)[head:] for each in maps]
        self._flags = [torch.frombuffer(each, dtype=torch.int64, count=self.size * SLOTS) for each in maps]

    @classmethod
    def open(cls, ranks: Bootstrap, num_bytes: int, *, device: torch.device, timeout_s: float) -> Self:
        """All ranks together. Raises: NotUsable on all of them."""
        assert device.type == "cpu", "regions are in the memory of the host"
        length = _head_bytes(ranks.size) + align(num_bytes, PAGE)
        require_one_host(ranks)
        file = inode = -1
        maps: list[mmap.mmap] = []
        processes: list[int] = []
        try:
            with all_or_none(ranks):
                file = os.memfd_create("luciola-deepep", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                os.ftruncate(file, length)
                # So that touching a mapping cannot fail.
                fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
                inode = os.fstat(file).st_ino
            offers = ranks.gather((os.getpid(), file, inode))
            with all_or_none(ranks):  # files are open until all have mapped them
                for peer, (process, number, known) in enumerate(offers):
                    processes.append(-1 if peer == ranks.rank else os.pidfd_open(process))
                    maps.append(_map(process, number, known, length))
        except NotUsable:
            _release(maps, processes)
            raise
        finally:
            if file >= 0:
                os.close(file)
        return cls(ranks, maps, processes, num_bytes=num_bytes, timeout_s=timeout_s)

    def buffer(self, rank: int) -> Tensor:
        """As Transport.buffer."""
        self._require_usable()
        return self._regions[rank][: self.num_bytes]

    def signal(self, peer: int, slot: int, epoch: int) -> None:
        """As Transport.signal: one store, and one system call that wakes a waiter."""
        self._require_usable()
        luciola_core.flag_raise(self._maps[peer], _flag(self.rank, slot), epoch)

    def wait(self, peer: int, slot: int, epoch: int, *, what: str, fatal: bool = True) -> None:
        """As Transport.wait."""
        self._require_usable()
        deadline = time.monotonic() + self.timeout_s
        flag = _flag(peer, slot)
        while luciola_core.flag_wait(self._maps[self.rank], flag, epoch, LOOK_S) < epoch:
            error = self._failure_of(peer, what)
            if luciola_core.flag_wait(self._maps[self.rank], flag, epoch, 0) >= epoch:
                return  # signalled just before its rank ended
            if error is None and time.monotonic() >= deadline:
                error = self._timeout(peer, what)
            if error is not None:
                if fatal:
                    self.fail(error)
                raise error

    def fail(self, error: CommunicationError) -> None:
        """As Transport.fail. The first failure stays."""
        if self._failure is not None or self._is_closed:
            return
        self._failure = error
        self._report(FAILED, error.encode())

    def close(self) -> None:
        """As Transport.close. Memory that the caller still has views of is freed with them."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._failure is None:
            self._report(CLOSED, b"")
        self._regions.clear()
        self._flags.clear()
        _release(self._maps, self._processes)

    def _failure_of(self, peer: int, what: str) -> CommunicationError | None:
        there, state = self._maps[peer], _state(self.size)
        phase = luciola_core.flag_wait(there, state, 0, 0)
        if phase == FAILED:
            length = int.from_bytes(there[state + WORD : state + 2 * WORD], "little")
            return decode(there[state + 2 * WORD : state + 2 * WORD + length])
        if phase == CLOSED:
            return PeerLost(f"rank {peer} has closed its buffer", rank=self.rank, phase=what, peer=peer)
        process = self._processes[peer]
        if process >= 0 and _has_ended(process):
            return PeerLost(f"the process of rank {peer} has ended", rank=self.rank, phase=what, peer=peer)
        return None

    def _report(self, phase: int, reason: bytes) -> None:
        assert len(reason) <= ENCODED_BYTES_MAX, "phases and reasons are sentences"
        here, state = self._maps[self.rank], _state(self.size)
        here[state + 2 * WORD : state + 2 * WORD + len(reason)] = reason
        here[state + WORD : state + 2 * WORD] = len(reason).to_bytes(WORD, "little")
        luciola_core.flag_raise(here, state, phase)


def _flag(source: int, slot: int) -> int:
    assert 0 <= slot < SLOTS, "a slot of the interface"
    return (source * SLOTS + slot) * WORD


def _state(size: int) -> int:
    return size * SLOTS * WORD


def _head_bytes(size: int) -> int:
    return align(_state(size) + 2 * WORD + ENCODED_BYTES_MAX, PAGE)


def _map(process: int, file: int, inode: int, length: int) -> mmap.mmap:
    opened = os.open(f"/proc/{process}/fd/{file}", os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(opened).st_ino != inode:
            raise OSError(f"process {process} has been replaced")
        return mmap.mmap(opened, length)
    finally:
        os.close(opened)


def _release(maps: list[mmap.mmap], processes: list[int]) -> None:
    for each in maps:
        with contextlib.suppress(BufferError):  # a view is left: the memory is freed with it
            each.close()
    for process in processes:
        if process >= 0:
            os.close(process)
    maps.clear()
    processes.clear()


def _has_ended(process: int) -> bool:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))


__all__ = ["SharedMemory"]
