"""The checks of fsck find what they are for, and nothing in a sound tree."""

from luciola.cli.consistency import Names, check_names, check_placement, check_replicas, index_chunks
from luciola.wire.pb import meta_pb2, storage_pb2


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


def record(content: int, index: int, **fields: object) -> storage_pb2.ChunkRecord:
    chunk = storage_pb2.ChunkName(content=content, index=index)
    values = {"version": 1, "length": 1 << 20, "crc32c": 5, **fields}
    return storage_pb2.ChunkRecord(chunk=chunk, **values)


def found(names: Names) -> str:
    return " | ".join(problem.what for problem in check_names(names))


def test_sound_names_give_no_problem() -> None:
    assert found(sound()) == ""


def test_entry_without_inode() -> None:
    names = sound()
    names.entries.append(entry(1, "gone", regular(99)))
    assert "'gone' in directory 1: inode 99 does not exist" in found(names)


def test_inode_without_entry() -> None:
    names = sound()
    names.inodes[11] = regular(11)
    assert found(names) == "inode 11: no entry leads to it"


def test_removed_but_open_file_is_no_problem() -> None:
    names = sound()
    names.inodes[11] = regular(11)
    names.removed = [meta_pb2.RemovedContent(content=5, inode=11)]
    assert found(names) == ""


def test_wrong_link_count_of_file_and_directory() -> None:
    names = sound()
    names.inodes[10].link_count = 3
    names.inodes[2].link_count = 2
    assert "inode 10: link count 3, but 2 found" in found(names)
    assert "inode 2: link count 2, but 3 found" in found(names)


def test_wrong_type_wrong_parent_and_missing_directory() -> None:
    names = sound()
    names.entries[2].entry.type = meta_pb2.SYMLINK
    names.inodes[3].parent = 1
    names.entries.append(entry(50, "lost", names.inodes[10]))
    assert "says type 3, its inode 1" in found(names)
    assert "its inode names 1 as parent" in found(names)
    assert "'lost' in directory 50: the directory does not exist" in found(names)


def test_missing_root() -> None:
    names = sound()
    del names.inodes[1]
    assert "the root directory has no inode" in found(names)


def placement(names: Names, *records: storage_pb2.ChunkRecord, chain: int = 4) -> list[str]:
    chains = {4: index_chunks([]), chain: index_chunks(records)}
    return [problem.what for problem in check_placement(names, chains, lambda _layout, _index: 4)]


def test_chunks_of_files_and_of_removed_files_are_fine() -> None:
    names = sound()
    names.removed = [meta_pb2.RemovedContent(content=5, inode=11, layout=names.inodes[10].layout)]
    assert placement(names, record(77, 0), record(77, 1), record(5, 9)) == []


def test_chunk_of_no_file_past_the_end_or_on_another_chain() -> None:
    names = sound()
    assert placement(names, record(6, 0)) == ["chunk 0 of content 6 on chain 4: belongs to no file"]
    assert "past the end" in placement(names, record(77, 2))[0]
    assert placement(names, record(77, 0), chain=9) == [
        "chunk 0 of content 77 on chain 9: should lie on chain 4"
    ]


def test_file_without_a_name_is_open_and_may_be_longer_than_was_told() -> None:
    names = sound()
    names.inodes[9] = regular(9, content=90, length=0, links=0)
    assert placement(names, record(90, 3)) == []


def test_tombstones_belong_to_nobody() -> None:
    assert placement(sound(), record(6, 0, removed=True)) == []


def replicas(*sides: list[storage_pb2.ChunkRecord]) -> list[str]:
    held = {201 + index: index_chunks(side) for index, side in enumerate(sides)}
    return [problem.what for problem in check_replicas(4, held)]


def test_equal_replicas_give_no_problem() -> None:
    assert replicas([record(1, 0)], [record(1, 0)]) == []
    assert replicas([record(1, 0, removed=True)], []) == []


def test_replicas_that_differ_are_named() -> None:
    for other in ([], [record(1, 0, version=2)], [record(1, 0, length=3)], [record(1, 0, crc32c=6)]):
        (what,) = replicas([record(1, 0)], other)
        assert "replicas differ: node 201 version 1" in what


def test_pending_update_is_named() -> None:
    (what,) = replicas([record(1, 0, pending=True)], [record(1, 0)])
    assert "not finished on nodes [201]" in what
