"""Packing, and `luciola dataset` on the command line, as a user meets it."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from luciola.errors import AlreadyExists, CorruptData, InvalidArgument
from luciola.plugins.dataset import MapDataset, open_records
from luciola.plugins.dataset.command import dataset
from luciola.plugins.dataset.packing import find_sources, pack_files
from luciola.plugins.dataset.verify import info, verify


@pytest.fixture
def photos(tmp_path):
    """A tree of files; their order is that of their names' bytes."""
    root = tmp_path / "photos"
    for name, data in (("b/2.jpg", b"two"), ("b/2.cls", b"1"), ("a/1.jpg", b"one" * 100), ("a/1.cls", b"0")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / ".hidden").mkdir()
    (root / ".hidden" / "3.jpg").write_bytes(b"")
    return root


def run(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(dataset, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def samples_in(path) -> list:
    made = MapDataset(open_records(path))
    try:
        return [made[number] for number in range(len(made))]
    finally:
        made.close()


def test_files_become_records_in_the_order_of_their_names(photos, tmp_path) -> None:
    shown = json.loads(run("pack", photos, "--to", tmp_path / "out", "--json"))
    assert (shown["records"], shown["bytes"]) == (4, 305)
    assert [bytes(each.tolist()) for each in samples_in(tmp_path / "out")] == [
        b"0",
        b"one" * 100,
        b"1",
        b"two",
    ]
    again = json.loads(run("pack", photos, "--to", tmp_path / "again", "--json"))
    assert (tmp_path / "again" / "PART_00000.ffr").read_bytes() == (
        tmp_path / "out" / "PART_00000.ffr"
    ).read_bytes()
    assert len(again["files"]) == 1


def test_parts_are_of_bounded_size_and_samples_stay_whole(photos, tmp_path) -> None:
    shown = json.loads(
        run("pack", photos, "--to", tmp_path / "out", "--format", "tar", "--part-size", "1", "--json")
    )
    assert shown["records"] == 2
    assert [name.rpartition("/")[2] for name in shown["files"]] == ["PART_00000.tar", "PART_00001.tar"]
    first, second = samples_in(tmp_path / "out")
    assert first["__key__"] == "a/1"
    assert bytes(second["jpg"].tolist()) == b"two"


def test_tokens_of_arrays_and_of_bytes(tmp_path) -> None:
    source = tmp_path / "texts"
    source.mkdir()
    np.save(source / "1.npy", np.array([5, 60000], np.int64))
    (source / "2.txt").write_bytes(b"AB")
    run("pack", source, "--to", tmp_path / "out", "--format", "tokens", "--dtype", "uint16")
    assert [each.tolist() for each in samples_in(tmp_path / "out")] == [[5, 60000], [65, 66]]
    with pytest.raises(ValueError, match="do not fit into uint8"):
        run("pack", source, "--to", tmp_path / "small", "--format", "tokens", "--dtype", "uint8")
    np.save(source / "3.npy", np.zeros((2, 2)))
    with pytest.raises(InvalidArgument, match="integers in one dimension, not float64 in 2"):
        run("pack", source, "--to", tmp_path / "wrong", "--format", "tokens")
    (source / "3.npy").write_bytes(b"no array")
    with pytest.raises(InvalidArgument, match="not an array"):
        run("pack", source, "--to", tmp_path / "wrong", "--format", "tokens")


def test_what_cannot_be_packed_is_refused(photos, tmp_path) -> None:
    run("pack", photos, "--to", tmp_path / "out")
    with pytest.raises(AlreadyExists, match="a data set already"):
        run("pack", photos, "--to", tmp_path / "out")
    (photos / "README").write_bytes(b"")
    with pytest.raises(InvalidArgument, match="have an ending"):
        run("pack", photos, "--to", tmp_path / "tar", "--format", "tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgument, match="no files there"):
        run("pack", tmp_path / "empty", "--to", tmp_path / "tar")
    assert "--dtype goes with" in run("pack", photos, "--to", "x", "--dtype", "uint8", code=2)
    assert "not a type" in run("pack", photos, "--to", "x", "--format", "tokens", "--dtype", "colour", code=2)
    assert "not a size" in run("pack", photos, "--to", "x", "--part-size", "many", code=2)
    with pytest.raises(InvalidArgument, match="at least one byte"):
        pack_files(find_sources(photos), tmp_path / "n", format="ffrecord", part_bytes=0)
    with pytest.raises(InvalidArgument, match="not a format"):
        pack_files(find_sources(photos), tmp_path / "n", format="zip")


def test_a_file_that_changes_meanwhile_is_refused(photos, tmp_path) -> None:
    sources = find_sources(photos)
    (photos / "a" / "1.cls").write_bytes(b"longer")
    with pytest.raises(InvalidArgument, match="is being written"):
        pack_files(sources, tmp_path / "out", format="ffrecord")
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_counts_bytes(photos, tmp_path) -> None:
    sources = find_sources([photos / "a", photos / "b" / "2.jpg"])
    shown: list[int] = []
    pack_files(sources, tmp_path / "out", format="ffrecord", advance=shown.append)
    assert sum(shown) == sources.bytes == 304
    assert "packing" in run("pack", photos, "--to", tmp_path / "bar", "--progress")


def test_info_and_verify_of_every_format(photos, tmp_path) -> None:
    for format_, checksums in (("ffrecord", True), ("tar", True), ("tokens", False)):
        target = tmp_path / format_
        run("pack", photos, "--to", target, "--format", format_)
        shown = json.loads(run("info", target, "--json"))
        assert shown["format"] == format_
        assert shown["records"] == (2 if format_ == "tar" else 4)
        assert shown["checksums"] is checksums
        assert f"records of {format_}" in run("info", target)
        assert json.loads(run("verify", target, "--json"))["damages"] == []
        assert f"read {shown['records']} records in 1 files" in run("verify", target)


def test_verify_names_every_damaged_record_and_file(photos, tmp_path) -> None:
    target = tmp_path / "out"
    run("pack", photos, "--to", target, "--part-size", "1")
    for number, position in ((1, -1), (3, -1), (2, 13)):
        path = target / f"PART_{number:05}.ffr"
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(data)
    damages = verify(open_records(target))
    assert [(damage.file[-9:], damage.record) for damage in damages] == [
        ("00001.ffr", 0), ("00002.ffr", None), ("00003.ffr", 0),
    ]  # fmt: skip
    with pytest.raises(CorruptData, match="3 damaged records or files"):
        run("verify", target)


def test_verify_finds_the_damaged_records_of_a_batch(tmp_path) -> None:
    source = tmp_path / "many"
    source.mkdir()
    for number in range(40):
        (source / f"{number:02}").write_bytes(bytes([number]) * 100)
    run("pack", source, "--to", tmp_path / "out")
    path = tmp_path / "out" / "PART_00000.ffr"
    data = bytearray(path.read_bytes())
    for number in (3, 39):
        data[12 + 12 * 40 + 100 * number + 50] ^= 1
    path.write_bytes(data)
    assert [damage.record for damage in verify(open_records(path))] == [3, 39]


def test_info_of_a_data_set_without_records(tmp_path) -> None:
    from luciola.plugins.dataset import FFRecordWriter

    FFRecordWriter(tmp_path / "a.ffr", 0).close()
    shown = info(open_records(tmp_path))
    assert (shown["records"], shown["bytes"], shown["record_bytes"]["most"]) == (0, 0, 0)
    assert "no records" in run("bench", tmp_path, code=2)


def test_bench_counts_what_it_reads(photos, tmp_path) -> None:
    run("pack", photos, "--to", tmp_path / "out")
    shown = json.loads(run("bench", tmp_path / "out", "--seconds", "0.1", "--batch", "2", "--json"))
    assert shown["samples"] >= 2
    assert shown["samples"] % 2 == 0
    assert shown["latency_s"]["p50"] > 0
    text = run("bench", tmp_path / "out", "--seconds", "0.1", "--workers", "1", "--no-check", "--in-order")
    assert "samples/s" in text
    assert "the consumer waited" in text


@pytest.mark.parametrize("name", ["pack", "info", "verify", "bench"])
def test_every_command_has_an_example(name: str) -> None:
    text = run(name, "--help")
    assert "Example" in text
    assert f"luciola dataset {name}" in text


def test_directories_become_labels(tmp_path) -> None:
    root = tmp_path / "photos"
    for name in ("dog/1.jpg", "cat/9.jpg", "cat/2.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    shown = json.loads(run("pack", root, "--to", tmp_path / "out", "--format", "tar", "--labels", "--json"))
    assert shown["labels"] == json.loads((tmp_path / "out" / "labels.json").read_text()) == ["cat", "dog"]
    found = {sample["__key__"]: bytes(sample["cls"].tolist()) for sample in samples_in(tmp_path / "out")}
    assert found == {"cat/2": b"0", "cat/9": b"0", "dog/1": b"1"}
    assert "--labels goes with" in run("pack", root, "--to", "x", "--labels", code=2)
    (root / "cat" / "2.cls").write_bytes(b"7")
    with pytest.raises(InvalidArgument, match="have a part `cls` already"):
        run("pack", root, "--to", tmp_path / "twice", "--format", "tar", "--labels")
    (root / "3.jpg").write_bytes(b"")
    with pytest.raises(InvalidArgument, match="no directory names the class"):
        run("pack", root, "--to", tmp_path / "none", "--format", "tar", "--labels")
