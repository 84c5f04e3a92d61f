"""The places of records in one file that all processes of a machine map."""

import os
import threading

import numpy as np
import pytest

from child_process import Child
from luciola.errors import InvalidArgument
from luciola.plugins.dataset import (
    FFRecordWriter,
    Loader,
    MapDataset,
    TarWriter,
    TokenWriter,
    ffrecord,
    open_records,
)
from luciola.plugins.dataset.ffrecord import HEAD, FFRecords


def write_ffrecord(directory) -> None:
    for name, count in (("a", 30), ("b", 0), ("c", 12)):
        with FFRecordWriter(directory / f"{name}.ffr", count) as writer:
            for number in range(count):
                writer.write(bytes([number]) * (number % 5 + 1))


def write_tokens(directory) -> None:
    for name, count in (("a", 30), ("c", 12)):
        with TokenWriter(directory / name) as writer:
            for number in range(count):
                writer.write([number] * (number % 5 + 1))


def write_tar(directory) -> None:
    for name, count in (("a", 30), ("c", 12)):
        with TarWriter(directory / f"{name}.tar") as writer:
            for number in range(count):
                writer.write({"__key__": str(number), "txt": b"%d" % number, "cls": b"1"})


def write_jsonl(directory) -> None:
    for name, count in (("a", 30), ("b", 0), ("c", 12)):
        (directory / f"{name}.jsonl").write_text("".join(f"[{number}]\n" for number in range(count)))


WRITERS = [write_ffrecord, write_tokens, write_tar, write_jsonl]


@pytest.fixture
def shared(tmp_path):
    return tmp_path / "shared"


def all_of(records) -> list[str]:
    dataset = MapDataset(records)
    found = [str(sample) for sample in dataset.__getitems__(np.arange(len(dataset))[::-1])]
    dataset.close()
    return found


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_reads_the_same_by_a_shared_index(tmp_path, shared, write) -> None:
    write(tmp_path)
    own = open_records(tmp_path)
    by_shared = open_records(tmp_path, index_directory=shared)
    assert all_of(by_shared) == all_of(own)
    assert by_shared.lengths() == own.lengths()
    assert not by_shared._indexes, "nothing of its own"
    for one, other in zip(by_shared.locate(np.arange(42)), own.locate(np.arange(42)), strict=True):
        assert (one is None and other is None) or (one == other).all()
    assert len([name for name in os.listdir(shared) if name.endswith(".lushidx")]) == 1


def _first(records) -> int:
    return int(records.locate(np.array([41])).lengths[0])


@pytest.mark.usefixtures("warm_spawn")
def test_one_process_makes_it_and_others_map_it(tmp_path, shared, monkeypatch) -> None:
    write_ffrecord(tmp_path)
    reads: list[str] = []
    begun, resume = threading.Event(), threading.Event()
    original = FFRecords.read_index

    def counted(self, file):
        if file.count:
            reads.append(file.path)
            begun.set()
            assert resume.wait(100)
        return original(self, file)

    monkeypatch.setattr(FFRecords, "read_index", counted)
    monkeypatch.setattr(ffrecord, "FIRST_BYTES", HEAD.size)  # no places with the first bytes
    opened = [open_records(tmp_path, index_directory=shared) for _ in range(3)]
    threads = [threading.Thread(target=records.locate, args=(np.array([1]),)) for records in opened]
    for thread in threads:
        thread.start()
    assert begun.wait(100)
    resume.set()
    for thread in threads:
        thread.join()
    assert len(reads) == 2, "each file with records once"
    with Child(_first, opened[0], method="spawn") as child:
        assert child.result() == 11 % 5 + 1


def test_mapped_pages_are_one_file(tmp_path, shared) -> None:
    write_ffrecord(tmp_path)
    records = open_records(tmp_path, index_directory=shared)
    index = records.index(0)
    (name,) = [name for name in os.listdir(shared) if name.endswith(".lushidx")]
    with open("/proc/self/maps") as maps:
        assert any(name in line and line.split()[1].startswith("r--s") for line in maps)
    with pytest.raises(ValueError, match="read-only"):
        index.offsets[0] = 1


def test_another_state_of_the_data_has_another_index(tmp_path, shared) -> None:
    write_ffrecord(tmp_path)
    assert len(all_of(open_records(tmp_path, index_directory=shared))) == 42
    with FFRecordWriter(tmp_path / "a.ffr", 30) as writer:
        for number in range(30):
            writer.write(bytes(29 - number))
    records = open_records(tmp_path, index_directory=shared)
    assert records.locate(np.arange(3)).lengths.tolist() == [29, 28, 27]


@pytest.mark.usefixtures("warm_spawn")
def test_workers_use_it(tmp_path, shared) -> None:
    write_ffrecord(tmp_path)
    loader = Loader(
        MapDataset(open_records(tmp_path, index_directory=shared)),
        global_batch_size=6,
        num_workers=2,
        multiprocessing_context="spawn",
        collate_fn=len,
    )
    assert list(loader) == [6] * 7


def test_directory_that_others_may_write_is_refused(tmp_path, shared) -> None:
    write_ffrecord(tmp_path)
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(InvalidArgument, match="writable by no other"):
        open_records(tmp_path, index_directory=shared).locate(np.array([1]))


def test_file_that_is_no_index_is_refused(tmp_path, shared) -> None:
    write_ffrecord(tmp_path)
    open_records(tmp_path, index_directory=shared).locate(np.array([1]))
    (name,) = [name for name in os.listdir(shared) if name.endswith(".lushidx")]
    whole = (shared / name).read_bytes()
    cut = [whole[:length] for length in (0, 10, 55, len(whole) - 4)]
    for wrong in (*cut, b"x" + whole[1:], whole[:8] + b"x" + whole[9:]):
        (shared / name).write_bytes(wrong)
        with pytest.raises(InvalidArgument, match="remove it"):
            open_records(tmp_path, index_directory=shared).locate(np.array([1]))


def test_file_that_another_user_may_have_made_is_refused(tmp_path, shared) -> None:
    write_ffrecord(tmp_path)
    open_records(tmp_path, index_directory=shared).locate(np.array([1]))
    (path,) = shared.glob("*.lushidx")
    path.chmod(0o666)
    with pytest.raises(InvalidArgument, match="remove it"):
        open_records(tmp_path, index_directory=shared).locate(np.array([1]))
    path.chmod(0o600)
    elsewhere = path.rename(tmp_path / "elsewhere")
    path.symlink_to(elsewhere)
    with pytest.raises(InvalidArgument, match="remove it"):
        open_records(tmp_path, index_directory=shared).locate(np.array([1]))


def test_what_a_killed_maker_left_is_taken_away(tmp_path, shared) -> None:
    write_ffrecord(tmp_path)
    open_records(tmp_path, index_directory=shared).locate(np.array([1]))
    (path,) = shared.glob("*.lushidx")
    path.rename(f"{path}.part")
    open_records(tmp_path, index_directory=shared).locate(np.array([1]))
    assert sorted(each.name for each in shared.iterdir()) == [path.name, f"{path.name}.lock"]


def test_an_error_leaves_nothing(tmp_path, shared, monkeypatch) -> None:
    write_ffrecord(tmp_path)
    monkeypatch.setattr(ffrecord, "FIRST_BYTES", HEAD.size)
    records = open_records(tmp_path, index_directory=shared)
    (tmp_path / "c.ffr").unlink()
    with pytest.raises(FileNotFoundError):
        records.locate(np.array([1]))
    assert [name for name in os.listdir(shared) if not name.endswith(".lock")] == []
