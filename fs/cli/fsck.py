"""`luciola fsck`: names against inodes against chunks against replicas."""

import asyncio
import datetime as dt
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final, TypedDict

import click

from ..errors import Error
from ..meta.layout import chain_of
from ..meta.quarantine import CONTENT_MAX, CONTENTS_MAX
from ..wire import methods
from ..wire.methods import Method, Reply, Request
from ..wire.pb import meta_pb2, mgmtd_pb2, storage_pb2
from .consistency import (
    KEPT_MAX,
    ChunkName,
    Findings,
    Held,
    Placement,
    Problem,
    check_chunk,
    check_names,
    describe_owner,
    with_remedies,
)
from .datadir import Shape, running_shape
from .inventory import Inventory
from .mgmtd_client import MgmtdClient, address_of, node_address
from .options import data_option, json_option
from .output import print_json

CALL_S: Final = 60.0
SCRUB_S: Final = 3600.0
SETTLE_S: Final = 1.0  # updates in flight have ended by then
ROUNDS: Final = 5  # a difference that every round sees is not an update in flight
SETTLED_S: Final = 5.0  # after that two rounds are enough: a large cluster is not read five times
SCAN_S: Final = 3600.0  # of all inodes: 10^7 take some minutes
BATCH: Final = 1024  # rows put into the inventory at a time
SHOWN_MAX: Final = 50
QUARANTINE_HOURS: Final = (
    24.0  # a day in which a user misses a file, or an operator notices the wrong metadata
)
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
    shape = running_shape(data_path.absolute())
    policy = Policy(repair, round(quarantine_hours * HOUR_MS), allow_mass_removal)
    with Inventory() as names:
        report = asyncio.run(Check(shape, names).run(scrub=scrub, policy=policy, release=release))
    if as_json:
        print_json(report)
    else:
        _print(report)
    if report["problems"]:
        sys.exit(1)


class ReportedProblem(TypedDict):
    """One problem, as --json prints it."""

    kind: str
    what: str
    remedy: str
    chain: int
    chunk: ChunkName | None


class ReportedContent(TypedDict):
    """One content in quarantine, as --json prints it."""

    content: int
    chains: list[int]
    chunks: int
    due: str


class Report(TypedDict):
    """What --json prints."""

    problems: list[ReportedProblem]
    problem_count: int
    repaired: list[str]
    quarantined: list[ReportedContent]
    inodes: int
    entries: int
    chunks: int
    replicas: int
    open: int
    removed: int


def _print(report: Report) -> None:
    for problem in report["problems"][:SHOWN_MAX]:
        click.echo(f"{problem['kind']}: {problem['what']} ({problem['remedy']})")
    if report["problem_count"] > SHOWN_MAX:
        left = report["problem_count"] - min(SHOWN_MAX, len(report["problems"]))
        click.echo(f"... and {left} more; --json lists up to {KEPT_MAX} of a kind")
    for line in report["repaired"]:
        click.echo(line if line.startswith(("failed: ", "nothing ")) else f"repaired: {line}")
    counts = f"{report['inodes']} inodes, {report['entries']} entries, {report['chunks']} chunks"
    click.echo(f"{counts}, {report['replicas']} replicas checked: {report['problem_count']} problems")
    if report["removed"]:
        click.echo(f"chunks of {report['removed']} removed files wait for collection")
    if report["open"]:
        click.echo(
            f"{report['open']} files that are open for writing (or were, by a client that has just died) have chunks "
            "past their end: no problem"
        )
    for line in describe_quarantine(report["quarantined"]):
        click.echo(line)


def describe_quarantine(quarantined: list[ReportedContent]) -> list[str]:
    """Return what waits, by due time, and how to keep it."""
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

    def __init__(self, shape: Shape, names: Inventory) -> None:
        self._shape = shape
        self._names = names
        self._report: Report = {
            "problems": [],
            "problem_count": 0,
            "repaired": [],
            "quarantined": [],
            "inodes": 0,
            "entries": 0,
            "chunks": 0,
            "replicas": 0,
            "open": 0,
            "removed": 0,
        }

    async def run(self, *, scrub: bool, policy: Policy, release: bool = False) -> Report:
        """Collect, compare, and repair if asked. The report is what --json prints."""
        async with MgmtdClient.connect(self._shape.cluster) as manager:
            self._manager = manager
            self._routing = await manager.routing()
            if release:
                await self._release()
            findings = await self._compare()
            problems = [*self._missing_replicas(), *with_remedies(findings.problems.values())]
            contents, _ = self._names.orphan_counts()
            if contents and not (policy.repair and await self._repair(policy)):
                problems += describe_orphans(self._names.orphans())
                findings.omitted += max(0, contents - KEPT_MAX)
            elif contents:
                problems += describe_orphans(
                    each for each in self._names.orphans() if not can_quarantine(each)
                )
            if scrub:
                problems += await self._scrub(repair=policy.repair)
            self._report["quarantined"] = [describe_content(each) for each in await self._quarantined()]
        self._report["problems"] = [_describe(problem) for problem in problems]
        self._report["problem_count"] = len(problems) + findings.omitted
        return self._report

    async def _compare(self) -> Findings:
        """Return what is wrong in every round: an update, a file that is being made or removed, is seen in one only."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        findings = await self._round(0)
        for round_number in range(1, ROUNDS):
            if not findings.problems and not self._names.orphan_counts()[0]:
                break
            await asyncio.sleep(SETTLE_S)
            findings = findings.seen_again(await self._round(round_number))
            self._names.drop_orphans(round_number=round_number)
            if loop.time() - began_s > SETTLED_S:
                break
        return findings

    async def _round(self, number: int) -> Findings:
        await self._collect_names()
        findings = Findings()
        for problem in check_names(self._names):
            findings.add(problem)
        self._report |= {"chunks": 0, "replicas": 0, "open": 0, "removed": self._names.removed_count}
        self._report["inodes"], self._report["entries"] = self._names.counts()
        for chain in self._routing.chains:
            nodes = [target.node for target in chain.targets if target.state == mgmtd_pb2.SERVING]
            if nodes:
                await self._check_chain(chain.id, nodes, findings, number)
        return findings

    async def _check_chain(self, chain: int, nodes: list[int], findings: Findings, number: int) -> None:
        placement = Placement(self._names, self._locate, findings, chain=chain, round_number=number)
        async for name, held in merged(
            {node: self._manager.chunks(self._routing, chain, node) for node in nodes}
        ):
            self._report["replicas"] += len(held)
            head = held.get(nodes[0])
            if head is not None and not head.removed:
                self._report["chunks"] += 1
                placement.add(*name)
            problem = check_chunk(chain, name, held, nodes)
            if problem is not None:
                path = describe_owner(self._names, self._names.owner(name[0]))
                findings.add(replace(problem, what=f"{path}: {problem.what}"))
        placement.finish()
        self._report["open"] += placement.open_files

    def _missing_replicas(self) -> list[Problem]:
        return [
            Problem(
                "replicas",
                ("missing", chain.id, target.id),
                f"chain {chain.id}: node {target.node} is {mgmtd_pb2.PublicState.Name(target.state).lower()}",
                "luciola status says why",
                chain.id,
            )
            for chain in self._routing.chains
            for target in chain.targets
            if target.state != mgmtd_pb2.SERVING
        ]

    def _locate(self, layout: meta_pb2.Layout, index: int) -> int | None:
        for table in self._routing.tables:
            if (table.id, table.version) == (layout.table, layout.table_version):
                return chain_of(layout, table.chains, index)
        return None

    async def _collect_names(self) -> None:
        names = self._names
        names.clear()
        await self._scan_into(methods.Meta.scan_inodes, names.add_inodes)
        await self._scan_into(methods.Meta.scan_dentries, names.add_entries)
        await self._scan_into(methods.Meta.scan_removed, names.add_removed)
        await self._scan_into(methods.Meta.scan_quarantined, names.add_quarantined)
        names.finish()

    async def _scan_into(
        self, method: Method[meta_pb2.ScanRequest, Reply], add: Callable[[list[Reply]], None]
    ) -> None:
        batch: list[Reply] = []
        async for item in self._scan(method):
            batch.append(item)
            if len(batch) == BATCH:
                add(batch)
                batch.clear()
        add(batch)

    async def _scan(self, method: Method[meta_pb2.ScanRequest, Reply]) -> AsyncIterator[Reply]:
        address = address_of(self._routing, mgmtd_pb2.NODE_META)
        async for item in self._manager.clients.stream(
            address, method, meta_pb2.ScanRequest(), timeout_s=SCAN_S
        ):
            yield item

    async def _repair(self, policy: Policy) -> bool:
        """Put chunks of no file into quarantine; False if that is refused."""
        _, chunks = self._names.orphan_counts()
        refusal = await self._refusal(chunks)
        if refusal and not policy.allow_mass_removal:
            self._report["repaired"].append(f"failed: {refusal}")
            return False
        orphans = filter(can_quarantine, self._names.orphans())
        contents = chunks = 0
        try:
            while batch := list(islice(orphans, CONTENTS_MAX)):
                request = meta_pb2.QuarantineRequest(contents=batch, delay_ms=policy.quarantine_ms)
                await self._call_meta(methods.Meta.quarantine, request)
                contents += len(batch)
                chunks += sum(each.chunks for each in batch)
        except Error as error:
            self._report["repaired"].append(f"failed: chunks of no file: {error}")
            return False
        self._report["repaired"].append(
            f"{chunks} chunks of {contents} contents of no file are in quarantine"
        )
        return True

    async def _refusal(self, orphans: int) -> str:
        """Return why so many chunks are not touched; empty if they are few. What is in quarantine already counts."""
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
        if not waiting:
            self._report["repaired"].append("nothing is in quarantine")
            return
        for start in range(0, len(waiting), CONTENTS_MAX):
            request = meta_pb2.ReleaseQuarantinedRequest(contents=waiting[start : start + CONTENTS_MAX])
            await self._call_meta(methods.Meta.release_quarantined, request)
        chunks = sum(each.chunks for each in waiting)
        self._report["repaired"].append(
            f"{chunks} chunks of {len(waiting)} contents were taken out of quarantine"
        )

    async def _quarantined(self) -> list[meta_pb2.QuarantinedContent]:
        return [each async for each in self._scan(methods.Meta.scan_quarantined)]

    async def _call_meta(self, method: Method[Request, Reply], request: Request) -> None:
        address = address_of(self._routing, mgmtd_pb2.NODE_META)
        await self._manager.clients.call(address, method, request, timeout_s=CALL_S)

    async def _scrub(self, *, repair: bool) -> list[Problem]:
        problems = []
        for chain in self._routing.chains:
            for target in chain.targets:
                if target.state != mgmtd_pb2.SERVING:
                    continue
                damaged = await self._scrub_replica(chain.id, target.node, repair=repair)
                problems += [self._damage(chain.id, target.node, record, repair=repair) for record in damaged]
        return problems

    async def _scrub_replica(
        self, chain: int, node: int, *, repair: bool
    ) -> Iterable[storage_pb2.ChunkRecord]:
        """Damaged chunks of one replica, without those that were repaired."""

        async def scrub(*, repair: bool) -> storage_pb2.ScrubReply:
            request = storage_pb2.ScrubRequest(chain=chain, repair=repair)
            address = node_address(self._routing, node)
            return await self._manager.clients.call(
                address, methods.Storage.scrub, request, timeout_s=SCRUB_S
            )

        reply = await scrub(repair=repair)
        if not repair or not reply.damaged:
            return reply.damaged
        if reply.repaired:
            self._report["repaired"].append(f"{reply.repaired} damaged chunks on node {node}, chain {chain}")
        if reply.repaired >= len(reply.damaged):
            return ()
        left = (await scrub(repair=False)).damaged
        if left:
            self._report["repaired"].append(
                f"failed: {len(left)} damaged chunks on node {node}, chain {chain}: no good replica"
            )
        return left

    def _damage(self, chain: int, node: int, record: storage_pb2.ChunkRecord, *, repair: bool) -> Problem:
        content, index = record.chunk.content, record.chunk.index
        path = describe_owner(self._names, self._names.owner(content))
        return Problem(
            "replicas",
            ("damaged", chain, node, content, index),
            f"{path}: chunk {index} of content {content} on chain {chain}: damaged on node {node}",
            "no good replica is left: put the file back from elsewhere"
            if repair
            else "run with --scrub --repair",
            chain,
            (content, index),
        )


async def merged(
    streams: Mapping[int, AsyncIterator[storage_pb2.ChunkRecord]],
) -> AsyncIterator[tuple[ChunkName, Held]]:
    """Each chunk with the records of the nodes that have one. `streams`: by content and index."""
    heads: dict[int, storage_pb2.ChunkRecord] = {}
    for node, stream in streams.items():
        if (record := await anext(stream, None)) is not None:
            heads[node] = record
    while heads:
        name = min((record.chunk.content, record.chunk.index) for record in heads.values())
        held = {
            node: record
            for node, record in heads.items()
            if (record.chunk.content, record.chunk.index) == name
        }
        yield name, held
        for node in held:
            if (record := await anext(streams[node], None)) is None:
                del heads[node]
            else:
                heads[node] = record


def can_quarantine(orphan: meta_pb2.QuarantinedContent) -> bool:
    """Return whether meta accepts the content: its id leaves ids for new files."""
    return 0 < orphan.content <= CONTENT_MAX


def describe_orphans(orphans: Iterable[meta_pb2.QuarantinedContent]) -> list[Problem]:
    """Contents that belong to no file, each as a problem."""
    return [
        Problem(
            "placement",
            ("orphan", orphan.content),
            f"content {orphan.content}: {orphan.chunks} chunks on chains "
            f"{', '.join(map(str, orphan.chains))} belong to no file",
            "--repair puts them into quarantine, and removes them later"
            if can_quarantine(orphan)
            else "left alone: metadata never assigns this id, some other program wrote it",
        )
        for orphan in islice(orphans, KEPT_MAX)
    ]


def _describe(problem: Problem) -> ReportedProblem:
    return {
        "kind": problem.kind,
        "what": problem.what,
        "remedy": problem.remedy,
        "chain": problem.chain,
        "chunk": problem.chunk,
    }


def describe_content(quarantined: meta_pb2.QuarantinedContent) -> ReportedContent:
    """Return a content in quarantine in plain words."""
    due = dt.datetime.fromtimestamp(quarantined.due_unix_ms / 1000, tz=dt.UTC).astimezone()
    return {
        "content": quarantined.content,
        "chains": list(quarantined.chains),
        "chunks": quarantined.chunks,
        "due": due.isoformat(sep=" ", timespec="seconds"),
    }


__all__ = ["Check", "Policy", "can_quarantine", "describe_orphans", "fsck", "merged"]
