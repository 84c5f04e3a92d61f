"""How fast a cluster is backed up, and how long writes wait: `python benchmarks/backup.py [--mib 1024]`.

Three storage nodes and two copies on this machine, one large file, and many files of 8 KiB. Prints one line for each
of: a full backup, one in which nothing has changed, and a restore into one node.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from luciola import connect

FILE_BYTES = 8 << 10
BLOCK = 4 << 20


def luciola(*arguments: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "luciola", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def timed(*arguments: str) -> tuple[float, str]:
    """Seconds, and what the command prints."""
    began_s = time.monotonic()
    said = luciola(*arguments)
    return time.monotonic() - began_s, said


@click.command()
@click.option("--mib", default=1024, show_default=True, help="Size of the large file.")
@click.option("--files", default=10_000, show_default=True, help="How many small files.")
@click.option("--directory", type=click.Path(path_type=Path), help="Where everything is made and removed.")
def main(*, mib: int, files: int, directory: Path | None) -> None:
    """Measure backups of a cluster on this machine."""
    with tempfile.TemporaryDirectory(dir=directory) as made:
        root = Path(made)
        source, target, backups = str(root / "source"), str(root / "target"), str(root / "backups")
        luciola("up", "--data", source, "--storage-nodes", "3", "--replicas", "2", "--detach")
        try:
            with connect(source) as fs:
                with fs.open("/large", "xb") as file:
                    for _ in range(mib * (1 << 20) // BLOCK):
                        file.write(os.urandom(BLOCK))
                for number in range(files):
                    with fs.open(f"/small-{number}", "xb") as file:
                        file.write(os.urandom(FILE_BYTES))
            total_mib = mib + files * FILE_BYTES / (1 << 20)
            for name in ("full", "unchanged", "unchanged"):
                took_s, said = timed("backup", "take", "--data", source, "--json", backups)
                held_ms = json.loads(said)["held_ms"]
                rate = f"{total_mib / took_s:.0f} MiB/s, " if name == "full" else ""
                click.echo(f"{name}: {took_s:.1f} s, {rate}writes waited {held_ms} ms")
        finally:
            luciola("down", "--data", source)
        luciola("up", "--data", target, "--storage-nodes", "1", "--replicas", "1", "--detach")
        try:
            took_s, _ = timed("restore", "--data", target, backups)
            click.echo(f"restore: {took_s:.1f} s, {total_mib / took_s:.0f} MiB/s")
        finally:
            luciola("down", "--data", target)


if __name__ == "__main__":
    main()
