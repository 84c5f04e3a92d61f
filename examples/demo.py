"""What `make demo` shows: a cluster on this machine, used with real data through the loss of a storage node.

usage: python examples/demo.py [--size 2G] [--keep DIR]
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from luciola.units import MIB, format_bytes, parse_bytes

BLOCK: Final = 4 * MIB
HEALTHY_S: Final = 120.0
INSTALLED: Final = "site-packages"  # not part of the standard library


def main() -> None:
    """Runs the demonstration; ends with status 1 at the first difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=parse_bytes, default="2G", help="of the generated file")
    parser.add_argument("--keep", type=Path, help="use this directory, and leave the data there")
    options = parser.parse_args()
    root = options.keep or Path(tempfile.mkdtemp(prefix="luciola-demo-"))
    try:
        with cluster(root / "cluster", root / "mount"):
            demonstrate(root, size_bytes=options.size)
    finally:
        if options.keep is None:
            shutil.rmtree(root, ignore_errors=True)
    say("stopped, unmounted and cleaned up: nothing is left behind")


def demonstrate(root: Path, *, size_bytes: int) -> None:
    """Copies in and out, with a node killed on the way."""
    data, mount = root / "cluster", root / "mount"
    tree = Path(sysconfig.get_path("stdlib"))
    say(f"the Python standard library ({tree}) goes in by tar")
    seconds = timed(lambda: copy_tree(tree, mount / "stdlib"))
    count, size = measure(mount / "stdlib")
    say(f"  {count:,} files, {format_bytes(size)} in {seconds:.1f} s: {count / seconds:,.0f} files/s")

    say(
        f"a generated file of {format_bytes(size_bytes)} goes in; half-way a storage node is killed with kill -9"
    )
    written = generate(root / "big.bin", size_bytes)
    victim: list[dict[str, Any]] = []
    killer = threading.Thread(
        target=lambda: victim.append(kill_half_way(data, mount / "big.bin", size_bytes))
    )
    killer.start()
    seconds = timed(lambda: copy_file(root / "big.bin", mount / "big.bin"))
    killer.join()
    say(
        f"  written through the failure at {size_bytes / MIB / seconds:,.0f} MiB/s (two copies of every byte)"
    )

    say(
        f"storage node {victim[0]['id']} (process {victim[0]['pid']}) was killed; it is started again and catches up"
    )
    seconds = timed(lambda: wait_healthy(data))
    restarts = sum(service.get("restarts", 0) for service in status(data)["services"])
    say(f"  every chunk has both copies again {seconds:.1f} s after the copy; services restarted: {restarts}")

    say("everything is read back and compared")
    drop_page_cache(mount / "big.bin")
    seconds = timed(lambda: check("the big file", digest(mount / "big.bin") == written))
    say(f"  read and hashed at {size_bytes / MIB / seconds:,.0f} MiB/s")
    copy_tree(mount / "stdlib", root / "stdlib-back")
    differences = run("diff", "-r", "--no-dereference", "-x", INSTALLED, str(tree), str(root / "stdlib-back"))
    check("the standard library", differences == "")

    say("fsck compares names, chunks and both replicas of every chunk, and reads every byte on disk")
    report = json.loads(luciola("fsck", "--data", str(data), "--scrub", "--json"))
    check(f"{report['chunks']:,} chunks, {report['replicas']:,} replicas", report["problems"] == [])


def say(text: str) -> None:
    """One line of the story."""
    print(text, flush=True)


def check(what: str, is_right: bool) -> None:  # noqa: FBT001
    """Stops the demonstration if something is wrong."""
    if not is_right:
        sys.exit(f"WRONG: {what}")
    say(f"  {what}: identical")


@contextmanager
def cluster(data: Path, mount: Path) -> Iterator[None]:
    """A running, mounted cluster."""
    say("starting three storage nodes, a metadata service, a cluster manager and a mount")
    arguments = (
        "--data",
        str(data),
        "--storage-nodes",
        "3",
        "--replicas",
        "2",
        "--mount",
        str(mount),
        "--detach",
    )
    seconds = timed(lambda: luciola("up", *arguments))
    say(f"  usable after {seconds:.1f} s, mounted on {mount}")
    try:
        yield
    finally:
        luciola("down", "--data", str(data))


def luciola(*arguments: str) -> str:
    """The output of a command of ours."""
    return run(sys.executable, "-m", "luciola", *arguments)


def run(*command: str) -> str:
    """The output of a command, or the end of the demonstration."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1) or (result.returncode == 1 and result.stderr):
        sys.exit(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` took."""
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def copy_tree(source: Path, target: Path) -> None:
    """One tar into another, with modes, times and links, but without what pip has installed."""
    target.mkdir()
    pack = ("tar", "--exclude", f"./{INSTALLED}", "-C", str(source), "-cf", "-", ".")
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as packer:
        subprocess.run(("tar", "-C", str(target), "-xpf", "-"), stdin=packer.stdout, check=True)
    if packer.returncode:
        sys.exit(f"tar could not read {source}")


def copy_file(source: Path, target: Path) -> None:
    """Block by block, and on disk when it returns."""
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        while block := reader.read(BLOCK):
            writer.write(block)
        os.fsync(writer.fileno())


def generate(path: Path, size_bytes: int) -> str:
    """Fills a file with bytes that do not repeat; returns their digest."""
    hasher = hashlib.blake2b()
    seed = os.urandom(BLOCK)
    with path.open("wb") as file:
        for index in range(size_bytes // BLOCK):
            block = index.to_bytes(8, "little") + seed[8:]
            hasher.update(block)
            file.write(block)
    return hasher.hexdigest()


def digest(path: Path) -> str:
    """The digest of what a file holds."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, hashlib.blake2b).hexdigest()


def measure(root: Path) -> tuple[int, int]:
    """(files, bytes) below a directory."""
    sizes = [path.lstat().st_size for path in root.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def status(data: Path) -> dict[str, Any]:
    """What `luciola status` says."""
    report: dict[str, Any] = json.loads(luciola("status", "--data", str(data), "--json"))
    return report


def kill_half_way(data: Path, growing: Path, size_bytes: int) -> dict[str, Any]:
    """Kills a storage node as soon as half of the file is there."""
    while not (growing.exists() and growing.stat().st_size >= size_bytes // 2):
        time.sleep(0.02)
    victim: dict[str, Any] = next(each for each in status(data)["services"] if each["kind"] == "storage")
    os.kill(victim["pid"], signal.SIGKILL)
    return victim


def wait_healthy(data: Path) -> None:
    """Returns when all services run and all replicas serve."""
    deadline = time.monotonic() + HEALTHY_S
    while not status(data)["healthy"]:
        if time.monotonic() > deadline:
            sys.exit(f"the cluster is not healthy after {HEALTHY_S:.0f} s: luciola status --data {data}")
        time.sleep(0.2)


def drop_page_cache(path: Path) -> None:
    """Forgets the mount's cached pages of a file, so that it is read from the storage nodes."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
