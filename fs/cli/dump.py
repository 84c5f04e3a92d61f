"""`luciola dump`: the namespace as text, as of one moment, while the cluster is used."""

import contextlib
import gzip
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO, Final, cast

import click

from ..errors import IsADirectory
from ..tempname import temp_beside
from ..wire import methods
from ..wire.pb import meta_pb2, mgmtd_pb2
from .administration import ClusterTarget, cluster_options
from .dump_text import TextWriter
from .mgmtd_client import MgmtdClient, address_of

STANDARD: Final = "-"
GZIP_LEVEL: Final = 3  # twice as fast as the default, and a tenth larger
BUFFER_BYTES: Final = 1 << 20


@click.command()
@cluster_options
@click.argument("target", metavar="FILE")
def dump(cluster: ClusterTarget, target: str) -> None:
    """Write the namespace to FILE ("-": standard output): names, attributes, layouts and the bytes of small files.

    The dump is of one moment, and is taken while the cluster is used. It has one JSON object a line, and is compressed
    if the name ends in ".gz". Bytes in chunks are not in it. It is as confidential as the files.

    \b
    Examples:
      luciola dump --data /var/lib/luciola names.jsonl.gz
      luciola dump --data /var/lib/luciola - | jq 'select(.record == "entry") | .name'
    """
    trailer = cluster.ask(lambda connected: _write(connected, target))
    counts = f"{trailer.inodes} inodes, {trailer.attributes} attributes, {trailer.entries} entries"
    click.echo(f"dumped {counts}", err=True)


async def _write(manager: MgmtdClient, target: str) -> meta_pb2.DumpTrailer:
    trailer = meta_pb2.DumpTrailer()
    with open_output(target) as output:
        writer = TextWriter(output)
        async for record in dump_records(manager):
            writer.write(record)
            if record.HasField("trailer"):
                trailer = record.trailer
    return trailer


async def dump_records(manager: MgmtdClient) -> AsyncIterator[meta_pb2.DumpRecord]:
    """The records of a dump of one moment, the first of them the header and the last one the trailer.

    They come as fast as they are taken, and take no memory. Close the iterator if it is not read to its end: until
    then the metadata service keeps the state of that moment.
    Raises: NotFound without a metadata service; Busy if too many dumps are being taken; Unavailable if it ends.
    """
    address = address_of(await manager.routing(), mgmtd_pb2.NODE_META)
    stream = manager.clients.stream(address, methods.Meta.dump, meta_pb2.DumpRequest())
    async with contextlib.aclosing(stream):  # type: ignore[type-var] # it is a generator
        async for batch in stream:
            for record in batch.records:
                yield record


@contextlib.contextmanager
def open_output(target: str) -> Iterator[BinaryIO]:
    """The file `target`, which appears, whole and on the disk, when the block has ended without an error."""
    if target == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(target).absolute()
    if path.is_dir():
        raise IsADirectory("name a file for the dump", path=target)
    part = Path(temp_beside(str(path)))
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb", buffering=BUFFER_BYTES) as file:
            with _compressed(file, path) as output:
                yield output
            file.flush()
            os.fsync(descriptor)
        part.rename(path)
        _sync_directory(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _compressed(file: BinaryIO, path: Path) -> Iterator[BinaryIO]:
    if path.suffix != ".gz":
        yield file
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=GZIP_LEVEL, mtime=0) as output:
        yield cast("BinaryIO", output)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["dump", "dump_records", "open_output"]
