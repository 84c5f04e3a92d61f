"""`luciola fsck`: names against inodes against chunks against replicas."""

import asyncio
import datetime as dt
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from ..errors import NotFound
from ..meta.layout import chain_of
from ..meta.quarantine import CONTENTS_MAX
from ..wire import methods
from ..wire.pb import meta_pb2, mgmtd_pb2, storage_pb2
from .consistency import (
    Chunks,
    Names,
    Problem,
    check_names,
    check_placement,
    check_replicas,
    index_chunks,
)
from .datadir import DataDir, Shape
from .manager import Manager, address_of
from .options import data_option, json_option
from .output import print_json

LIST_LIMIT: Final = 4096  # chunk records a request
CALL_S: Final = 60.0
SCRUB_S: Final = 3600.0
SETTLE_S: Final = 1.0  # updates in flight have ended by then
ROUNDS: Final = 5  # a difference that every round sees is not an update in flight
SHOWN_MAX: Final = 50
QUARANTINE_HOURS: Final = 24.0  # a day in which somebody misses a file, or notices the wrong metadata
QUARANTINE_HOURS_MAX: Final = 24.0 * 366
HOUR_MS: Final = 3_600_000
# Without a file are, in a sound cluster, the chunks of a few interrupted operations. More are refused.
MASS_CHUNKS: Final = 64
MASS_SHARE: Final = 0.05


@dataclass(frozen=True)
class Policy:
    """What a run may change."""

    repair: bool = False
    quarantine_ms: int = 0
    allow_mass_removal: bool = False


@click.command()
@data_option(required=True)
@click.option("--scrub", is_flag=True, help="Also read every byte of every replica and verify its checksum.")
@click.option(
    "--repair",
    is_flag=True,
    help="Put chunks of no file into quarantine, from where they are removed later; "
    "with --scrub, rewrite damaged chunks from good replicas.",
)
@click.option(
    "--quarantine-hours",
    type=click.FloatRange(0, QUARANTINE_HOURS_MAX),
    default=QUARANTINE_HOURS,
    show_default=True,
    help="How long chunks of no file wait before they are removed.",
)
@click.option(
    "--allow-mass-removal",
    is_flag=True,
    help=f"Let --repair take also more than {MASS_CHUNKS} chunks that are more than {MASS_SHARE:.0%} of all: that "
    "many without a file are a sign of an empty or old copy of the metadata.",
)
@click.option(
    "--release-quarantine",
    "release",
    is_flag=True,
    help="First take everything out of quarantine: nothing of it is removed.",
)
@json_option
def fsck(
    *,
    data_path: Path,
    scrub: bool,
    repair: bool,
    quarantine_hours: float,
    allow_mass_removal: bool,
    release: bool,
    as_json: bool,
) -> None:
    """Check a running cluster: names, inodes, chunks and replicas. Changes nothing without --repair.

    Exits with 0 when nothing is wrong, 1 otherwise.

    \b
    Examples:
      luciola fsck --data /var/lib/luciola --scrub
      luciola fsck --data /var/lib/luciola --repair --quarantine-hours 72
    """
    if release and repair:
        raise click.UsageError(
            "--release-quarantine and --repair exclude one another: what one takes out, the other puts in"
        )
    if allow_mass_removal and not repair:
        raise click.UsageError("--allow-mass-removal says what --repair may do: give both")
    shape = DataDir(data_path.absolute()).read_shape()
    policy = Policy(repair, round(quarantine_hours * HOUR_MS), allow_mass_removal)
    report = asyncio.run(Check(shape).run(scrub=scrub, policy=policy, release=release))
    if as_json:
        print_json(report)
    else:
        _print(report)
    if report["problems"]:
        sys.exit(1)


def _print(report: dict[str, Any]) -> None:
    for problem in report["problems"][:SHOWN_MAX]:
        click.echo(f"{problem['kind']}: {problem['what']} ({problem['remedy']})")
    if len(report["problems"]) > SHOWN_MAX:
        click.echo(f"... and {len(report['problems']) - SHOWN_MAX} more; --json lists all")
    for line in report["repaired"]:
        click.echo(line if line.startswith("failed: ") else f"repaired: {line}")
    counts = f"{report['inodes']} inodes, {report['entries']} entries, {report['chunks']} chunks"
    click.echo(f"{counts}, {report['replicas']} replicas checked: {len(report['problems'])} problems")
    if report["removed"]:
        click.echo(f"chunks of {report['removed']} removed files wait for collection")
    for line in describe_quarantine(report["quarantined"]):
        click.echo(line)


def describe_quarantine(quarantined: list[dict[str, Any]]) -> list[str]:
    """What waits, by due time, and how to keep it."""
    if not quarantined:
        return []
    by_due: dict[str, list[int]] = {}
    for each in quarantined:
        by_due.setdefault(each["due"], []).append(each["chunks"])
    lines = [
        f"quarantine: {sum(chunks)} chunks of {len(chunks)} contents are removed after {due}"
        for due, chunks in list(by_due.items())[:SHOWN_MAX]
    ]
    return [*lines, "to keep them: luciola fsck --release-quarantine"]


class Check:
    """One run over one cluster."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._report: dict[str, Any] = {"problems": [], "repaired": [], "replicas": 0, "chunks": 0}

    async def run(self, *, scrub: bool, policy: Policy, release: bool = False) -> dict[str, Any]:
        """Collect, compare, and repair if asked. The report is what --json prints."""
        async with Manager.connect(self._shape.cluster) as manager:
            self._manager = manager
            self._routing = await manager.routing()
            if release:
                await self._release()
            problems = await self._compare()
            if policy.repair:
                problems = await self._repair(problems, policy)
            if scrub:
                problems += await self._scrub(repair=policy.repair)
            self._report["quarantined"] = [describe_content(each) for each in await self._quarantined()]
        self._report["problems"] = [vars(problem) for problem in problems]
        return self._report

    async def _compare(self) -> list[Problem]:
        # Chunks are listed before names: a file made in between then has names without chunks, which is nothing
        # wrong, instead of chunks without names.
        replicas = await self._collect_chunks()
        names = await self._collect_names()
        heads: dict[int, Chunks] = {}
        problems = list(self._missing_replicas())
        for chain in self._routing.chains:
            serving = [target.node for target in chain.targets if target.state == mgmtd_pb2.SERVING]
            held = {node: replicas[chain.id, node] for node in serving if (chain.id, node) in replicas}
            if held:
                heads[chain.id] = next(iter(held.values()))
            problems += await self._settled(chain, list(check_replicas(chain.id, held)))
            self._report["replicas"] += sum(len(chunks) for chunks in held.values())
        self._report["chunks"] = sum(
            not record.removed for chunks in heads.values() for record in chunks.values()
        )
        self._report["inodes"], self._report["entries"] = len(names.inodes), len(names.entries)
        self._report["removed"] = sum(not record.spare for record in names.removed)
        problems += await self._persistent(names, heads)
        return problems

    async def _persistent(self, names: Names, heads: dict[int, Chunks]) -> list[Problem]:
        """What is wrong with names and placement in every round: a file that is being made or removed is not."""
        problems: list[Problem] = []
        for round_number in range(ROUNDS):
            found = [*check_names(names), *check_placement(names, heads, self._locate)]
            known = {problem.what for problem in problems}
            problems = [problem for problem in found if round_number == 0 or problem.what in known]
            if not problems:
                return []
            await asyncio.sleep(SETTLE_S)
            replicas = await self._collect_chunks()
            heads = {chain: chunks for (chain, _), chunks in reversed(replicas.items())}
            names = await self._collect_names()
        return problems

    def _missing_replicas(self) -> list[Problem]:
        return [
            Problem(
                "replicas",
                f"chain {chain.id}: node {target.node} is {mgmtd_pb2.PublicState.Name(target.state).lower()}",
                "start the node and wait until it has caught up",
                chain.id,
            )
            for chain in self._routing.chains
            for target in chain.targets
            if target.state != mgmtd_pb2.SERVING
        ]

    async def _settled(self, chain: mgmtd_pb2.Chain, problems: list[Problem]) -> list[Problem]:
        """Those of `problems` that stay when updates in flight have had time to end."""
        for _ in range(ROUNDS):
            if not problems:
                return []
            await asyncio.sleep(SETTLE_S)
            held = {
                target.node: await self._chunks(chain.id, target.node)
                for target in chain.targets
                if target.state == mgmtd_pb2.SERVING
            }
            left = {problem.chunk for problem in check_replicas(chain.id, held)}
            problems = [problem for problem in problems if problem.chunk in left]
        return problems

    def _locate(self, layout: meta_pb2.Layout, index: int) -> int | None:
        for table in self._routing.tables:
            if (table.id, table.version) == (layout.table, layout.table_version):
                return chain_of(layout, table.chains, index)
        return None

    async def _collect_chunks(self) -> dict[tuple[int, int], Chunks]:
        found: dict[tuple[int, int], Chunks] = {}
        for chain in self._routing.chains:
            for target in chain.targets:
                if target.state == mgmtd_pb2.SERVING:
                    found[chain.id, target.node] = await self._chunks(chain.id, target.node)
        return found

    async def _chunks(self, chain: int, node: int) -> Chunks:
        records: list[storage_pb2.ChunkRecord] = []
        request = storage_pb2.ListChunksRequest(chain=chain, limit=LIST_LIMIT)
        while True:
            reply = await self._manager.clients.call(
                self._node_address(node), methods.Storage.list_chunks, request, timeout_s=CALL_S
            )
            records += reply.chunks
            if not reply.more:
                return index_chunks(records)
            request.after.CopyFrom(reply.chunks[-1].chunk)

    async def _collect_names(self) -> Names:
        names = Names()
        async for inode in self._scan(methods.Meta.scan_inodes):
            names.inodes[inode.id] = inode
        names.entries = [entry async for entry in self._scan(methods.Meta.scan_dentries)]
        names.removed = [record async for record in self._scan(methods.Meta.scan_removed)]
        names.quarantined = await self._quarantined()
        return names

    async def _scan(self, method: Any) -> AsyncIterator[Any]:
        address = address_of(self._routing, mgmtd_pb2.NODE_META)
        async for item in self._manager.clients.stream(
            address, method, meta_pb2.ScanRequest(), timeout_s=CALL_S
        ):
            yield item

    def _node_address(self, node: int) -> str:
        for each in self._routing.nodes:
            if each.id == node:
                return each.grpc_address
        raise NotFound(f"routing names no node {node}")

    async def _repair(self, problems: list[Problem], policy: Policy) -> list[Problem]:
        """Put chunks of no file into quarantine. What is left of `problems`."""
        orphans: dict[int, meta_pb2.QuarantinedContent] = {}
        for problem in problems:
            if problem.kind == "placement" and problem.chunk is not None:
                content = problem.chunk[0]
                orphan = orphans.setdefault(content, meta_pb2.QuarantinedContent(content=content))
                orphan.chunks += 1
                if problem.chain not in orphan.chains:
                    orphan.chains.append(problem.chain)
        if not orphans:
            return problems
        refusal = await self._refusal(sum(each.chunks for each in orphans.values()))
        if refusal and not policy.allow_mass_removal:
            self._report["repaired"].append(f"failed: {refusal}")
            return problems
        pending = sorted(orphans.values(), key=lambda orphan: orphan.content)
        for start in range(0, len(pending), CONTENTS_MAX):
            batch = pending[start : start + CONTENTS_MAX]
            request = meta_pb2.QuarantineRequest(contents=batch, delay_ms=policy.quarantine_ms)
            await self._call_meta(methods.Meta.quarantine, request)
        for orphan in pending:
            self._report["repaired"].append(
                f"content {orphan.content}: {orphan.chunks} chunks are in quarantine"
            )
        return [problem for problem in problems if problem.kind != "placement" or problem.chunk is None]

    async def _refusal(self, orphans: int) -> str:
        """Why so many chunks are not touched; empty if they are few. What is in quarantine already counts."""
        waiting = sum(each.chunks for each in await self._quarantined())
        total = max(1, self._report["chunks"])
        if orphans + waiting <= MASS_CHUNKS or orphans + waiting <= MASS_SHARE * total:
            return ""
        return (
            f"{orphans + waiting} of {total} chunks belong to no file: these metadata may be an empty or an old copy, "
            "and the chunks the only trace of files. If there is a backup of meta/, stop the cluster, put it back "
            "and run fsck again. Only if the files are really gone: --repair --allow-mass-removal"
        )

    async def _release(self) -> None:
        waiting = await self._quarantined()
        for start in range(0, len(waiting), CONTENTS_MAX):
            request = meta_pb2.ReleaseQuarantinedRequest(contents=waiting[start : start + CONTENTS_MAX])
            await self._call_meta(methods.Meta.release_quarantined, request)
        chunks = sum(each.chunks for each in waiting)
        self._report["repaired"].append(
            f"{chunks} chunks of {len(waiting)} contents were taken out of quarantine"
        )

    async def _quarantined(self) -> list[meta_pb2.QuarantinedContent]:
        return [each async for each in self._scan(methods.Meta.scan_quarantined)]

    async def _call_meta(self, method: Any, request: Any) -> None:
        address = address_of(self._routing, mgmtd_pb2.NODE_META)
        await self._manager.clients.call(address, method, request, timeout_s=CALL_S)

    async def _scrub(self, *, repair: bool) -> list[Problem]:
        problems = []
        for chain in self._routing.chains:
            for target in chain.targets:
                if target.state != mgmtd_pb2.SERVING:
                    continue
                reply = await self._manager.clients.call(
                    self._node_address(target.node),
                    methods.Storage.scrub,
                    storage_pb2.ScrubRequest(chain=chain.id, repair=repair),
                    timeout_s=SCRUB_S,
                )
                if repair and reply.repaired:
                    self._report["repaired"].append(
                        f"{reply.repaired} damaged chunks on node {target.node}, chain {chain.id}"
                    )
                    continue
                problems += [
                    Problem(
                        "replicas",
                        f"chunk {record.chunk.index} of content {record.chunk.content} on chain {chain.id}: "
                        f"damaged on node {target.node}",
                        "run with --scrub --repair",
                        chain.id,
                        (record.chunk.content, record.chunk.index),
                    )
                    for record in reply.damaged
                ]
        return problems


def describe_content(quarantined: meta_pb2.QuarantinedContent) -> dict[str, Any]:
    """A content in quarantine in plain words."""
    due = dt.datetime.fromtimestamp(quarantined.due_unix_ms / 1000, tz=dt.UTC).astimezone()
    return {
        "content": quarantined.content,
        "chains": list(quarantined.chains),
        "chunks": quarantined.chunks,
        "due": due.isoformat(sep=" ", timespec="seconds"),
    }


__all__ = ["Check", "Policy", "fsck"]
