"""Where a process shows its metrics. Beside the data of a process, named `base`:

    BASE.metrics.sock   the Unix socket, for the same user and root
    BASE.metrics.json   with a port: its address, as Prometheus reads targets from files (`file_sd_configs`)

A process that cannot listen there says so in its log and works without: nothing depends on being watched.
"""

import asyncio
import json
import logging
import os
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

from ..config import OFF, UNIX, MetricsConfig
from ..errors import Busy
from ..wire import format_address, parse_address
from ..wire.atomic_write import read_private, write_private
from .exposition import Exposition
from .server import MetricsServer

log = logging.getLogger(__name__)

BACKLOG: Final = 64
PATH_BYTES_MAX: Final = 107  # sun_path of Linux, less its final zero
START_S: Final = 10.0
UNIX_SCHEME: Final = "unix:"


def socket_path(base: Path) -> Path:
    """Return the socket of the process whose data is at `base`."""
    return base.with_name(f"{base.name}.metrics.sock")


def targets_path(base: Path) -> Path:
    """Return the file that names the port of the process whose data is at `base`."""
    return base.with_name(f"{base.name}.metrics.json")


def address_of(base: Path) -> str:
    """Return where the process with that data shows its metrics: "HOST:PORT", "unix:PATH", or "" for nowhere."""
    try:
        (found,) = json.loads(read_private(targets_path(base)))
        return str(found["targets"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        path = socket_path(base)
        return f"{UNIX_SCHEME}{path}" if path.is_socket() else ""


@asynccontextmanager
async def exposed(
    config: MetricsConfig, base: Path, exposition: Exposition, *, labels: dict[str, str]
) -> AsyncGenerator[str]:
    """Show `exposition` inside the block; gives the address, or "". `labels`: in the file of targets."""
    if config.listen == OFF:
        _remove(base)
        yield ""
        return
    server = MetricsServer(exposition.text)
    listening: asyncio.Server | None = None
    address, owned = "", None
    try:
        listening, address, owned = await _listen(config.listen, base.absolute(), server, labels)
        log.info("metrics: %s", address)
    except OSError as error:
        log.warning("no metrics are shown: %s cannot be used: %s", config.listen, error.strerror or error)
    try:
        yield address
    finally:
        if listening is not None:
            listening.close()
        if owned is not None:
            _remove_own(*owned)
        server.close()
        exposition.close()


async def _listen(
    listen: str, base: Path, server: MetricsServer, labels: dict[str, str]
) -> tuple[asyncio.Server, str, tuple[Path, int]]:
    """Return the server, its address, and the file that goes with it. Raises: OSError."""
    loop = asyncio.get_running_loop()
    if listen == UNIX:
        path = socket_path(base)
        bound, inode = _bound(path)
        bound.setblocking(False)
        listening = await loop.create_unix_server(server.connection, sock=bound, backlog=BACKLOG)
        targets_path(base).unlink(missing_ok=True)
        return listening, f"{UNIX_SCHEME}{path}", (path, inode)
    listening = await loop.create_server(server.connection, *parse_address(listen), backlog=BACKLOG)
    address = format_address(*listening.sockets[0].getsockname()[:2])
    path = targets_path(base)
    try:
        write_private(path, json.dumps([{"targets": [address], "labels": labels}]) + "\n")
    except OSError:
        listening.close()
        raise
    return listening, address, (path, path.stat().st_ino)


def _bound(path: Path) -> tuple[socket.socket, int]:
    """Return a socket at `path`, of any length, and its inode. Raises: OSError; Busy if another process has it."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_name(path) as name:
            _remove_left(path, name)
            os.fchmod(bound.fileno(), 0o600)  # the mode that the file gets
            bound.bind(name)
        return bound, path.stat().st_ino
    except BaseException:
        bound.close()
        raise


def _remove_left(path: Path, name: str) -> None:
    """Remove the socket of a process that was killed; `name` leads there. Raises: Busy if it is alive."""
    if not path.is_socket():
        return
    if _answers(name):
        raise Busy("another process shows its metrics", path=str(path))
    path.unlink(missing_ok=True)


def _answers(name: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tried:
        tried.setblocking(False)  # of a queue that is full: a process has it
        try:
            tried.connect(name)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True
    return True


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """Give a name for a socket at `path` that is short enough."""
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _remove(base: Path) -> None:
    """Remove what an earlier process left, which had other options."""
    with suppress(OSError):
        targets_path(base).unlink(missing_ok=True)
        socket_path(base).unlink(missing_ok=True)


def _remove_own(path: Path, inode: int) -> None:
    """Remove the file, unless it is another process's by now."""
    with suppress(OSError):
        if path.stat().st_ino == inode:
            path.unlink()


@contextmanager
def exposed_from_thread(
    config: MetricsConfig, base: Path, exposition: Exposition, *, labels: dict[str, str]
) -> Iterator[str]:
    """As `exposed`, for a process without an event loop: one runs in a thread. Sources are called there."""
    if config.listen == OFF:
        _remove(base)
        yield ""
        return
    started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        end = asyncio.Event()
        async with exposed(config, base, exposition, labels=labels) as address:
            started.set_result((address, asyncio.get_running_loop(), end))
            await end.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=run, name="metrics", daemon=True)
    thread.start()
    try:
        address, loop, end = started.result(START_S)
    except Exception:
        log.warning("no metrics are shown", exc_info=True)
        yield ""
        return
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(START_S)


__all__ = ["address_of", "exposed", "exposed_from_thread", "short_name", "socket_path", "targets_path"]
