"""Reads that fail or end early: the call raises the file system's error, and leaves no operation in flight."""

import errno

import pytest
import torch

from luciola.client import Completion, LocalFileSystem
from luciola.errors import CorruptData
from luciola.plugins.weights import Checkpoint, save


class FaultyFileSystem(LocalFileSystem):
    """A local file system whose rings give one result of their own, and whose files then read no better."""

    def __init__(self) -> None:
        self.good = 0  # operations until it comes
        self.result: int | None = None
        self.opening = None  # in place of `read` of files
        self.rings = []

    def ring(self, entries=128):
        ring = FaultyRing(self, super().ring(entries))
        self.rings.append(ring)
        return ring

    def open(self, *arguments, **named):
        file = super().open(*arguments, **named)
        if self.opening is not None:
            file.read = self.opening
        return file


class FaultyRing:
    def __init__(self, faults, ring):
        self._faults, self._ring = faults, ring
        self.closed = False

    def __getattr__(self, name):
        return getattr(self._ring, name)

    def drain(self, *arguments, **named):
        done = self._ring.drain(*arguments, **named)
        for index, one in enumerate(done):
            if self._faults.result is not None:
                self._faults.good -= 1
                if self._faults.good == 0:
                    done[index] = Completion(one.user_data, self._faults.result)
        return done

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._ring.close()
        self.closed = True


@pytest.fixture
def faulty(tmp_path):
    tensors = {"large": torch.arange(3_000_000), "small": torch.ones(3), "other": torch.zeros(40_000)}
    save(tensors, tmp_path / "f.safetensors")
    fs = FaultyFileSystem()
    return Checkpoint(fs, str(tmp_path / "f.safetensors")), fs, tensors


@pytest.mark.parametrize("good", [1, 5, 25])
@pytest.mark.parametrize(
    ("result", "kind", "reason"),
    [
        (-errno.EIO, OSError, "Input/output error"),
        (-errno.ESTALE, OSError, "[Ss]tale"),
        (7, CorruptData, "the file ends before byte"),
    ],
)
def test_a_failed_read(faulty, good, result, kind, reason):
    checkpoint, fs, tensors = faulty
    fs.good, fs.result = good, result
    with pytest.raises(kind, match=reason):
        checkpoint.load()
    assert fs.rings[-1].closed
    assert fs.good <= 0
    fs.result = None
    loaded = checkpoint.load()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_failed_read_while_opening(faulty):
    checkpoint, fs, _ = faulty

    def fail(_size):
        raise OSError(errno.EIO, "Input/output error")

    fs.opening = fail
    with pytest.raises(OSError, match="Input/output error"):
        Checkpoint(fs, checkpoint.path)
    with open(checkpoint.path, "rb") as file:
        parts = [file.read(40), file.read(20), b""]
    fs.opening = lambda _size: parts.pop(0)
    with pytest.raises(CorruptData, match=r"the file ends before byte \d+, in its header"):
        Checkpoint(fs, checkpoint.path)
    fs.opening = None
    assert Checkpoint(fs, checkpoint.path).tensors == checkpoint.tensors


@pytest.mark.parametrize("result", [-errno.EIO, 7])
def test_a_failed_read_while_verifying(faulty, result):
    checkpoint, fs, _ = faulty
    fs.good, fs.result = 3, result
    with pytest.raises((OSError, CorruptData)):
        checkpoint.verify()
    fs.result = None
    assert checkpoint.verify() == []
