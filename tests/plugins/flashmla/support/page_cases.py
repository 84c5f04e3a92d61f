"""What tests of KV page files share: random pages, and disks and copies that come in a chosen order."""

import threading
from collections import deque

import torch

from luciola.client.local import LocalFileSystem
from luciola.client.ring import Completion
from luciola.plugins.flashmla import PageLayout
from luciola.plugins.flashmla.page_cache import Copies

SMALL = PageLayout(layers=2, page_tokens=4)


def fill(cache, seed, blocks=None):
    """Random bits in every layer, NaNs among them."""
    generator = torch.Generator().manual_seed(seed)
    for layer in cache.layers:
        for block in range(cache.blocks) if blocks is None else blocks:
            shape = layer[block].view(torch.uint8).shape
            layer[block].view(torch.uint8).copy_(
                torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            )


def bits(cache, block):
    return [layer[block].clone().view(torch.uint8) for layer in cache.layers]


def same(cache, block, other, other_block):
    return all(map(torch.equal, bits(cache, block), bits(other, other_block)))


class LateCopies(Copies):
    """Copies as a stream makes them: in order, and as late as may be."""

    def __init__(self):
        self.waiting = []
        self._lock = threading.Lock()

    def begin(self, copy):
        self.waiting.append(copy)

        def done(wait):
            if wait:
                self._carry_out(copy)
            return copy not in self.waiting

        return done

    def mark(self):
        last = self.waiting[-1] if self.waiting else None
        return lambda: self._carry_out(last)

    def _carry_out(self, last):
        with self._lock:
            while last in self.waiting:
                self.waiting[0]()
                self.waiting.pop(0)


class Disk:
    """A file that notes the order of its writes and syncs, for looking at every state that a disk may have.

    It does not wait for the real disk.
    """

    def __init__(self, file):
        self._file = file
        self.log = []

    def __getattr__(self, name):
        return getattr(self._file, name)

    def pwrite(self, data, offset):
        self.log.append((offset, bytes(data)))
        return self._file.pwrite(data, offset)

    def fsync(self, *, data_only=False):
        self.log.append("sync")


class DiskRing:
    def __init__(self):
        self._done = deque()

    @property
    def in_flight(self):
        return len(self._done)

    def submit(self, operations):
        for each in operations:
            memory = memoryview(each.buffer)[each.buffer_offset :][: each.length]
            move = each.file.pwrite if each.write else each.file.pread_into
            self._done.append(Completion(each.user_data, move(memory, each.offset)))
        return len(operations)

    def drain(self, most=None, *, least=0, timeout_s=None):
        assert self._done or not least, "nothing is in flight that could end"
        done, self._done = list(self._done), deque()
        return done

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class DiskFileSystem(LocalFileSystem):
    def ring(self, entries=128):
        return DiskRing()


class ShortRing(DiskRing):
    """Moves one byte less than asked where `is_short(operation)`, as at the end of a file or of a disk's space."""

    def __init__(self, is_short):
        super().__init__()
        self._is_short = is_short

    def submit(self, operations):
        super().submit(operations)
        for place, each in enumerate(operations, len(self._done) - len(operations)):
            done = self._done[place]
            self._done[place] = done._replace(result=done.result - self._is_short(each))
        return len(operations)


class ShortFileSystem(LocalFileSystem):
    def __init__(self, is_short):
        super().__init__()
        self._is_short = is_short

    def ring(self, entries=128):
        return ShortRing(self._is_short)
