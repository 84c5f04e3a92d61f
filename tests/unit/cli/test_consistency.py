"""The checks of fsck find what they are for, and nothing in a sound tree."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest

from luciola.cli.consistency import (
    KEPT_MAX,
    Findings,
    Placement,
    Problem,
    check_chunk,
    check_names,
    with_remedies,
)
from luciola.cli.fsck import can_quarantine, describe_orphans, merged
from luciola.cli.inventory import Inventory
from luciola.wire.pb import meta_pb2, storage_pb2


@dataclass
class Names:
    """What the metadata service lists."""

    inodes: dict[int, meta_pb2.Inode] = field(default_factory=dict)
    entries: list[meta_pb2.ScannedDentry] = field(default_factory=list)
    removed: list[meta_pb2.RemovedContent] = field(default_factory=list)
    quarantined: list[meta_pb2.QuarantinedContent] = field(default_factory=list)


@pytest.fixture
def inventory() -> Iterator[Inventory]:
    with Inventory() as inventory:
        yield inventory


def fill(inventory: Inventory, names: Names) -> Inventory:
    inventory.clear()
    inventory.add_inodes(names.inodes.values())
    inventory.add_entries(names.entries)
    inventory.add_removed(names.removed)
    inventory.add_quarantined(names.quarantined)
    inventory.finish()
    return inventory


def directory(number: int, parent: int, links: int = 2) -> meta_pb2.Inode:
    return meta_pb2.Inode(id=number, type=meta_pb2.DIRECTORY, parent=parent, link_count=links)


def regular(number: int, *, content: int = 0, length: int = 0, links: int = 1) -> meta_pb2.Inode:
    layout = meta_pb2.Layout(table=1, table_version=1, chunk_bytes=1 << 20, stripe=1)
    return meta_pb2.Inode(
        id=number, type=meta_pb2.REGULAR, link_count=links, content=content, length=length, layout=layout
    )


def entry(parent: int, name: str, inode: meta_pb2.Inode) -> meta_pb2.ScannedDentry:
    return meta_pb2.ScannedDentry(
        parent=parent, entry=meta_pb2.Dentry(name=name.encode(), inode=inode.id, type=inode.type)
    )


def sound() -> Names:
    """/dir/a and /dir/b, one file under two names; /dir/sub."""
    names = Names()
    file = regular(10, content=77, length=2_000_000, links=2)
    for inode in (directory(1, 1, links=3), directory(2, 1, links=3), directory(3, 2), file):
        names.inodes[inode.id] = inode
    names.entries = [
        entry(1, "dir", names.inodes[2]),
        entry(2, "sub", names.inodes[3]),
        entry(2, "a", file),
        entry(2, "b", file),
    ]
    return names


def found(inventory: Inventory, names: Names) -> str:
    return " | ".join(problem.what for problem in check_names(fill(inventory, names)))


def test_sound_names_give_no_problem(inventory: Inventory) -> None:
    assert found(inventory, sound()) == ""


def test_entry_without_inode(inventory: Inventory) -> None:
    names = sound()
    names.entries.append(entry(1, "gone", regular(99)))
    assert "'gone' in directory 1: inode 99 does not exist" in found(inventory, names)


def test_inode_without_entry(inventory: Inventory) -> None:
    names = sound()
    names.inodes[11] = regular(11)
    assert found(inventory, names) == "inode 11: no entry leads to it"


def test_removed_but_open_file_is_no_problem(inventory: Inventory) -> None:
    names = sound()
    names.inodes[11] = regular(11)
    names.removed = [meta_pb2.RemovedContent(content=5, inode=11)]
    assert found(inventory, names) == ""


def test_wrong_link_count_names_the_path(inventory: Inventory) -> None:
    names = sound()
    names.inodes[10].link_count = 3
    names.inodes[2].link_count = 2
    assert "/dir/a (inode 10): link count 3, but 2 found" in found(inventory, names)
    assert "/dir (inode 2): link count 2, but 3 found" in found(inventory, names)


def test_directory_with_two_names(inventory: Inventory) -> None:
    names = sound()
    names.entries.append(entry(1, "again", names.inodes[3]))
    said = found(inventory, names)
    assert "directory 3: 2 entries lead to it" in said
    assert "'again' in directory 1: its inode names 2 as parent" in said


def test_wrong_type_wrong_parent_and_missing_directory(inventory: Inventory) -> None:
    names = sound()
    names.entries[2].entry.type = meta_pb2.SYMLINK
    names.inodes[3].parent = 1
    names.entries.append(entry(50, "lost", names.inodes[10]))
    said = found(inventory, names)
    assert "says type 3, its inode 1" in said
    assert "its inode names 1 as parent" in said
    assert "'lost' in directory 50: the directory does not exist" in said


def test_missing_root(inventory: Inventory) -> None:
    names = sound()
    del names.inodes[1]
    assert "the root directory has no inode" in found(inventory, names)


def placement(inventory: Inventory, names: Names, *chunks: tuple[int, int], chain: int = 4) -> list[str]:
    """What is said of chunks (content, index) on a chain, when every chunk belongs on chain 4."""
    findings = Findings()
    fill(inventory, names)
    check = Placement(inventory, lambda _layout, _index: 4, findings, chain=chain, round_number=0)
    for content, index in chunks:
        check.add(content, index)
    check.finish()
    orphans = [f"{each.content} on {list(each.chains)}: {each.chunks}" for each in inventory.orphans()]
    return [*(problem.what for problem in findings.problems.values()), *orphans, *["open"] * check.open_files]


def test_chunks_of_files_removed_files_and_quarantine_are_fine(inventory: Inventory) -> None:
    names = sound()
    names.removed = [meta_pb2.RemovedContent(content=5, inode=11, layout=names.inodes[10].layout)]
    names.quarantined = [meta_pb2.QuarantinedContent(content=6)]
    assert placement(inventory, names, (5, 9), (6, 0), (77, 0), (77, 1)) == []


def test_chunks_of_no_file_are_counted_by_content(inventory: Inventory) -> None:
    assert placement(inventory, sound(), (6, 0), (6, 1), (8, 0)) == ["6 on [4]: 2", "8 on [4]: 1"]
    assert inventory.orphan_counts() == (2, 3)


def test_content_beyond_any_id_belongs_to_no_file(inventory: Inventory) -> None:
    assert placement(inventory, sound(), ((1 << 64) - 1, 0)) == [f"{(1 << 63) - 1} on [4]: 1"]


def test_orphans_of_one_round_only_are_forgotten(inventory: Inventory) -> None:
    fill(inventory, sound())
    for content in (6, 7):
        inventory.note_orphan(content, 4, 1, round_number=0)
    for content in (7, 8):
        inventory.note_orphan(content, 4, 3, round_number=1)
    inventory.drop_orphans(round_number=1)
    assert [(each.content, each.chunks) for each in inventory.orphans()] == [(7, 3)]


def test_chunk_past_the_end_names_the_file(inventory: Inventory) -> None:
    (what,) = placement(inventory, sound(), (77, 0), (77, 2), (77, 3))
    assert what.startswith("/dir/a: 2 chunks of content 77 on chain 4 are past the end of the file")


def test_chunk_past_the_end_of_a_file_that_is_open_for_writing_is_no_problem(inventory: Inventory) -> None:
    names = sound()
    names.inodes[10].open_for_writing = True
    assert placement(inventory, names, (77, 2)) == ["open"]


def test_chunk_on_another_chain_names_the_file(inventory: Inventory) -> None:
    (what,) = placement(inventory, sound(), (77, 0), chain=9)
    assert what.startswith("/dir/a: 1 chunks of content 77 are on chain 9")


def test_file_without_a_name_is_open_and_may_be_longer_than_was_reported(inventory: Inventory) -> None:
    names = sound()
    names.inodes[9] = regular(9, content=90, length=0, links=0)
    assert placement(inventory, names, (90, 3)) == []


def test_problem_counts_when_every_round_finds_it() -> None:
    first, second = Findings(), Findings()
    for findings, keys in ((first, "ab"), (second, "bc")):
        for key in keys:
            findings.add(Problem("names", (key,), key, ""))
    assert [*first.seen_again(second).problems] == [("b",)]


def test_problems_beyond_the_limit_are_counted() -> None:
    findings = Findings()
    for number in range(3 * KEPT_MAX + 5):
        findings.add(Problem("names", (number,), "", ""))
    assert (len(findings.problems), findings.omitted) == (3 * KEPT_MAX, 5)


def record(content: int, index: int, **fields: object) -> storage_pb2.ChunkRecord:
    chunk = storage_pb2.ChunkName(content=content, index=index)
    values = {"version": 1, "length": 1 << 20, "crc32c": 5, **fields}
    return storage_pb2.ChunkRecord(chunk=chunk, **values)


def replicas(*sides: list[storage_pb2.ChunkRecord]) -> list[Problem]:
    """Problems of the replicas on nodes 201, 202, ..."""

    async def stream(side: list[storage_pb2.ChunkRecord]) -> AsyncIterator[storage_pb2.ChunkRecord]:
        for each in side:
            yield each

    async def compare() -> list[Problem | None]:
        nodes = range(201, 201 + len(sides))
        streams = {node: stream(side) for node, side in zip(nodes, sides, strict=True)}
        return [check_chunk(4, name, held, nodes) async for name, held in merged(streams)]

    return with_remedies(problem for problem in asyncio.run(compare()) if problem is not None)


def test_equal_replicas_give_no_problem() -> None:
    both = [record(1, 0), record(1, 1), record(2, 0)]
    assert replicas(both, both) == []
    assert replicas([record(1, 0, removed=True)], []) == []


def test_replicas_that_differ_are_named_with_the_one_that_is_behind() -> None:
    for other in ([], [record(1, 0)], [record(1, 0, version=2)]):
        (problem,) = replicas([record(1, 0, version=3)], other)
        assert "replicas differ: node 201 version 0.3" in problem.what
        assert "luciola node disable 202, " in problem.remedy
    (problem,) = replicas([record(1, 0)], [record(1, 0, chain_version=1, crc32c=6)])
    assert "luciola node disable 201" in problem.remedy, "a later chain's state is newer"


def test_replicas_that_are_each_newer_in_part_are_not_overwritten() -> None:
    one, other = [record(1, 0, version=2), record(1, 1)], [record(1, 0), record(1, 1, version=2)]
    problems = replicas(one, other)
    assert len(problems) == 2
    assert all("copy the files that are named to another place" in problem.remedy for problem in problems)


def test_two_contents_under_one_version_are_for_the_scrub() -> None:
    for other in ([record(1, 0, length=3)], [record(1, 0, crc32c=6)]):
        (problem,) = replicas([record(1, 0)], other)
        assert "run with --scrub" in problem.remedy


def test_chunks_are_compared_by_name_wherever_they_are_in_the_listings() -> None:
    problems = replicas([record(1, 0), record(3, 0)], [record(1, 0), record(2, 5), record(3, 0)])
    assert [problem.chunk for problem in problems] == [(2, 5)]


def test_pending_update_is_named() -> None:
    (problem,) = replicas([record(1, 0, pending=True)], [record(1, 0)])
    assert "not finished on nodes [201]" in problem.what


def test_content_with_an_id_that_meta_refuses_is_reported_and_left_out_of_repair():
    good, foreign = (
        meta_pb2.QuarantinedContent(content=content, chains=[1], chunks=2) for content in (7, 1 << 62)
    )
    assert [can_quarantine(each) for each in (good, foreign)] == [True, False]
    remedies = [problem.remedy for problem in describe_orphans([good, foreign])]
    assert "--repair" in remedies[0]
    assert "left alone" in remedies[1]
