"""`luciola backup take|list|verify|prune` and `luciola restore`."""

import asyncio
import datetime as dt
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ...errors import InvalidArgument
from ...units import format_bytes
from ..copy import Copier, Side, Tally, signals_as_exceptions
from ..datadir import Shape, running_shape
from ..mgmtd_client import MgmtdClient
from ..options import data_option, json_option
from ..output import print_json, print_table
from ..target import PREFIX, FilesTarget, cluster_path
from .repository import Manifest, PackReader, Repository, describe, opened
from .run import MOMENT, Backup, Options
from .source import Source
from .tree import BackupFiles, Tree
from .verify import verify as verify_all

if TYPE_CHECKING:
    from .restore import Report

HOLD_MS: Final = 3000
HOLD_MS_MAX: Final = 8000  # fs/storage/service.py
DEADLINE_MS: Final = 30_000  # of reading a chunk: a replica that hangs is given up for another one meanwhile
RESTORE_DEADLINE_MS: Final = 100_000  # of writing one

directory_argument = click.argument(
    "directory", type=click.Path(path_type=Path, file_okay=False), metavar="DIRECTORY"
)
number_option = click.option(
    "--backup", "number", type=click.IntRange(1), help="Number of the backup.  [default: the newest]"
)


@click.group()
def backup() -> None:
    """Back up a running cluster into a directory, and look after the backups there.

    \b
    Examples:
      luciola backup take --data /var/lib/luciola /mnt/backups
      luciola backup verify /mnt/backups
    """


@backup.command()
@data_option(required=True)
@click.option(
    "--hold-ms",
    type=click.IntRange(100, HOLD_MS_MAX),
    default=HOLD_MS,
    show_default=True,
    help="How long writes may wait for the moment that the backup is of.",
)
@click.option(
    "--without-hold",
    is_flag=True,
    help="Never let writes wait: every chunk is whole, but they are not of one moment.",
)
@click.option("--full", is_flag=True, help="Copy everything, also what earlier backups have.")
@json_option
@directory_argument
def take(
    *, data_path: Path, hold_ms: int, without_hold: bool, full: bool, as_json: bool, directory: Path
) -> None:
    """Take a backup: all names, and what has changed since the newest backup in DIRECTORY.

    Programs keep running; for a moment, at the end, writes wait. Exits with 1 if something could not be read; it is
    named, and the rest is there.

    \b
    Examples:
      luciola backup take --data /var/lib/luciola /mnt/backups
      luciola backup take --data /var/lib/luciola --hold-ms 8000 /mnt/backups
    """
    shape = running_shape(data_path.absolute())
    options = Options(hold_ms, consistent=not without_hold, full=full)
    began_s = time.monotonic()
    with signals_as_exceptions():
        manifest = asyncio.run(_take(shape, data_path.absolute(), directory, options))
    if as_json:
        print_json(describe(manifest))
    else:
        _report(manifest, time.monotonic() - began_s)
    if not manifest.is_complete:
        sys.exit(1)


async def _take(shape: Shape, data_path: Path, directory: Path, options: Options) -> Manifest:
    repository = Repository.create(directory, shape.cluster.cluster_id)
    async with MgmtdClient.connect(shape.cluster) as manager:
        source = Source(manager, str(data_path), deadline_ms=DEADLINE_MS)
        try:
            return await Backup(source, repository, options).take()
        finally:
            source.close()


def _report(manifest: Manifest, took_s: float) -> None:
    for line in manifest.damaged:
        click.echo(f"luciola: not in the backup: {line}", err=True)
    held = f"; writes waited {manifest.held_ms} ms" if manifest.consistency == MOMENT else ""
    click.echo(
        f"backup {manifest.number}: {manifest.files} files, {format_bytes(manifest.bytes)}; copied "
        f"{manifest.copied_chunks} chunks, {format_bytes(manifest.copied_bytes)} in {took_s:.1f} s{held}"
    )


@backup.command("list")
@json_option
@directory_argument
def list_backups(*, as_json: bool, directory: Path) -> None:
    """Show the backups in DIRECTORY.

    \b
    Example:
      luciola backup list /mnt/backups
    """
    repository = Repository.open(directory)
    manifests = [repository.manifest(number) for number in repository.numbers()]
    if as_json:
        print_json([describe(manifest) for manifest in manifests])
        return
    header = ("BACKUP", "MOMENT", "FILES", "SIZE", "COPIED", "STATE")
    print_table(header, [_row(manifest) for manifest in manifests], right=(0, 2, 3, 4))


def _row(manifest: Manifest) -> tuple[str, ...]:
    moment = dt.datetime.fromtimestamp(manifest.moment_ns / 1e9, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    state = "complete" if manifest.is_complete else f"lacks {len(manifest.damaged)} chunks"
    if manifest.consistency != MOMENT:
        state += ", not of one moment"
    sizes = format_bytes(manifest.bytes), format_bytes(manifest.copied_bytes)
    return str(manifest.number), moment, str(manifest.files), *sizes, state


@backup.command()
@number_option
@json_option
@directory_argument
def verify(*, number: int | None, as_json: bool, directory: Path) -> None:
    """Read everything that the backups in DIRECTORY refer to, and check it. Exits with 1 if something is damaged.

    \b
    Example:
      luciola backup verify /mnt/backups
    """
    repository = Repository.open(directory)
    numbers = repository.numbers() if number is None else [number]
    if not numbers:
        raise InvalidArgument("no finished backup is here", path=str(directory))
    report = verify_all(repository, numbers, advance=lambda _: None)
    if as_json:
        print_json(vars(report))
    else:
        for problem in report.problems:
            click.echo(f"luciola: {problem}", err=True)
        counts = f"{report.backups} backups, {report.chunks} chunks, {format_bytes(report.bytes)}"
        click.echo(f"{counts} read: {len(report.problems)} problems")
    if report.problems:
        sys.exit(1)


@backup.command()
@click.option("--keep", type=click.IntRange(1), required=True, help="How many of the newest backups stay.")
@json_option
@directory_argument
def prune(*, keep: int, as_json: bool, directory: Path) -> None:
    """Remove old backups, and files to which no backup refers any more.

    \b
    Example:
      luciola backup prune --keep 7 /mnt/backups
    """
    repository = Repository.open(directory)
    with repository.locked():
        removed, freed = repository.prune(keep)
    if as_json:
        print_json({"removed": removed, "freed_bytes": freed})
        return
    click.echo(f"removed {len(removed)} backups; {format_bytes(freed)} of chunks freed")


@click.command()
@data_option(required=False)
@number_option
@click.option("--path", "path", metavar="PATH", help="Only this file or directory of the backup.")
@click.option(
    "--into", metavar="PATH", help=f"Where PATH is copied to: a new name, here or {PREFIX}/on the cluster."
)
@click.option(
    "--incomplete", is_flag=True, help="Also from a backup that lacks chunks: files have holes there."
)
@json_option
@directory_argument
def restore(
    *,
    data_path: Path | None,
    number: int | None,
    path: str | None,
    into: str | None,
    incomplete: bool,
    as_json: bool,
    directory: Path,
) -> None:
    """Restore a whole cluster, into an empty one, or one directory of it, to anywhere.

    A cluster that is restored may have other nodes, chains and numbers of copies. It stays closed until everything is
    there and has been compared. If that is interrupted, the same command begins it again.

    \b
    Examples:
      luciola restore --data /var/lib/luciola-new /mnt/backups
      luciola restore --data /var/lib/luciola --path /home/ada --into lu:/home/ada-of-yesterday /mnt/backups
      luciola restore --path /home/ada/thesis.tex --into ./thesis.tex /mnt/backups
    """
    if (path is None) != (into is None):
        raise click.UsageError("--path says what, and --into where: give both, or none for the whole cluster")
    repository = Repository.open(directory)
    manifest = repository.manifest(number)
    if not manifest.is_complete and not incomplete:
        raise InvalidArgument(
            f"backup {manifest.number} lacks {len(manifest.damaged)} chunks, such as of {manifest.damaged[0]}: restore "
            "another one, or give --incomplete",
            path=str(directory),
        )
    with signals_as_exceptions():
        if path is not None and into is not None:
            _restore_path(repository, manifest, path, into, data_path=data_path, as_json=as_json)
        else:
            _restore_all(repository, manifest, data_path=data_path, as_json=as_json)


def _restore_all(
    repository: Repository, manifest: Manifest, *, data_path: Path | None, as_json: bool
) -> None:
    if data_path is None:
        raise click.UsageError("name the empty cluster: --data DIR (or LUCIOLA_DATA)")
    root = data_path.absolute()
    report = asyncio.run(_fill(running_shape(root), root, repository, manifest.number))
    if as_json:
        print_json(vars(report))
        return
    click.echo(
        f"restored backup {manifest.number}: {report.files} files, {report.chunks} chunks, "
        f"{format_bytes(report.bytes)}; {report.replicas} copies compared"
    )
    if report.again:
        click.echo(
            "an earlier attempt had broken off; `luciola fsck --repair` removes the chunks that it left"
        )


async def _fill(shape: Shape, root: Path, repository: Repository, number: int) -> "Report":
    from .restore import Restore

    async with MgmtdClient.connect(shape.cluster) as manager:
        source = Source(manager, str(root), deadline_ms=RESTORE_DEADLINE_MS)
        try:
            report = await Restore(manager, source, repository, number).run(advance=lambda _: None)
        finally:
            source.close()
    return report


def _restore_path(
    repository: Repository, manifest: Manifest, path: str, into: str, *, data_path: Path | None, as_json: bool
) -> None:
    from ...client import LocalFileSystem

    repository.check_database(manifest)
    tally = Tally()

    def copy(target: Side, target_path: str) -> None:
        if _exists(target, target_path):
            raise InvalidArgument("there is something already: name a new path", path=into)
        with opened(repository.database(manifest.number)) as base, PackReader(repository) as packs:
            files = BackupFiles(Tree(base), packs)
            advance: Callable[[int], None] = lambda count: tally.add(bytes=count)  # noqa: E731
            Copier(files, target, tally, advance).copy(path, target_path)  # type: ignore[arg-type]

    if into.startswith(PREFIX):
        with FilesTarget(data_path).open() as fs:
            copy(fs, cluster_path(into))
    else:
        copy(LocalFileSystem(), into)
    if as_json:
        print_json(tally.describe())
    else:
        for what in tally.skipped:
            click.echo(f"luciola: {what}", err=True)
        click.echo(
            f"restored {tally.files} files, {tally.directories} directories, {format_bytes(tally.bytes)}"
        )
    if tally.skipped:
        sys.exit(1)


def _exists(side: Side, path: str) -> bool:
    try:
        side.lstat(path)
    except FileNotFoundError:
        return False
    return True


__all__ = ["backup", "restore"]
