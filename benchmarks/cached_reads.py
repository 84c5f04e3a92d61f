"""Random reads of a file that the kernel has cached, alone and with own writes among them.

usage: python benchmarks/cached_reads.py DIRECTORY [--size-mib 32] [--seconds 2] [--every 100]

Prints a row for reads alone, and one with a write of 512 bytes after every so many reads: 4 KiB preads a second of one
program, through one descriptor.
"""

import argparse
import os
import random
import time
from pathlib import Path

READ_BYTES = 4096
BATCH = 1000  # reads between two looks at the clock


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size-mib", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--every", type=int, default=100, help="reads for each write in the second row")
    options = parser.parse_args()
    size = options.size_mib << 20
    path = options.directory / "cached-reads"
    try:
        path.write_bytes(bytes(size))
        print(f"{'reads only':30}{measure(path, size, options.seconds, every=0):12,.0f}/s")
        label = f"one write in {options.every} reads"
        print(f"{label:30}{measure(path, size, options.seconds, every=options.every):12,.0f}/s")
    finally:
        path.unlink(missing_ok=True)


def measure(path: Path, size: int, seconds: float, *, every: int) -> float:
    """Reads a second; `every` 0: without writes."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        while os.read(descriptor, 1 << 20):  # cached from here on
            pass
        offsets = [random.randrange(size // READ_BYTES) * READ_BYTES for _ in range(BATCH)]
        reads, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            for number, offset in enumerate(offsets):
                os.pread(descriptor, READ_BYTES, offset)
                if every and number % every == 0:
                    os.pwrite(descriptor, b"x" * 512, offset)
            reads += len(offsets)
        return reads / elapsed
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
