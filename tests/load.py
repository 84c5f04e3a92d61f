"""A mixed load on a directory that checks every read against a model. Runs as a program, in a process of its own.

usage: python load.py DIRECTORY --seconds S --seed N

Prints one JSON object: operations done, bytes moved, the longest operation in seconds; exits 1 at the first byte,
length, name or error that the model does not expect.
"""

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Final

SIZE_MAX: Final = 6 << 20
FILES_MAX: Final = 24


class Model:
    """What the directory must hold."""

    def __init__(self, directory: Path, choose: random.Random) -> None:
        self.directory, self.choose = directory, choose
        self.files: dict[str, bytearray] = {}
        self.counter = 0
        self.operations = 0
        self.bytes = 0

    def step(self) -> None:
        """One random operation, checked."""
        weights = {
            self.create: 2 if len(self.files) < FILES_MAX else 0,
            self.write: 6,
            self.append: 3,
            self.read: 8,
            self.read_all: 2,
            self.truncate: 1,
            self.rename: 1,
            self.remove: 1,
            self.list: 1,
            self.overwrite: 1,
        }
        if not self.files:
            weights = {self.create: 1}
        operation = self.choose.choices(list(weights), list(weights.values()))[0]
        operation()
        self.operations += 1

    def pick(self) -> str:
        return self.choose.choice(sorted(self.files))

    def data(self, size: int) -> bytes:
        return self.choose.randbytes(size)

    def create(self) -> None:
        self.counter += 1
        name = f"file-{self.counter}"
        content = self.data(self.choose.choice((0, 100, 4096, 5000, 70_000, 1 << 20, 3 << 20)))
        with (self.directory / name).open("xb") as file:
            file.write(content)
        self.files[name] = bytearray(content)
        self.bytes += len(content)

    def overwrite(self) -> None:
        name = self.pick()
        content = self.data(self.choose.choice((10, 4096, 300_000)))
        (self.directory / name).write_bytes(content)
        self.files[name] = bytearray(content)

    def write(self) -> None:
        name = self.pick()
        model = self.files[name]
        offset = self.choose.randrange(min(len(model) + 50_000, SIZE_MAX))
        content = self.data(self.choose.choice((1, 512, 4096, 65_536, 1 << 20)))
        with (self.directory / name).open("r+b", buffering=0) as file:
            assert os.pwrite(file.fileno(), content, offset) == len(content)
            if self.choose.random() < 0.3:
                os.fsync(file.fileno())
        if len(model) < offset:
            model.extend(bytes(offset - len(model)))
        model[offset : offset + len(content)] = content
        self.bytes += len(content)

    def append(self) -> None:
        name = self.pick()
        if len(self.files[name]) > SIZE_MAX:
            return
        content = self.data(self.choose.randrange(1, 100_000))
        with (self.directory / name).open("ab") as file:
            file.write(content)
        self.files[name] += content
        self.bytes += len(content)

    def read(self) -> None:
        name = self.pick()
        model = self.files[name]
        offset = self.choose.randrange(len(model) + 1)
        size = self.choose.choice((1, 4096, 65_536, 1 << 20))
        with (self.directory / name).open("rb", buffering=0) as file:
            found = os.pread(file.fileno(), size, offset)
        self.check(name, found, bytes(model[offset : offset + size]), offset)

    def read_all(self) -> None:
        name = self.pick()
        self.check(name, (self.directory / name).read_bytes(), bytes(self.files[name]), 0)

    def check(self, name: str, found: bytes, expected: bytes, offset: int) -> None:
        self.bytes += len(found)
        if found == expected:
            return
        where = next((index for index, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), -1)
        raise AssertionError(
            f"{name}: read {len(found)} bytes at {offset}, expected {len(expected)}; first difference at "
            f"{offset + where if where >= 0 else 'the end'}"
        )

    def truncate(self) -> None:
        name = self.pick()
        model = self.files[name]
        size = self.choose.randrange(len(model) + 10_000)
        os.truncate(self.directory / name, size)
        if size < len(model):
            del model[size:]
        else:
            model.extend(bytes(size - len(model)))

    def rename(self) -> None:
        name = self.pick()
        self.counter += 1
        target = self.pick() if self.choose.random() < 0.3 else f"file-{self.counter}"
        os.rename(self.directory / name, self.directory / target)
        if target != name:
            self.files[target] = self.files.pop(name)

    def remove(self) -> None:
        name = self.pick()
        (self.directory / name).unlink()
        del self.files[name]

    def list(self) -> None:
        found = sorted(os.listdir(self.directory))
        if found != sorted(self.files):
            raise AssertionError(f"listing differs: {set(found) ^ set(self.files)}")
        name = self.pick()
        size = os.stat(self.directory / name).st_size
        if size != len(self.files[name]):
            raise AssertionError(f"{name}: stat says {size} bytes, expected {len(self.files[name])}")

    def verify(self) -> None:
        """Reads everything once more."""
        self.list()
        for name, content in self.files.items():
            self.check(name, (self.directory / name).read_bytes(), bytes(content), 0)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    options.directory.mkdir(exist_ok=True)
    model = Model(options.directory, random.Random(options.seed))
    end = time.monotonic() + options.seconds
    longest_s = 0.0
    error = ""
    try:
        while time.monotonic() < end:
            begin = time.monotonic()
            model.step()
            longest_s = max(longest_s, time.monotonic() - begin)
        model.verify()
    except (AssertionError, OSError) as failure:
        error = f"{type(failure).__name__}: {failure} (seed {options.seed}, operation {model.operations})"
    json.dump(
        {
            "operations": model.operations,
            "bytes": model.bytes,
            "longest_s": round(longest_s, 3),
            "error": error,
        },
        sys.stdout,
    )
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main())
