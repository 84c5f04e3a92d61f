"""`luciola fsck`: names against inodes against chunks against replicas."""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import click

from ..clock import SystemClock
from ..errors import Error, NotFound
from ..meta.layout import chain_of
from ..wire import Expiries, methods
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


@click.command()
@data_option(required=True)
@click.option("--scrub", is_flag=True, help="Also read every byte of every replica and verify its checksum.")
@click.option(
    "--repair", is_flag=True, help="Remove chunks without a file; rewrite damaged replicas from good ones."
)
@json_option
def fsck(data_path: Path, scrub: bool, repair: bool, as_json: bool) -> None:
    """Check a running cluster: names, inodes, chunks and replicas. Changes nothing without --repair.

    Exits with 0 when nothing is wrong, 1 otherwise.

    \b
    Example:
      luciola fsck --data /var/lib/luciola --scrub
    """
    shape = DataDir(data_path.absolute()).read_shape()
    report = asyncio.run(Check(shape).run(scrub=scrub, repair=repair))
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
        click.echo(f"repaired: {line}")
    counts = f"{report['inodes']} inodes, {report['entries']} entries, {report['chunks']} chunks"
    click.echo(f"{counts}, {report['replicas']} replicas checked: {len(report['problems'])} problems")
    if report["removed"]:
        click.echo(f"chunks of {report['removed']} removed files wait for collection")


class Check:
    """One run over one cluster."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._report: dict[str, Any] = {"problems": [], "repaired": [], "replicas": 0, "chunks": 0}

    async def run(self, *, scrub: bool, repair: bool) -> dict[str, Any]:
        """Collects, compares, and repairs if asked. The report is what --json prints."""
        async with Manager.connect(self._shape.cluster) as manager:
            self._manager = manager
            self._routing = await manager.routing()
            problems = await self._compare()
            if repair and problems:
                problems = await self._repair(problems)
            if scrub:
                problems += await self._scrub(repair=repair)
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
        self._report["chunks"] = sum(len(chunks) for chunks in heads.values())
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

    async def _repair(self, problems: list[Problem]) -> list[Problem]:
        left = []
        for problem in problems:
            try:
                done = await self._repair_one(problem)
            except Error as error:
                self._report["repaired"].append(f"failed: {problem.what}: {error}")
                done = False
            if done:
                self._report["repaired"].append(problem.what)
            else:
                left.append(problem)
        return left

    async def _repair_one(self, problem: Problem) -> bool:
        chain = next((each for each in self._routing.chains if each.id == problem.chain), None)
        if chain is None or problem.chunk is None or not chain.targets:
            return False
        if problem.kind == "placement":
            head = self._node_address(chain.targets[0].node)
            expiry = await Expiries(self._manager.clients, SystemClock()).expiry(
                head, time.monotonic() + CALL_S
            )
            request = storage_pb2.RemoveChunksRequest(
                chain=storage_pb2.ChainRef(chain=chain.id, version=chain.version),
                content=problem.chunk[0],
                client=random.SystemRandom().getrandbits(63) | 1,
                sequence=1,
                expiry=expiry,
            )
            await self._manager.clients.call(head, methods.Storage.remove_chunks, request, timeout_s=CALL_S)
            return True
        return False

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


__all__ = ["Check", "fsck"]
