"""Files whose indexes are made by reading them: one process of several does it. JSON lines."""

import json
import os
import threading
import time
import tracemalloc

import numpy as np
import pytest
from click.testing import CliRunner

from luciola.client import LocalFileSystem
from luciola.errors import CorruptData
from luciola.plugins.dataset import Loader, MapDataset, TarWriter, open_records, tar
from luciola.plugins.dataset.command import dataset as command


class CountingFileSystem(LocalFileSystem):
    """Counts the bytes that are scanned, and waits in the middle of a scan for `resume`."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.resume = threading.Event()
        self.scans = 0

    def progress(self, _count: int) -> None:
        self.scans += 1
        self.begun.set()
        assert self.resume.wait(100)


def write_tar(path) -> None:
    with TarWriter(path) as writer:
        for number in range(5):
            writer.write({"__key__": f"{number}", "txt": b"%d" % number})


def test_one_makes_the_index_and_the_others_wait_for_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tar, "POLL_S", 0.01)
    write_tar(tmp_path / "a.tar")
    fs = CountingFileSystem()
    lengths: list[int] = []

    def open_it() -> None:
        lengths.append(len(open_records(tmp_path / "a.tar", file_system=fs, progress=fs.progress)))

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert fs.begun.wait(100)
    fs.resume.set()
    for thread in threads:
        thread.join()
    assert (lengths, fs.scans) == ([5] * 4, 1)
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "a.tar.luidx"]


def test_turn_of_a_dead_process_expires(tmp_path) -> None:
    write_tar(tmp_path / "a.tar")
    turn = tmp_path / ".a.tar.luidx.turn"
    turn.touch()
    os.utime(turn, (time.time() - 2 * tar.TURN_S,) * 2)
    assert len(open_records(tmp_path / "a.tar")) == 5
    assert not turn.exists()


def test_indexes_may_be_made_before(tmp_path) -> None:
    write_tar(tmp_path / "a.tar")
    result = CliRunner().invoke(command, ["index", str(tmp_path)])
    assert result.output == "5 records in 1 files have an index\n"
    assert (tmp_path / "a.tar.luidx").exists()


# ---- JSON lines


def test_lines_are_records_of_any_json(tmp_path) -> None:
    samples = [{"text": "größer", "label": 3}, {"text": "x" * 100, "label": 4}, {"text": "", "label": 5}]
    lines = [json.dumps(each, ensure_ascii=False) for each in samples]
    (tmp_path / "a.jsonl").write_text(f"{lines[0]}\n\n  \n{lines[1]}\r\n{lines[2]}")
    (tmp_path / "b.jsonl").write_text("")
    dataset = MapDataset(open_records(tmp_path))
    assert [dataset[number] for number in (2, 0, 1)] == [samples[2], samples[0], samples[1]]
    batch = next(iter(Loader(dataset, global_batch_size=3, shuffle=False)))
    assert batch["text"] == ["größer", "x" * 100, ""]
    assert batch["label"].tolist() == [3, 4, 5]
    assert len(open_records(tmp_path)) == 3, "by the index"
    dataset.close()


def test_pieces_of_a_read_may_end_within_a_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tar, "READ_BYTES", 7)
    (tmp_path / "a.jsonl").write_text("".join(f'{{"number": {number}}}\n' for number in range(50)))
    dataset = MapDataset(open_records(tmp_path / "a.jsonl"))
    assert [sample["number"] for sample in dataset.__getitems__(range(50))] == list(range(50))
    dataset.close()


def test_a_line_that_is_no_json_names_file_and_record_and_may_be_skipped(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\nnonsense\n{"a": 3}\n')
    dataset = MapDataset(open_records(tmp_path / "a.jsonl"))
    with pytest.raises(CorruptData, match="record 1 is not JSON") as caught:
        dataset[1]
    assert caught.value.filename == str(tmp_path / "a.jsonl")
    skipping = MapDataset(open_records(tmp_path / "a.jsonl"), on_error="skip")
    assert [sample["a"] for sample in skipping.__getitems__([0, 1, 2])] == [1, 3, 3]
    for each in (dataset, skipping):
        each.close()


@pytest.mark.timeout(60)
def test_line_over_many_reads_costs_its_length_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tar, "READ_BYTES", 256)  # 65,536 reads; joining at each would copy half a terabyte
    (tmp_path / "a.jsonl").write_bytes(b'"' + b"x" * (16 << 20) + b'"\n1\n')
    records = open_records(tmp_path / "a.jsonl")
    assert records.locate(np.arange(2)).lengths.tolist() == [(16 << 20) + 2, 1]


def test_names_of_members_are_kept_for_tars_alone(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text("1\n" * 10_000)
    records = open_records(tmp_path / "a.jsonl")
    tracemalloc.start()
    records.locate(np.arange(10_000))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 10_000 * 24, "20 bytes a line"
