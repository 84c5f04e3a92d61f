#!/usr/bin/env python3
"""One trivial file system behind four FUSE libraries: what each costs. docs/decisions/0003-fuse.md has the result.

usage: benchmarks/fuse/compare.py [--work DIR] [--seconds 4] [--pause 0] [--rounds 1] [--only NAME,...] [--json FILE]

On a machine that has other work: `chrt -r 1 … --seconds 1 --pause 2` measures in bursts that go before it.

The file system keeps one file of 256 MiB in memory and creates empty files; nothing is cached by the kernel between
calls (time-outs 0, O_DIRECT), so every figure is the price of the library and the kernel. Libraries are installed into
DIR, not into the system: fusepy with the libfuse 2 of the distribution's package, pyfuse3 built against libfuse 3,
fuser and ours from `trivial/`. Needs root, /dev/fuse, fio, cargo, a C compiler and apt-get.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = 2000
LIBRARIES = ("fusepy", "pyfuse3", "fuser", "luciola")


def run(*command, **named):
    return subprocess.run(command, check=True, capture_output=True, text=True, **named).stdout


def prepare(work: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Installs what is missing; the command and environment of each library's server."""
    work.mkdir(parents=True, exist_ok=True)
    python = work / "env" / "bin" / "python"
    root = work / "root"
    libraries = root / "usr" / "lib" / "x86_64-linux-gnu"
    if not python.exists():
        run(sys.executable, "-m", "venv", str(work / "env"))
        run("apt-get", "download", "libfuse2", "libfuse3-dev", cwd=work)
        for package in work.glob("*.deb"):
            run("dpkg", "-x", str(package), str(root))
        (libraries / "libfuse3.so").unlink()
        (libraries / "libfuse3.so").symlink_to("/usr/lib/x86_64-linux-gnu/libfuse3.so.3")
        description = libraries / "pkgconfig" / "fuse3.pc"
        text = description.read_text().replace("prefix=/usr\n", f"prefix={root}/usr\n")
        description.write_text(text)
        environment = {**os.environ, "PKG_CONFIG_PATH": str(description.parent)}
        run(str(python), "-m", "pip", "install", "-q", "fusepy", "pyfuse3", env=environment)
    build = build_trivial(work)
    libfuse2 = next(root.rglob("libfuse.so.2"))
    return {
        "fusepy": ([str(python), str(HERE / "with_fusepy.py")], {"FUSE_LIBRARY_PATH": str(libfuse2)}),
        "pyfuse3": ([str(python), str(HERE / "with_pyfuse3.py")], {}),
        "fuser": ([str(build / "with_fuser")], {}),
        "luciola": ([str(build / "with_luciola")], {}),
    }


def build_trivial(work: Path) -> Path:
    """The folder of the trivial file system's servers in Rust."""
    run("cargo", "build", "--release", "--target-dir", str(work / "target"), cwd=HERE / "trivial")
    return work / "target" / "release"


class Served:
    """A server and its mount."""

    def __init__(self, command: list[str], environment: dict[str, str], mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        mountpoint.mkdir(exist_ok=True)
        self.process = subprocess.Popen([*command, str(mountpoint)], env={**os.environ, **environment})

    def __enter__(self) -> Path:
        while not os.path.ismount(self.mountpoint):
            assert self.process.poll() is None, "the server ended"
            time.sleep(0.05)
        return self.mountpoint

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.mountpoint)], check=False)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


def fio(path: Path, *, rw: str, bs: str, jobs: int = 1, seconds: int) -> dict:
    text = run(
        "fio", "--name=x", f"--filename={path}", f"--rw={rw}", f"--bs={bs}", "--size=256M", f"--numjobs={jobs}",
        "--direct=1", "--ioengine=psync", "--group_reporting", "--time_based", f"--runtime={seconds}",
        "--output-format=json", "--randrepeat=0", "--norandommap", "--fallocate=none", "--allow_file_create=0",
    )  # fmt: skip
    job = json.loads(text[text.index("{") :])["jobs"][0]
    return job["read" if "read" in rw else "write"]


def each_second(call, count: int) -> float:
    began = time.perf_counter()
    for index in range(count):
        call(index)
    return count / (time.perf_counter() - began)


def measure(directory: Path, seconds: int, pause_s: float) -> dict[str, float]:
    big = directory / "big"

    def mib(**named) -> float:
        return fio(big, bs="1M", seconds=seconds, **named)["bw_bytes"] / (1 << 20)

    def iops(**named) -> float:
        return fio(big, bs="4k", seconds=seconds, **named)["iops"]

    def create(index: int) -> None:
        os.close(os.open(directory / f"f{index}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

    works = {
        "read 1 MiB, direct (MiB/s)": lambda: mib(rw="read"),
        "write 1 MiB, direct (MiB/s)": lambda: mib(rw="write"),
        "read 1 MiB, page cache cold (MiB/s)": lambda: buffered_read(big),
        "random read 4 KiB x1 (1/s)": lambda: iops(rw="randread"),
        "random read 4 KiB x4 (1/s)": lambda: iops(rw="randread", jobs=4),
        "random write 4 KiB x1 (1/s)": lambda: iops(rw="randwrite"),
        "random write 4 KiB x4 (1/s)": lambda: iops(rw="randwrite", jobs=4),
        "create + close (1/s)": lambda: each_second(create, FILES),
        "stat (1/s)": lambda: each_second(lambda index: os.stat(directory / f"f{index}"), FILES),
    }
    figures = {}
    for name, work in works.items():
        time.sleep(pause_s)
        figures[name] = work()
    return figures


def buffered_read(path: Path) -> float:
    """MiB/s of one pass through the page cache, which is empty for this file."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    total, began = 0, time.perf_counter()
    while data := os.read(descriptor, 1 << 20):
        total += len(data)
    took = time.perf_counter() - began
    os.close(descriptor)
    return total / (1 << 20) / took


def table(results: dict[str, dict[str, float]]) -> str:
    """Figures of each library and, in brackets, how many times fusepy's (or the first one's) they are."""
    names = list(results)
    base = results[names[0]]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for figure in base:
        cells = (
            f"{results[name][figure]:,.0f} ({results[name][figure] / base[figure]:.1f}x)" for name in names
        )
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("/tmp/luciola-fuse-compare"))
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0)
    parser.add_argument("--rounds", type=int, default=1, help="the best of so many is shown")
    parser.add_argument("--only", default=",".join(LIBRARIES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    servers = prepare(options.work)
    results: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        for name in options.only.split(","):
            command, environment = servers[name]
            with Served(command, environment, options.work / f"mnt-{name}") as directory:
                figures = measure(directory, options.seconds, options.pause)
            print(name, json.dumps(figures), file=sys.stderr, flush=True)
            best = results.setdefault(name, figures)
            results[name] = {figure: max(value, best[figure]) for figure, value in figures.items()}
    print(table(results))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
