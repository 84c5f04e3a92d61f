"""A virtual machine with Soft-RoCE, in which this checkout runs as it is.

`laboratory.py COMMAND...` boots Debian's kernel under qemu (software emulation, so that it runs anywhere), with this
machine's own files below an overlay in memory: interpreter, environment, native module and test binaries are the ones
that were built here, and nothing that runs inside can change them. It prints what the command prints and exits with
its status; 124 if the limit ended it, 125 if the guest ended without a status, with the end of its console.

What it needs is installed with apt, which takes root. Kernel and initramfs are kept by the content of what makes them.
The guest has no network but its own devices. qemu is this process's child and does not outlive it, whatever ends it.

It needs nothing but Python's standard library, because it runs before anything is set up.
"""

import argparse
import contextlib
import fcntl
import hashlib
import inspect
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
CACHE: Final = ROOT / "build" / "rdma-laboratory"

PACKAGES: Final = (
    "qemu-system-x86",
    "busybox-static",
    "cpio",
    "kmod",
    "xz-utils",
    "iproute2",
    "ibverbs-providers",
    "perftest",
    "python3-pyverbs",
)
# The first that Debian's release has; older kernels have an rxe that loses packets of its own.
KERNELS: Final = ("linux-image-6.12-amd64", "linux-image-amd64")
# What the guest loads; what they depend on comes along. rxe asks for the checksum "crc32" by name, which no
# dependency shows: without crc32_generic `rdma link add` says "No such file or directory".
MODULES: Final = (
    "virtio_pci virtio_console 9p 9pnet_virtio overlay fuse ib_uverbs rdma_ucm rdma_rxe crc32_generic crc32_pclmul "
    "libcrc32c veth dummy sch_netem"
)
# What a command inside sees of the environment here.
PASSED_ON: Final = ("PATH", "HOME", "VIRTUAL_ENV", "PYTHONPATH", "RUST_BACKTRACE", "RUST_LOG")
TIME_LIMIT: Final = 124
NO_STATUS: Final = 125


def run(*command: str, cwd: Path | None = None) -> str:
    """What a command prints; it is over if the command fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"laboratory: {shlex.join(command)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return done.stdout


def install() -> None:
    """Brings the Debian packages that are missing."""
    if shutil.which("dpkg-query") is None or run("dpkg", "--print-architecture").strip() != "amd64":
        sys.exit("laboratory: it is built of Debian's packages, for x86-64; this machine has something else")
    known = subprocess.run(
        ("dpkg-query", "-W", "-f=${Package} ${db:Status-Status}\n", *PACKAGES),
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    installed = {line.split()[0] for line in known.splitlines() if line.endswith(" installed")}
    missing = [name for name in PACKAGES if name not in installed]
    if not missing:
        return
    print("laboratory: installing", *missing, flush=True)
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    run("apt-get", "update", "-qq")
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing)


def kernel_package() -> str:
    """The package that holds the kernel itself, which a package without a version depends on."""
    for name in KERNELS:
        lines = subprocess.run(
            ("apt-cache", "depends", name), capture_output=True, text=True, check=False
        ).stdout
        for line in lines.splitlines():
            kind, _, package = line.strip().partition(": ")
            if kind == "Depends" and package.startswith("linux-image-"):
                return package
    sys.exit(f"laboratory: this Debian has none of the kernels {', '.join(KERNELS)}; try `apt-get update`")


def build(directory: Path) -> None:
    """Makes `kernel` and `initrd` in the directory."""
    package = kernel_package()
    print("laboratory: fetching", package, flush=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as name:
        work = Path(name)
        # Only fetched and unpacked: its installation would want a boot loader.
        run("apt-get", "-o", "APT::Sandbox::User=root", "-qq", "download", package, cwd=work)
        (archive,) = work.glob("*.deb")
        run("dpkg-deb", "-x", str(archive), str(work / "package"))
        (kernel,) = (work / "package" / "boot").glob("vmlinuz-*")
        version = kernel.name.removeprefix("vmlinuz-")
        tree = work / "package"
        if not (tree / "lib" / "modules").is_dir():
            tree = tree / "usr"
        modules = tree / "lib" / "modules" / version
        run("depmod", "-b", str(tree), version)
        initial = work / "initial"
        kept = initial / "lib" / "modules" / version
        kept.mkdir(parents=True)
        (initial / "bin").mkdir()
        shutil.copy("/bin/busybox", initial / "bin" / "busybox")
        shutil.copy(HERE / "guest" / "init.sh", initial / "init")
        for index in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            shutil.copy(modules / index, kept / index)
        for module in MODULES.split():
            for line in run(
                "modprobe", "-d", str(tree), "-S", version, "--show-depends", module
            ).splitlines():
                if line.startswith("insmod "):
                    keep_module(Path(line.split()[1]), modules, kept)
        run("depmod", "-b", str(initial), version)
        # Not compressed: reading it is quicker than unpacking it under emulation.
        run("sh", "-c", f"find . | cpio --quiet -o -H newc >{shlex.quote(str(work / 'initrd'))}", cwd=initial)
        shutil.move(kernel, directory / "kernel")
        shutil.move(work / "initrd", directory / "initrd")


def keep_module(file: Path, modules: Path, kept: Path) -> None:
    """Copies a module from the kernel's tree into the initramfs, unpacked: busybox knows no xz."""
    target = kept / file.resolve().relative_to(modules.resolve())
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".xz":
        target.with_suffix("").write_bytes(
            subprocess.run(("xz", "-dc", file), capture_output=True, check=True).stdout
        )
    else:
        shutil.copy(file, target)


def prepared(cache: Path) -> Path:
    """The directory with kernel and initramfs, made now if need be; one process makes it, others wait."""
    install()
    makers = (*KERNELS, MODULES, inspect.getsource(build), inspect.getsource(keep_module))
    content = "".join((*makers, (HERE / "guest" / "init.sh").read_text()))
    directory = cache / hashlib.sha256(content.encode()).hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "initrd").exists():
            start = time.monotonic()
            build(directory)
            print(f"laboratory: built in {time.monotonic() - start:.0f} s", flush=True)
    return directory


def script(command: list[str], devices: str) -> str:
    """What the guest's shell runs."""
    passed = {
        name: os.environ[name] for name in os.environ if name in PASSED_ON or name.startswith("LUCIOLA_")
    }
    passed |= {"TMPDIR": "/laboratory", "LANG": "C.UTF-8", "TERM": "dumb", "PYTHONUNBUFFERED": "1"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in passed.items()]
    lines += [f"sh {shlex.quote(str(HERE / 'guest' / 'devices.sh'))} {devices} || exit 126"]
    lines += [
        "ulimit -l unlimited",
        f"cd {shlex.quote(os.getcwd())} || exit 126",
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def machine(images: Path, control: Path, *, memory_mib: int, processors: int, steady: bool) -> list[str]:
    """The command that is the guest. `steady`: its clock counts instructions, whatever else this machine does."""

    def shared(tag: str, path: Path, options: str) -> list[str]:
        share = f"local,id={tag},path={path},security_model=none,multidevs=remap{options}"
        return ["-fsdev", share, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]

    return [
        *(
            "setpriv",
            "--pdeathsig",
            "KILL",
            "qemu-system-x86_64",
            "-M",
            "q35",
            "-m",
            str(memory_mib),
            "-smp",
            str(processors),
        ),
        *("-accel", f"tcg,thread={'single' if steady else 'multi'},tb-size=512"),
        # Copies a byte at a time, which a processor does quickly and an emulator does not, are not offered.
        *("-cpu", "max,la57=off,erms=off,fsrm=off"),
        *(("-icount", "shift=2,align=off,sleep=on") if steady else ()),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none"),
        *("-kernel", str(images / "kernel"), "-initrd", str(images / "initrd")),
        *("-append", "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off"),
        *("-serial", f"file:{control / 'console'}"),
        *("-device", "virtio-serial-pci", "-chardev", "file,id=output,path=/dev/stdout,append=on"),
        *("-device", "virtserialport,chardev=output,name=output"),
        *shared("control", control, ""),
        *shared("host", Path("/"), ",readonly=on"),
    ]


def boot(arguments: list[str], *, limit_s: float) -> bool:
    """Runs the guest and passes its output on; whether it ended within the limit. It never outlives this call."""
    end = time.monotonic() + limit_s
    with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as guest:
        assert guest.stdout is not None, "it was asked for"
        try:
            while (left := end - time.monotonic()) > 0:
                # No longer than a second: Python handles a signal that came just before the call only after it.
                if not select.select([guest.stdout], [], [], min(left, 1))[0]:
                    continue
                if not (data := os.read(guest.stdout.fileno(), 65536)):
                    guest.wait(max(1.0, end - time.monotonic()))
                    return True
                sys.stdout.buffer.write(data.replace(b"\r\n", b"\n"))
                sys.stdout.buffer.flush()
        except subprocess.TimeoutExpired:
            pass
        finally:
            guest.kill()
    return False


def main() -> int:
    """Reads the options, prepares, boots, and gives the command's status."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n", maxsplit=1)[0])
    parser.add_argument(
        "--devices", choices=("none", "one", "pair"), default="pair", help="Soft-RoCE devices"
    )
    parser.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="for boot and command")
    parser.add_argument("--memory", type=int, default=3072, metavar="MIB")
    parser.add_argument("--processors", type=int, default=2)
    parser.add_argument(
        "--steady",
        action="store_true",
        help="time is counted in instructions: for measuring on a busy machine",
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="where kernel and initramfs are kept")
    parser.add_argument("--console", type=Path, metavar="FILE", help="keep the guest's console here")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run; none: only prepare")
    given = parser.parse_args()
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    images = prepared(given.cache.resolve())
    if not command:
        return 0
    with tempfile.TemporaryDirectory() as name:
        control = Path(name)
        (control / "command").write_text(script(command, given.devices))
        in_time = boot(
            machine(
                images,
                control,
                memory_mib=given.memory,
                processors=given.processors,
                steady=given.steady,
            ),
            limit_s=given.limit,
        )
        console = control / "console"
        text = console.read_text(errors="replace") if console.exists() else ""
        if given.console is not None:
            given.console.write_text(text)
        status = ""
        with contextlib.suppress(FileNotFoundError):
            status = (control / "status").read_text().strip()
    if in_time and status:
        return int(status)
    reason = "the guest ended without a status" if in_time else f"the limit of {given.limit:.0f} s ended it"
    print(
        f"laboratory: {reason}; the end of its console:", *text.splitlines()[-40:], sep="\n", file=sys.stderr
    )
    return NO_STATUS if in_time else TIME_LIMIT


if __name__ == "__main__":
    sys.exit(main())
