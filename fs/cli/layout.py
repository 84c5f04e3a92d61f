"""`luciola layout`: how the bytes of new files are spread."""

from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict

import click

from ..units import format_bytes, parse_bytes
from .options import json_option
from .output import print_json, print_table, shown
from .target import FilesTarget, cluster_options, cluster_path

if TYPE_CHECKING:
    from ..client import FileSystem


def parse_size(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """Return the number of bytes in `text`. Raises: BadParameter, with what is accepted."""
    try:
        return None if text is None else parse_bytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.group()
def layout() -> None:
    """Show and set how the bytes of files are spread over the chains of the cluster.

    A file has the layout that its directory had when it was created, and keeps it. A directory that has none gives its
    files what `[meta]` in the configuration says.

    \b
    Example:
      luciola layout set --data /var/lib/luciola --chunk-bytes 4M --stripe 16 /datasets
    """


@layout.command()
@cluster_options
@json_option
@click.argument("paths", nargs=-1, required=True)
def show(
    cluster: FilesTarget,
    as_json: bool,
    paths: tuple[str, ...],
) -> None:
    """Show the layout of files, and what directories give to new files.

    SOURCE says where it comes from: file, directory, or cluster (the configuration).

    \b
    Example:
      luciola layout show --data /var/lib/luciola /datasets /datasets/train.bin
    """
    with cluster.open() as fs:
        layouts = [_describe(fs, cluster_path(text)) for text in paths]
    if as_json:
        print_json(layouts)
        return
    rows = [
        (
            str(each["table"]),
            format_bytes(each["chunk_bytes"]),
            str(each["stripe"]),
            format_bytes(each["inline_bytes"]),
            each["source"],
            shown(each["path"]),
        )
        for each in layouts
    ]
    print_table(("TABLE", "CHUNK", "STRIPE", "INLINE", "SOURCE", "PATH"), rows, right=(0, 1, 2, 3))


@layout.command("set")
@cluster_options
@click.option("--table", type=click.IntRange(min=1), help="The chain table whose chains hold the chunks.")
@click.option(
    "--chunk-bytes",
    metavar="SIZE",
    callback=parse_size,
    help="Size of a chunk: a power of two from 64K to 64M.",
)
@click.option("--stripe", type=click.IntRange(min=1), help="Chains that a file is spread over.")
@click.option(
    "--inline-bytes",
    metavar="SIZE",
    callback=parse_size,
    help="Files up to this size are kept in the metadata store: 0 (none) to 64K.",
)
@click.argument("directories", nargs=-1, required=True)
def set_(
    cluster: FilesTarget,
    table: int | None,
    chunk_bytes: int | None,
    stripe: int | None,
    inline_bytes: int | None,
    directories: tuple[str, ...],
) -> None:
    """Set what directories give to new files and to new directories; what is not named stays.

    Files and directories that are there already keep what they have.

    \b
    Example:
      luciola layout set --data /var/lib/luciola --chunk-bytes 4M --stripe 16 /datasets
    """
    from ..client import Layout

    wanted = Layout(table=table, chunk_bytes=chunk_bytes, stripe=stripe, inline_bytes=inline_bytes)
    if wanted == Layout():
        raise click.UsageError("say what to set: --table, --chunk-bytes, --stripe or --inline-bytes")
    with cluster.open() as fs:
        for text in directories:
            fs.set_layout(cluster_path(text), wanted)


@layout.command()
@cluster_options
@click.argument("directories", nargs=-1, required=True)
def clear(cluster: FilesTarget, directories: tuple[str, ...]) -> None:
    """Let directories give new files what the configuration says again.

    \b
    Example:
      luciola layout clear --data /var/lib/luciola /datasets
    """
    with cluster.open() as fs:
        for text in directories:
            fs.set_layout(cluster_path(text), None)


class Shown(TypedDict):
    """The layout of a path, as commands print it. `source`: what it comes from."""

    path: str
    source: str
    table: int | None
    chunk_bytes: int
    stripe: int | None
    inline_bytes: int


def _describe(fs: "FileSystem", path: str) -> Shown:
    own = fs.layout(path)
    default = fs.default_layout()
    found = default if own is None else own
    if found.table is None:
        found = replace(found, table=default.table)
    assert found.chunk_bytes is not None, "a stored layout is whole"
    assert found.inline_bytes is not None, "a stored layout is whole"
    source = "cluster" if own is None else "directory" if fs.isdir(path) else "file"
    return {
        "path": path,
        "source": source,
        "table": found.table,
        "chunk_bytes": found.chunk_bytes,
        "stripe": found.stripe,
        "inline_bytes": found.inline_bytes,
    }


__all__ = ["layout", "parse_size"]
