"""`luciola info`: where the bytes of a file are, and which of their copies are in sync."""

import asyncio
import os
import stat as modes
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Final, TypedDict

import click

from ..errors import InvalidArgument, NotFound, Timeout, Unavailable
from ..fuse import Mounted, answers, mount_of
from ..ids import ROOT_INODE
from ..meta.layout import chains_of
from ..units import format_bytes
from ..wire.pb import meta_pb2, storage_pb2
from ..wire.pb import mgmtd_pb2 as pb
from .administration import ClusterTarget, cluster_options
from .consistency import check_chunk, with_remedies
from .files import KINDS
from .layout import parse_size
from .mgmtd_client import LIST_LIMIT, ChainState, MgmtdClient, TargetState, describe_chain
from .options import json_option
from .output import print_json, print_table, shown
from .target import PREFIX, cluster_path

LIMIT: Final = 16  # chunks that are shown unasked: they fit a screen
LIMIT_MAX: Final = 100_000  # chunks in one answer: about 50 MB of JSON
INDEX_MAX: Final = (1 << 32) - 1


class Spread(TypedDict):
    """How the bytes of a file are spread; of a directory, what it gives to new files."""

    table: int
    table_version: int
    chunk_bytes: int
    stripe: int
    inline_bytes: int


class Replica(TargetState):
    """One replica of a chain, with where it is. `directory` and `disk` are empty if its node does not answer."""

    host: str
    directory: str
    disk: str


class FileChain(TypedDict):
    """One chain of a file."""

    id: int
    version: int
    state: str
    targets: list[Replica]


class Copy(TypedDict):
    """One copy of a chunk. `state`: whole, pending, missing, or unknown (its node does not answer)."""

    node: int
    state: str
    version: int
    length: int
    crc32c: str


class Chunk(TypedDict):
    """One chunk. `state`: in sync, hole, pending, differs, or unknown."""

    index: int
    offset: int
    chain: int
    state: str
    copies: list[Copy]


class Info(TypedDict):
    """What `luciola info` prints. `chunks`: those from `first_chunk` on, of `chunk_count`."""

    path: str
    type: str
    inode: int
    parent: int
    content: int
    links: int
    mode: str
    uid: int
    gid: int
    length: int
    is_inline: bool
    open_for_writing: bool
    layout: Spread | None
    chains: list[FileChain]
    chunk_count: int
    first_chunk: int
    chunks: list[Chunk]
    problems: list[str]


@click.command()
@cluster_options
@json_option
@click.option(
    "--offset", metavar="SIZE", callback=parse_size, default="0", help="Begin with the chunk at this byte."
)
@click.option(
    "--limit",
    type=click.IntRange(1, LIMIT_MAX),
    default=LIMIT,
    show_default=True,
    help="Show so many chunks.",
)
@click.argument("path")
def info(cluster: ClusterTarget, *, as_json: bool, offset: int, limit: int, path: str) -> None:
    """Show where the bytes of a file are: its inode and layout, and chunks, chains, nodes and disks with their states.

    PATH is in the cluster that --data or --manager names (`lu:/…` always is). Without --manager it may be on a mount of
    a cluster whose data directory is on this machine.
    Serving replicas of a chunk are compared: version, length, checksum. Exits with 1 if some differ, or do not answer.

    \b
    Examples:
      luciola info --data /var/lib/luciola /datasets/train.bin
      luciola info --offset 1G --limit 4 --json /mnt/luciola/datasets/train.bin
    """
    named, place = _resolve(cluster, path)
    found = named.ask(lambda ask: _info_of(ask, path, place, offset=offset, limit=limit))
    if as_json:
        print_json(found)
    else:
        _print(found)
    if found["problems"]:
        raise click.exceptions.Exit(1)


def _resolve(cluster: ClusterTarget, path: str) -> tuple[ClusterTarget, meta_pb2.Path]:
    """Return the cluster, and the path or inode there.

    Raises: InvalidArgument for a path of a mount of a cluster that has no data directory here.
    """
    # Of a cluster at an address, a mount does not say which manager it has.
    found = None if path.startswith(PREFIX) or cluster.manager is not None else _on_mount(path)
    if found is not None:
        mounted, place = found
        data = Path(mounted.cluster)
        if cluster.data_path is None:
            if not data.is_dir():
                raise InvalidArgument(
                    f"the mount is of the cluster at {mounted.cluster}: name it with --manager, and the path there",
                    path=path,
                )
            cluster = replace(cluster, data_path=data)
        if cluster.data_path is not None and cluster.data_path.resolve() == data.resolve():
            return cluster, meta_pb2.Path(at=os.lstat(place).st_ino)
    return cluster, meta_pb2.Path(at=ROOT_INODE, path=os.fsencode(cluster_path(path)))


def _on_mount(path: str) -> tuple[Mounted, Path] | None:
    """Return the mount that a path is on, and the path without links; a link on a mount is meant itself.

    Raises: Unavailable if the mount does not answer.
    """
    place = Path(os.path.abspath(path))
    _require_answer(mount_of(place), path)
    place = Path(os.path.realpath(place.parent)) / place.name
    mounted = mount_of(place)
    if mounted is None:
        place = Path(os.path.realpath(place))
        mounted = mount_of(place)
    _require_answer(mounted, path)
    return None if mounted is None else (mounted, place)


def _require_answer(mounted: Mounted | None, path: str) -> None:
    if mounted is not None and not answers(mounted.mountpoint):
        raise Unavailable(f"the mount does not answer: name the path in the cluster, {PREFIX}/…", path=path)


async def _info_of(ask: MgmtdClient, path: str, place: meta_pb2.Path, *, offset: int, limit: int) -> Info:
    routing = await ask.routing()
    inode = await ask.inode(routing, place, follow=False)
    has_chunks = inode.type == meta_pb2.REGULAR and not inode.is_inline and inode.layout.table > 0
    count = -(-inode.length // inode.layout.chunk_bytes) if has_chunks else 0
    first = min(offset // inode.layout.chunk_bytes, count) if has_chunks else 0
    indexes = range(first, min(first + limit, count))
    chains = _chains(routing, inode.layout) if has_chunks else []
    chunks, problems = await _chunks(ask, routing, inode, chains, indexes)
    if has_chunks and not chains:
        problems.append(f"the cluster has no table {inode.layout.table} version {inode.layout.table_version}")
    return {
        "path": path,
        "type": KINDS.get(MODES[inode.type], "unknown"),
        "inode": inode.id,
        "parent": inode.parent,
        "content": inode.content,
        "links": inode.link_count,
        "mode": modes.filemode(MODES[inode.type] | inode.permissions),
        "uid": inode.uid,
        "gid": inode.gid,
        "length": inode.length,
        "is_inline": inode.is_inline,
        "open_for_writing": inode.open_for_writing or inode.others_write,
        "layout": _spread(inode.layout) if inode.layout.chunk_bytes else None,
        "chains": await _places(ask, routing, chains),
        "chunk_count": count,
        "first_chunk": first,
        "chunks": chunks,
        "problems": problems,
    }


MODES: Final = {
    meta_pb2.TYPE_INVALID: 0,
    meta_pb2.REGULAR: modes.S_IFREG,
    meta_pb2.DIRECTORY: modes.S_IFDIR,
    meta_pb2.SYMLINK: modes.S_IFLNK,
    meta_pb2.FIFO: modes.S_IFIFO,
    meta_pb2.SOCKET: modes.S_IFSOCK,
    meta_pb2.CHAR_DEVICE: modes.S_IFCHR,
    meta_pb2.BLOCK_DEVICE: modes.S_IFBLK,
}


def _spread(layout: meta_pb2.Layout) -> Spread:
    return {
        "table": layout.table,
        "table_version": layout.table_version,
        "chunk_bytes": layout.chunk_bytes,
        "stripe": layout.stripe,
        "inline_bytes": layout.inline_bytes,
    }


def _chains(routing: pb.Routing, layout: meta_pb2.Layout) -> list[pb.Chain]:
    """Return the chains of a file, in the order of its chunks; none if routing does not know its table."""
    known = {chain.id: chain for chain in routing.chains}
    for table in routing.tables:
        if (table.id, table.version) == (layout.table, layout.table_version):
            return [known[chain] for chain in chains_of(layout, table.chains)]
    return []


async def _places(ask: MgmtdClient, routing: pb.Routing, chains: list[pb.Chain]) -> list[FileChain]:
    """Return chains with the hosts and directories of their replicas."""
    statuses = await ask.storage_statuses(
        routing, nodes={target.node for chain in chains for target in chain.targets}
    )
    hosts = {node.id: node.host for node in routing.nodes}

    def replica(target: TargetState) -> Replica:
        timed = statuses.get(target["node"])
        status = storage_pb2.StorageStatus() if timed is None else timed.status
        return {
            **target,
            "host": hosts.get(target["node"], ""),
            "directory": status.directory,
            "disk": status.space.disk,
        }

    def described(state: ChainState) -> FileChain:
        return {
            "id": state["id"],
            "version": state["version"],
            "state": state["state"],
            "targets": [replica(target) for target in state["targets"]],
        }

    return [described(describe_chain(chain)) for chain in chains]


async def _chunks(
    ask: MgmtdClient, routing: pb.Routing, inode: meta_pb2.Inode, chains: list[pb.Chain], indexes: range
) -> tuple[list[Chunk], list[str]]:
    """Return the chunks with these indexes, and what is wrong with them."""
    if not chains or not indexes:
        return [], []
    used = {chains[index % len(chains)].id: chains[index % len(chains)] for index in indexes}
    pairs = [(chain.id, target.node) for chain in used.values() for target in chain.targets]
    answers = await asyncio.gather(
        *(_records(ask, routing, chain, node, inode.content, indexes) for chain, node in pairs)
    )
    held = dict(zip(pairs, answers, strict=True))
    found, problems = [], []
    for index in indexes:
        chain = chains[index % len(chains)]
        records = {target.node: held[chain.id, target.node] for target in chain.targets}
        chunk, problem = describe_chunk(chain, inode, index, records)
        found.append(chunk)
        problems += problem
    return found, problems


Records = dict[int, storage_pb2.ChunkRecord]  # by index


async def _records(
    ask: MgmtdClient, routing: pb.Routing, chain: int, node: int, content: int, indexes: range
) -> Records | None:
    """Return a node's records of these chunks; None if it does not answer."""
    found: Records = {}
    try:
        async for record in _listed(ask, routing, chain, node, content, indexes):
            found[record.chunk.index] = record
    except (Unavailable, Timeout, NotFound):  # NotFound: the replica has left the node
        return None
    return found


async def _listed(
    ask: MgmtdClient, routing: pb.Routing, chain: int, node: int, content: int, indexes: range
) -> AsyncIterator[storage_pb2.ChunkRecord]:
    before = (content, indexes.start - 1) if indexes.start else (content - 1, INDEX_MAX)
    after = storage_pb2.ChunkName(content=before[0], index=before[1])
    limit = min(len(indexes), LIST_LIMIT)
    async for record in ask.chunks(routing, chain, node, after=after, limit=limit):
        if record.chunk.content != content or record.chunk.index >= indexes.stop:
            return
        yield record


def describe_chunk(
    chain: pb.Chain, inode: meta_pb2.Inode, index: int, held: dict[int, Records | None]
) -> tuple[Chunk, list[str]]:
    """Return one chunk with its copies, and what is wrong with it.

    `held`: what each node of its chain has, None if it does not answer. Replicas that serve are compared.
    """
    serving = [target.node for target in chain.targets if target.state == pb.SERVING]
    answered = [node for node in serving if held[node] is not None]
    present = {node: records[index] for node, records in held.items() if records and index in records}
    difference = check_chunk(chain.id, (inode.content, index), present, answered) if answered else None
    is_pending = any(present[node].pending for node in answered if node in present)
    label = f"chunk {index} on chain {chain.id}"
    problems = [f"{label}: node {node} does not answer" for node in serving if held[node] is None]
    if not serving:
        problems.append(f"{label}: no replica serves (luciola chain list --incomplete)")
    is_expected = is_pending and (inode.open_for_writing or inode.others_write)
    if difference is not None and not is_expected:
        (explained,) = with_remedies([difference])
        problems.append(f"{explained.what} ({explained.remedy})")
    if not answered:
        state = "unknown"
    elif difference is not None:
        state = "pending" if is_pending else "differs"
    else:
        state = "in sync" if answered[0] in present and not present[answered[0]].removed else "hole"
    return {
        "index": index,
        "offset": index * inode.layout.chunk_bytes,
        "chain": chain.id,
        "state": state,
        "copies": [_copy(node, records, index) for node, records in held.items()],
    }, problems


def _copy(node: int, records: Records | None, index: int) -> Copy:
    record = None if records is None else records.get(index)
    if record is None or record.removed:
        state = "unknown" if records is None else "missing"
        return {"node": node, "state": state, "version": 0, "length": 0, "crc32c": ""}
    return {
        "node": node,
        "state": "pending" if record.pending else "whole",
        "version": record.version,
        "length": record.length,
        "crc32c": f"{record.crc32c:08x}",
    }


def _print(found: Info) -> None:
    where = "in the inode" if found["is_inline"] else f"{found['chunk_count']} chunks"
    length = f", {format_bytes(found['length'])} ({found['length']} bytes), {where}"
    about = length if found["type"] == "file" else ""
    click.echo(f"{shown(found['path'], terminal=True)}: {found['type']}{about}")
    click.echo(
        f"inode {found['inode']} in directory {found['parent']}, content {found['content']}, {found['links']} links, "
        f"{found['mode']} {found['uid']}:{found['gid']}"
        + (", open for writing" if found["open_for_writing"] else "")
    )
    if (layout := found["layout"]) is not None:
        click.echo(
            f"layout: {_named_table(layout)}, chunks of "
            f"{format_bytes(layout['chunk_bytes'])}, stripe {layout['stripe']}, inline up to "
            f"{format_bytes(layout['inline_bytes'])}"
        )
    if found["chains"]:
        _print_chains(found["chains"])
    if found["chunks"]:
        _print_chunks(found)
    for problem in found["problems"]:
        click.echo(problem)


def _named_table(layout: Spread) -> str:
    return (
        f"table {layout['table']} version {layout['table_version']}"
        if layout["table"]
        else "the default table"
    )


def _print_chains(chains: list[FileChain]) -> None:
    rows = [
        (
            str(chain["id"]),
            str(chain["version"]),
            str(target["node"]),
            target["state"],
            target["host"],
            target["directory"] or "-",
        )
        for chain in chains
        for target in chain["targets"]
    ]
    click.echo()
    print_table(("CHAIN", "VERSION", "NODE", "STATE", "HOST", "DIRECTORY"), rows, right=(0, 1, 2))


def _print_chunks(found: Info) -> None:
    rows = [
        (
            str(chunk["index"]),
            str(chunk["offset"]),
            str(chunk["chain"]),
            chunk["state"],
            ", ".join(_described(copy) for copy in chunk["copies"]),
        )
        for chunk in found["chunks"]
    ]
    click.echo()
    print_table(("CHUNK", "OFFSET", "CHAIN", "STATE", "COPIES"), rows, right=(0, 1, 2))
    end = found["first_chunk"] + len(found["chunks"])
    if end < found["chunk_count"]:
        click.echo(f"{found['chunk_count'] - end} more chunks: --offset, --limit")


def _described(copy: Copy) -> str:
    if copy["state"] in ("missing", "unknown"):
        return f"{copy['node']}: {copy['state']}"
    pending = " pending" if copy["state"] == "pending" else ""
    return f"{copy['node']}: version {copy['version']}{pending}, {format_bytes(copy['length'])}"


__all__ = ["Records", "describe_chunk", "info"]
