"""One mount, from the checks before it to the unmount.

`serve` is the foreground mount and the whole of the process behind a background one: it returns when the mount is
gone, by a signal, `luciola umount`, `fusermount3 -u` or umount(8), and everything is written back.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import luciola_core

from ..config import ClientConfig, MetricsConfig, MountConfig, rdma_options
from ..errors import (
    Busy,
    InvalidArgument,
    NotADirectory,
    NotEmpty,
    NotFound,
    Timeout,
    Unavailable,
)
from ..metrics import Exposition, exposed_from_thread
from ..wire import Token, load_cluster
from ..wire.credentials import TRUSTED, load_tls
from ..wire.tls import Tls
from ..wire.token_source import SecretFile, Source, TokenFile
from . import records, table
from .metrics import mount_families

if TYPE_CHECKING:
    from ..client.renewal import Renewal

log = logging.getLogger(__name__)

READY_S: Final = 90.0  # reaching a cluster that is starting may take this long
END_S: Final = 60.0  # writing back what is dirty may take this long
POLL_S: Final = 0.02


@dataclass(frozen=True)
class Settings:
    """What to mount, where and how."""

    cluster: str  # data directory of a cluster on this machine, or HOST:PORT of its mgmtd
    mountpoint: Path
    secret_file: Path | None = None
    token_file: Path | None = None  # comes before the secret
    read_only: bool = False
    mount: MountConfig = field(default_factory=MountConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)


def check_mountpoint(mountpoint: Path) -> Path:
    """Return the mountpoint as the kernel will call it. A mount on it whose process is gone is taken off first.

    Raises: NotFound, NotADirectory, NotEmpty, Busy when something is mounted there.
    """
    path = table.resolve(mountpoint)
    if table.clean_stale_mount(path):
        log.info("unmounted %s: its process had ended", path)
    if (row := table.find_mount(path)) is not None:
        raise Busy(f"{row.source} is mounted here already; unmount it first", path=str(path))
    try:
        path = Path(os.path.realpath(path, strict=True))
        entries = os.listdir(path)
    except FileNotFoundError as error:
        raise NotFound("no such directory to mount on; create it first", path=str(path)) from error
    except NotADirectoryError as error:
        raise NotADirectory("only a directory can be mounted on", path=str(path)) from error
    if entries:
        raise NotEmpty(
            "the directory to mount on is not empty, and a mount would hide what is in it", path=str(path)
        )
    return path


def serve(settings: Settings, *, on_ready: Callable[[], None] = lambda: None) -> None:
    """Mount, call `on_ready` once the mount answers, and serve it until it is gone.

    Called in the main thread: SIGTERM and SIGINT unmount, a second one cuts off programs that still use the mount.

    Raises: as check_mountpoint; Unavailable, Unauthenticated; OSError from the mount itself.
    """
    mountpoint = check_mountpoint(settings.mountpoint)
    client, renewal = _connect(settings)
    try:
        with _signals() as asked:
            _serve(client, settings, mountpoint, asked=asked, on_ready=on_ready)
        log.info("unmounted %s", mountpoint)
    finally:
        renewal.stop()
        client.close()


def _serve(
    client: luciola_core.Client,
    settings: Settings,
    mountpoint: Path,
    *,
    asked: int,
    on_ready: Callable[[], None],
) -> None:
    mount = luciola_core.Mount(
        client,
        str(mountpoint),
        source=records.source_of(settings.cluster),
        allow_other=settings.mount.allow_other,
        read_only=settings.read_only,
        strict=settings.mount.consistency == "strict",
        threads=settings.mount.threads,
        request_bytes=settings.mount.request_bytes,
        read_ahead_bytes=settings.mount.read_ahead_bytes,
        grace_ms=settings.mount.grace_ms,
        io_uring=settings.mount.fuse_io_uring,
    )
    failures: list[BaseException] = []
    shown = Exposition("mount")
    shown.add("session", partial(mount_families, mount, client))
    base = records.record_of(str(mountpoint), settings.cluster)
    labels = {"kind": "mount", "id": str(mountpoint)}
    with (
        records.recorded(mountpoint, settings.cluster) as record,
        exposed_from_thread(settings.metrics, base, shown, labels=labels),
    ):
        session = threading.Thread(target=_run, args=(mount, failures), name="session")
        session.start()
        threading.Thread(target=_attend, args=(mount, asked), name="signals", daemon=True).start()
        if table.answers(mountpoint):
            channel, reason = mount.channel()
            records.write(replace(record, channel=channel, channel_reason=reason))
            log.info("mounted %s on %s", settings.cluster, mountpoint)
            on_ready()
        else:
            mount.unmount()
        session.join()
    if failures:
        raise failures[0]


def _run(mount: luciola_core.Mount, failures: list[BaseException]) -> None:
    try:
        mount.run()
    except OSError as error:
        failures.append(error)


def _connect(settings: Settings) -> "tuple[luciola_core.Client, Renewal]":
    from ..client.connection import explained  # commands that mount nothing start without the client
    from ..client.renewal import Renewal

    address, source = _door(settings)
    token, tls = source(), _tls(settings)
    with explained(settings.cluster, address):
        client = _native(settings, address, token, source.name, tls)
    renewal = Renewal(source, token, lambda: client, tls=tls, read_tls=lambda: _tls(settings))
    renewal.start()
    return client, renewal


def _native(
    settings: Settings, address: str, token: Token, source: str, tls: Tls | None
) -> luciola_core.Client:
    client = settings.client
    return luciola_core.Client(
        address.split(","),
        token.claims,
        token.key,
        token_source=source,
        certificates=None if tls is None else tls.current().native(),
        description=f"mount on {settings.mountpoint}",
        mount=True,
        deadline_ms=client.deadline_ms,
        retry_first_ms=client.retry_first_ms,
        retry_max_ms=client.retry_max_ms,
        connections_per_node=client.connections_per_node,
        write_buffer_bytes=client.write_buffer_bytes,
        read_ahead_bytes=client.read_ahead_bytes,
        attribute_timeout_ms=client.attribute_timeout_ms,
        rdma_transmissions=client.rdma_transmissions or None,
        **rdma_options(client),
    )


def _door(settings: Settings) -> tuple[str, Source]:
    """Return where the cluster is, and whence the mount's token: as given, or one that speaks for every user."""
    data, secret_file = Path(settings.cluster), settings.secret_file
    if data.is_dir():
        cluster = load_cluster(data / "cluster.json")
        address, secret_file = cluster.mgmtd_lane, secret_file or Path(cluster.secret_file)
    elif "/" in settings.cluster or ":" not in settings.cluster:
        raise NotFound(
            "neither a data directory on this machine nor an address HOST:PORT", path=settings.cluster
        )
    else:
        address = settings.cluster
    if settings.token_file is not None:
        return address, TokenFile(settings.token_file)
    if secret_file is None:
        raise InvalidArgument("a cluster at an address needs --token-file or --secret-file")
    return address, SecretFile(secret_file, role=TRUSTED)


def _tls(settings: Settings) -> Tls | None:
    """Return what protects connections to other machines. Raises: as `_door`, and what the token is read with."""
    data = Path(settings.cluster)
    if data.is_dir():
        return load_cluster(data / "cluster.json").tls()
    return None if settings.token_file is None else load_tls(settings.token_file)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """SIGTERM, SIGINT and SIGHUP go into a pipe from here on: a mount that is just being made is not left behind.

    Yields the end to read, a byte a signal. Handlers of Python's own run when the main thread next runs Python code,
    and it may have gone to sleep just before the signal came; the pipe is written at once in any case.
    """
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    descriptor = signal.set_wakeup_fd(writer)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)  # which ends the reader


def _attend(mount: luciola_core.Mount, asked: int) -> None:
    """The first signal unmounts, the second does not wait for programs that use the mount."""
    with open(asked, "rb", buffering=0) as pipe:
        for end in (mount.unmount, mount.abort):
            if not (number := pipe.read(1)):
                return
            log.info("%s: unmounting", signal.Signals(number[0]).name)
            threading.Thread(target=end, daemon=True).start()  # it may wait for programs


def start_in_background(arguments: list[str], *, output: IO[bytes]) -> int:
    """Run `luciola mount --foreground ARGUMENTS` in the background; return its process id once the mount answers.

    `output` gets what it says. Raises: Unavailable with the last line of it if it ends, Timeout if it is not ready
    in time.
    """
    reader, writer = os.pipe()
    begin = output.seek(0, os.SEEK_END)
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "luciola",
            "mount",
            "--foreground",
            "--ready-fd",
            str(writer),
            *arguments,
        ],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=(writer,),
        start_new_session=True,
    )
    os.close(writer)
    try:
        answer = _read_within(reader, READY_S)
    finally:
        os.close(reader)
    if answer:
        return process.pid
    if answer is None:
        process.terminate()
        raise Timeout(f"the mount was not ready within {READY_S:.0f} s; see {output.name}")
    process.wait()
    with Path(output.name).open("rb") as said:
        said.seek(begin)
        lines = said.read().decode(errors="replace").strip().splitlines()
    reason = next((line for line in reversed(lines) if line.startswith("luciola: ")), "".join(lines[-1:]))
    raise Unavailable(reason.removeprefix("luciola: ") or f"the mount ended; see {output.name}")


def _read_within(descriptor: int, limit_s: float) -> bytes | None:
    """Return what comes out of a pipe first; empty at its end, None after `limit_s`."""
    os.set_blocking(descriptor, False)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            return os.read(descriptor, 64)
        except BlockingIOError:
            time.sleep(POLL_S)
    return None


def stop(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount, and return when the process behind the mount has written back everything and ended.

    Raises: InvalidArgument if no Luciola mount is there, Busy if programs use it (unless `lazy`), Timeout.
    """
    path = table.resolve(mountpoint)
    row = table.find_mount(path)
    if row is None or row.type != table.TYPE:
        raise InvalidArgument("no Luciola mount here", path=str(path))
    if table.clean_stale_mount(path):
        return
    record = records.find_record(path, row.cluster)
    table.unmount(path, lazy=lazy)
    deadline = time.monotonic() + END_S
    while not lazy and record is not None and record.is_alive():
        if time.monotonic() > deadline:
            raise Timeout(f"unmounted, but process {record.pid} still writes back after {END_S:.0f} s")
        time.sleep(POLL_S)


__all__ = ["Settings", "check_mountpoint", "serve", "start_in_background", "stop"]
