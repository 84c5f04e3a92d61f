"""`luciola mount` and `umount`."""

import errno
import logging
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import click

from ..config import FUSE_IO_URING, TRANSPORTS, ClusterConfig, load
from ..errors import InvalidArgument, PermissionDenied
from ..logfile import rotate_output
from .datadir import running_shape
from .options import Credential, config_option, secret_option, token_option


@click.command()
@click.argument("cluster", metavar="ADDRESS_OR_DATA_DIR")
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option(
    "--foreground", "-f", is_flag=True, help="Stay until unmounted; say on standard error what happens."
)
@click.option(
    "--consistency",
    type=click.Choice(["close-to-open", "strict"]),
    help="close-to-open: a file that is opened shows what was closed before; the kernel caches in between. "
    "strict: every read and write reaches the cluster.  [default: close-to-open]",
)
@click.option("--read-only", "-r", is_flag=True, help="Refuse everything that changes files.")
@click.option(
    "--allow-other/--no-allow-other",
    default=None,
    help="Whether other users of this machine may use the mount, as the modes of files permit.  "
    "[default: yes for root, no for others]",
)
@token_option(where="of role trusted to serve all users of this machine")
@secret_option(where="a cluster at an address")
@click.option(
    "--transport",
    type=click.Choice(TRANSPORTS),
    help="How bytes travel to storage nodes: auto is shared memory on this host, else RDMA where both ends have it, "
    "else TCP.  [default: as configured, or auto]",
)
@click.option(
    "--fuse-io-uring",
    type=click.Choice(FUSE_IO_URING),
    help="Whether the kernel hands requests over by io_uring: never, auto (where it allows that), or always (else "
    "nothing is mounted).  [default: as configured, or never]",
)
@config_option
@click.option("--ready-fd", type=int, hidden=True, help="Where a mount in the background reports.")
@click.option("--rotate-log", is_flag=True, hidden=True, help="Keep the file on standard error short.")
def mount(
    cluster: str,
    mountpoint: Path,
    *,
    foreground: bool,
    consistency: str | None,
    read_only: bool,
    allow_other: bool | None,
    secret_file: Path | None,
    token_file: Path | None,
    transport: str | None,
    fuse_io_uring: str | None,
    config_file: Path | None,
    ready_fd: int | None,
    rotate_log: bool,
) -> None:
    """Mount a cluster on a directory.

    The cluster is named by its data directory on this machine, or by the address HOST:PORT of its mgmtd. The command
    returns when the mount is usable, and leaves a process that serves it until `luciola umount`.

    \b
    Example:
      luciola mount /var/lib/luciola /mnt/luciola
    """
    from .. import fuse

    config = ClusterConfig() if config_file is None else load(config_file)
    options = config.mount if consistency is None else replace(config.mount, consistency=consistency)
    if fuse_io_uring is not None:
        options = replace(options, fuse_io_uring=fuse_io_uring)
    if allow_other is None:
        # Without root it takes a line in /etc/fuse.conf.
        allow_other = options.allow_other and os.geteuid() == 0
    if Path(cluster).is_dir():
        cluster = str(Path(cluster).resolve())
        if not foreground:
            running_shape(Path(cluster))
    credential = Credential.given(secret_file, token_file)
    settings = fuse.Settings(
        cluster=cluster,
        mountpoint=mountpoint,
        secret_file=credential.secret_file,
        token_file=credential.token_file,
        read_only=read_only,
        mount=replace(options, allow_other=allow_other),
        metrics=config.metrics,
        client=config.client if transport is None else replace(config.client, transport=transport),
    )
    if not foreground:
        # What is wrong with the place is said here, not in a log.
        path = fuse.check_mountpoint(mountpoint)
        arguments = [cluster, str(path), *_repeated(settings, config_file)]
        with _opened_log(Path(cluster)) as output:
            fuse.start_in_background(arguments, output=output)
        return
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if rotate_log or ready_fd is not None:
        rotate_output()
    fuse.serve(settings, on_ready=lambda: _report_ready(ready_fd))


@click.command()
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option(
    "--lazy", "-l", is_flag=True, help="Also while programs use it: they may finish, no others may begin."
)
def umount(mountpoint: Path, *, lazy: bool) -> None:
    """Unmount, and return when everything is written back.

    \b
    Example:
      luciola umount /mnt/luciola
    """
    from .. import fuse

    fuse.stop(mountpoint, lazy=lazy)


def _repeated(settings: "fuse.Settings", config_file: Path | None) -> list[str]:  # type: ignore[name-defined]  # noqa: F821
    """Return the options once more, for the process in the background."""
    options = ["--consistency", settings.mount.consistency]
    options.append("--allow-other" if settings.mount.allow_other else "--no-allow-other")
    if settings.read_only:
        options.append("--read-only")
    if settings.secret_file is not None:
        options += ["--secret-file", str(settings.secret_file.absolute())]
    if settings.token_file is not None:
        options += ["--token-file", str(settings.token_file.absolute())]
    options += ["--transport", settings.client.transport]
    options += ["--fuse-io-uring", settings.mount.fuse_io_uring]
    if config_file is not None:
        options += ["--config", str(config_file.absolute())]
    return options


def _opened_log(data: Path) -> BinaryIO:
    """Open the log of mounts in the background: of the data directory, or of this user for a cluster elsewhere.

    Raises: PermissionDenied if the file, or this user's directory, could be another user's choice.
    """
    from .. import fuse

    if data.is_dir():
        directory = data / "log"
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except FileNotFoundError as error:
            raise InvalidArgument("no cluster in this directory", path=str(data)) from error
    else:
        directory = fuse.own_directory()
    path = directory / "mounts.log"
    try:
        output = open(path, "ab", opener=_open_own)  # noqa: SIM115 (pathlib has no opener; the caller closes)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise PermissionDenied("the log must be a regular file", path=str(path)) from error
    about = os.fstat(output.fileno())
    if not stat.S_ISREG(about.st_mode) or about.st_uid not in (0, os.geteuid()):
        output.close()
        raise PermissionDenied("the log must be a regular file of this user", path=str(path))
    os.set_blocking(output.fileno(), True)
    return output


def _open_own(path: str, flags: int) -> int:
    # A FIFO would hold this process, and a symbolic link would lead elsewhere.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)


def _report_ready(descriptor: int | None) -> None:
    if descriptor is not None:
        os.write(descriptor, b"ready\n")
        os.close(descriptor)


__all__ = ["mount", "umount"]
