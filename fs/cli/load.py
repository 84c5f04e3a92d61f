"""`luciola load`: an empty namespace filled from a dump.

A dump has no chunks. Where they are, in the cluster that the dump was made of, every file keeps its content and its
chains, and is compared with what these hold: files that grew after the dump have their length, and those that lack
bytes (cut, overwritten under another content, or removed after the dump) are named. Elsewhere only names are loaded.
"""

import contextlib
import gzip
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import BinaryIO, Final, NotRequired, TypedDict, cast

import click

from ..errors import InvalidArgument
from ..meta.dump import kind_of
from ..meta.load_checks import RecordChecks
from ..wire import methods
from ..wire.methods import Method, Reply, Request
from ..wire.pb import meta_pb2, mgmtd_pb2
from ..wire.pb.common_pb2 import Caller, Empty
from .administration import ClusterTarget, cluster_options
from .chunk_ends import ChunkEnds
from .dump import STANDARD
from .dump_text import TextReader
from .mgmtd_client import MgmtdClient, address_of
from .options import json_option
from .output import print_json, shown

BATCH_RECORDS: Final = 256
BATCH_BYTES: Final = 1 << 20
CALL_S: Final = 60.0  # of one batch: milliseconds, unless the disk is busy
END_S: Final = 3600.0  # counts all inodes
SHORT_MAX: Final = 10_000  # files without all their bytes that are named; the others are counted


class Loader:
    """One load, from its first record to its last. What is not finished keeps the namespace closed."""

    def __init__(self, manager: MgmtdClient, address: str, begun: meta_pb2.BeginLoadReply) -> None:
        self._manager = manager
        self._address = address
        self._request = meta_pb2.LoadRequest(load=begun.load)
        self._size_bytes = 0
        self._stored = 1  # records; the header is one

    @classmethod
    async def begin(
        cls, manager: MgmtdClient, header: meta_pb2.DumpHeader, *, new_contents: bool = False
    ) -> "Loader":
        """Close the namespace, which must be empty, for the dump with that header.

        `new_contents`: files keep neither content nor layout. Records of regular files then have no content, and what
        their layout says of chunk size, stripe and inline bytes is followed; `add` says what they got.
        Raises: NotEmpty; Busy; InvalidArgument if the dump cannot be loaded here; AlreadyExists if the load of another
        dump is not finished.
        """
        address = address_of(await manager.routing(), mgmtd_pb2.NODE_META)
        request = meta_pb2.BeginLoadRequest(header=header, new_contents=new_contents)
        reply = await manager.clients.call(address, methods.Meta.begin_load, request, timeout_s=CALL_S)
        return cls(manager, address, reply)

    async def add(self, record: meta_pb2.DumpRecord) -> list[meta_pb2.Inode]:
        """Load the next record: inodes, each with its attributes and entries behind it, as a dump has them.

        Returns regular files, of this record or earlier ones, that have been stored with a new content and layout.
        Raises: InvalidArgument with the field `record`, its number in the dump, for one that is refused. After any
        error the load is to be begun again.
        """
        self._request.records.append(record)
        self._size_bytes += record.ByteSize()
        if self._size_bytes < BATCH_BYTES and len(self._request.records) < BATCH_RECORDS:
            return []
        return await self.flush()

    async def flush(self) -> list[meta_pb2.Inode]:
        """Store what was added. Returns and raises as `add`."""
        try:
            reply = await self._call(methods.Meta.load, self._request, CALL_S)
        except InvalidArgument as error:
            if "record" in error.fields:
                number = self._stored + int(error.fields["record"])
                raise InvalidArgument(error.message, record=number) from error
            raise
        self._stored += len(self._request.records)
        del self._request.records[:]
        self._size_bytes = 0
        return list(reply.placed)

    async def finish(self, trailer: meta_pb2.DumpTrailer) -> None:
        """Open the namespace. Raises: InvalidArgument if the trailer counts other records than were loaded."""
        assert not self._request.records, "flush first: files may have been placed"
        request = meta_pb2.FinishLoadRequest(load=self._request.load, trailer=trailer)
        await self._call(methods.Meta.finish_load, request, END_S)

    async def _call(self, method: Method[Request, Reply], request: Request, timeout_s: float) -> Reply:
        return await self._manager.clients.call(self._address, method, request, timeout_s=timeout_s)


class ShortFile(TypedDict):
    """A file whose chunks end at `end`, before the file does."""

    inode: int
    length: int
    end: int
    path: NotRequired[str]


@dataclass
class Report:
    """What a load has brought, and what of the dump the chains contradict."""

    inodes: int = 0
    attributes: int = 0
    entries: int = 0
    emptied: int = 0  # files whose bytes are not in this cluster
    grown: int = 0  # files that are longer than the dump says
    short: list[ShortFile] = field(default_factory=list)  # files whose chunks end before the file does
    short_count: int = 0
    unowned_contents: int = 0  # of no file of the dump
    unowned_chunks: int = 0


@click.command()
@cluster_options
@click.option(
    "--names-only",
    is_flag=True,
    help="Load names, attributes and small files; files in chunks become empty. For another cluster than the dump's.",
)
@click.option(
    "--discard", is_flag=True, help="Give up a load that was not finished: the namespace is empty again."
)
@json_option
@click.argument("source", metavar="FILE", required=False)
def load(
    cluster: ClusterTarget,
    *,
    names_only: bool,
    discard: bool,
    as_json: bool,
    source: str | None,
) -> None:
    """Fill an empty namespace with the dump in FILE ("-": standard input).

    The namespace is closed until all is there. If that is interrupted, the same command continues it, and --discard
    gives it up.

    \b
    Examples:
      luciola load --data /var/lib/luciola names.jsonl.gz
      luciola load --data /srv/copy --names-only names.jsonl.gz
      luciola load --data /var/lib/luciola --discard
    """
    if discard:
        if source or names_only:
            raise click.UsageError("--discard loads nothing: give it alone")
        cluster.ask(_discard)
        click.echo("the load was discarded: the namespace is empty")
        return
    if source is None:
        raise click.UsageError('name the dump: a FILE, or "-" for standard input')
    if source != STANDARD:
        _verify(source)
    report = cluster.ask(lambda connected: _Loading(connected, names_only=names_only).run(source))
    if as_json:
        print_json(asdict(report))
    else:
        _print(report)


def _verify(source: str) -> None:
    """Read the whole dump before anything is changed. Raises: InvalidArgument with the number of the line."""
    with _opened(source) as reader:
        checks: RecordChecks | None = None
        for record in reader:
            kind = kind_of(record)
            if kind == "header":
                checks = RecordChecks(record.header, new_contents=False, is_known=lambda _: True)
            elif checks is not None and kind != "trailer":
                try:
                    checks.check(record)
                except InvalidArgument as error:
                    raise _at_line(reader.line, error) from error


@contextlib.contextmanager
def _opened(source: str) -> Iterator[TextReader]:
    """The dump's records. Raises: InvalidArgument for a compressed file that is damaged."""
    try:
        if source == STANDARD:
            yield TextReader(sys.stdin.buffer)
        elif source.endswith(".gz"):
            with gzip.open(source, "rb") as file:
                yield TextReader(cast("BinaryIO", file))
        else:
            with open(source, "rb", buffering=BATCH_BYTES) as file:
                yield TextReader(file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidArgument(f"the dump is damaged or cut off: {error}", path=source) from error


def _at_line(line: int, error: InvalidArgument) -> InvalidArgument:
    return InvalidArgument(f"line {line} of the dump: {error.message}")


async def _discard(manager: MgmtdClient) -> None:
    address = address_of(await manager.routing(), mgmtd_pb2.NODE_META)
    await manager.clients.call(address, methods.Meta.discard_load, Empty(), timeout_s=END_S)


class _Loading:
    """`luciola load` of one dump."""

    def __init__(self, manager: MgmtdClient, *, names_only: bool) -> None:
        self._manager = manager
        self._names_only = names_only
        self._now_ns = time.time_ns()
        self._short: dict[int, ShortFile] = {}  # by inode
        self._report = Report()

    async def run(self, source: str) -> Report:
        with _opened(source) as reader, ChunkEnds() as ends:
            records = iter(reader)
            header = next(records).header
            loader = await Loader.begin(self._manager, header, new_contents=self._names_only)
            if not self._names_only:
                await ends.collect(self._manager, await self._manager.routing())
            for record in records:
                if record.HasField("trailer"):
                    await self._finish(loader, record.trailer)
                    break
                if record.HasField("inode"):
                    self._adapt(record.inode, ends)
                await self._add(loader, record)
            self._report.unowned_contents, self._report.unowned_chunks = ends.unowned()
        await self._name_short()
        return self._report

    async def _add(self, loader: Loader, record: meta_pb2.DumpRecord) -> None:
        try:
            await loader.add(record)
        except InvalidArgument as error:
            raise _with_line(error) from error

    async def _finish(self, loader: Loader, trailer: meta_pb2.DumpTrailer) -> None:
        try:
            await loader.flush()
        except InvalidArgument as error:
            raise _with_line(error) from error
        await loader.finish(trailer)
        self._report.inodes, self._report.attributes = trailer.inodes, trailer.attributes
        self._report.entries = trailer.entries

    def _adapt(self, inode: meta_pb2.Inode, ends: ChunkEnds) -> None:
        """Make the inode what it can be in this cluster."""
        if self._names_only:
            self._report.emptied += without_chunks(inode)
        elif inode.type == meta_pb2.REGULAR and not inode.is_inline:
            self._compare(inode, ends.end(inode.content, inode.layout.chunk_bytes))

    def _compare(self, inode: meta_pb2.Inode, end: int) -> None:
        """Give a file that has grown since the dump its length, and note one that lacks bytes."""
        if end > inode.length:
            inode.length = end
            inode.mtime_ns = inode.ctime_ns = self._now_ns
            inode.change += 1
            self._report.grown += 1
        elif end < inode.length and inode.link_count:
            self._report.short_count += 1
            if len(self._short) < SHORT_MAX:
                self._short[inode.id] = {"inode": inode.id, "length": inode.length, "end": end}

    async def _name_short(self) -> None:
        """Find a path for each file that lacks bytes."""
        if not self._short:
            return
        address = address_of(await self._manager.routing(), mgmtd_pb2.NODE_META)
        parents: dict[int, str] = {}
        stream = self._manager.clients.stream(
            address, methods.Meta.scan_dentries, meta_pb2.ScanRequest(), timeout_s=END_S
        )
        async for scanned in stream:
            found = self._short.get(scanned.entry.inode)
            if found is None or "path" in found:
                continue
            if scanned.parent not in parents:
                parents[scanned.parent] = await self._path_of(address, scanned.parent)
            name = scanned.entry.name.decode(errors="surrogateescape")
            found["path"] = f"{parents[scanned.parent].rstrip('/')}/{name}"
        self._report.short = list(self._short.values())

    async def _path_of(self, address: str, directory: int) -> str:
        request = meta_pb2.RealPathRequest(caller=Caller(), inode=directory)
        reply = await self._manager.clients.call(address, methods.Meta.real_path, request, timeout_s=CALL_S)
        return reply.path.decode(errors="surrogateescape")


def without_chunks(inode: meta_pb2.Inode) -> bool:
    """Take from an inode what only its own cluster has. Whether bytes went with it: a file in chunks becomes empty."""
    if not inode.HasField("layout"):
        return False
    layout = inode.layout
    layout.table = layout.table_version = layout.seed = layout.base = layout.permutation_version = 0
    if inode.type != meta_pb2.REGULAR:
        return False
    inode.content = 0
    if inode.is_inline:
        return False
    had_bytes = inode.length > 0
    inode.length = 0
    inode.is_inline = layout.inline_bytes > 0
    return had_bytes


def _with_line(error: InvalidArgument) -> InvalidArgument:
    """Add the line to an error of a record: the header is the first line, and the first record."""
    return _at_line(int(error.fields["record"]) + 1, error) if "record" in error.fields else error


def _print(report: Report) -> None:
    for each in report.short:
        path = shown(each.get("path", f"inode {each['inode']}"))
        click.echo(f"{path}: {each['end']} of {each['length']} bytes are on its chains")
    click.echo(
        f"loaded {report.inodes} inodes, {report.attributes} attributes, {report.entries} entries", err=True
    )
    if report.emptied:
        click.echo(f"{report.emptied} files are empty: their bytes are in the dump's cluster", err=True)
    if report.grown:
        click.echo(f"{report.grown} files are longer than at the time of the dump", err=True)
    if report.short_count:
        click.echo(
            f"{report.short_count} files end in a hole: they were cut, rewritten or removed after the dump, unless "
            "they were sparse before",
            err=True,
        )
    if report.unowned_contents:
        click.echo(
            f"{report.unowned_chunks} chunks of {report.unowned_contents} contents belong to no file of the dump: "
            "made or rewritten after it; they stay (`luciola fsck`)",
            err=True,
        )


__all__ = ["Loader", "load", "without_chunks"]
