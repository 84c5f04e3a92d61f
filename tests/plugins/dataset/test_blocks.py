"""Parquet and Arrow files: rows by number, whose blocks are read."""

import itertools
import multiprocessing
import pickle
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow", reason="needs the extra `arrow`")

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from child_process import Child
from luciola.client import LocalFileSystem
from luciola.errors import CorruptData, InvalidArgument
from luciola.plugins.dataset import (
    FFRecordWriter,
    Loader,
    MapDataset,
    Order,
    arrow,
    open_records,
    sample_reader,
)
from luciola.plugins.dataset.verify import info, verify

KINDS = ("parquet", "arrow", "stream")


def write(path, table, rows_per_block: int, kind: str) -> None:
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=rows_per_block)
        return
    new = {"arrow": pa.ipc.new_file, "stream": pa.ipc.new_stream}[kind]
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_block)


def numbered(start: int, stop: int):
    """Column `n` has the numbers; the others say them in other ways."""
    numbers = range(start, stop)
    return pa.table(
        {
            "n": pa.array(numbers, pa.int64()),
            "tokens": pa.array([[number] * (number % 4) for number in numbers], pa.list_(pa.int32())),
            "text": pa.array([f"text {number}" for number in numbers], pa.string()),
        }
    )


def write_numbers(
    directory, kind: str, *, count: int = 100, files: int = 3, rows_per_block: int = 10
) -> None:
    ends = [count * number // files for number in range(files + 1)]
    suffix = "parquet" if kind == "parquet" else "arrow"
    for number, (start, stop) in enumerate(itertools.pairwise(ends)):
        write(directory / f"{number:03}.{suffix}", numbered(start, stop), rows_per_block, kind)


@pytest.fixture(params=KINDS)
def dataset(request, tmp_path):
    write_numbers(tmp_path, request.param)
    found = MapDataset(open_records(tmp_path))
    yield found
    found.close()


def joined(batches) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


def n(samples) -> list[int]:
    return [sample["n"] for sample in samples]


def test_rows_are_samples(dataset) -> None:
    assert len(dataset) == 100
    sample = dataset[7]
    assert (sample["n"], sample["text"]) == (7, "text 7")
    assert sample["tokens"].tolist() == [7, 7, 7]
    assert sample["tokens"].dtype == torch.int32
    order = np.random.default_rng(1).permutation(100)
    assert n(dataset.__getitems__(order)) == order.tolist()
    assert n(dataset.__getitems__([5, 5, 99, 5])) == [5, 5, 99, 5]
    with pytest.raises(IndexError):
        dataset[100]


def test_order_is_that_of_other_formats(dataset, tmp_path) -> None:
    with FFRecordWriter(tmp_path / "a.ffr", 100) as writer:
        for number in range(100):
            writer.write(number.to_bytes(8, "little"))
    other = MapDataset(open_records(tmp_path / "a.ffr"))
    loaders = [Loader(each, global_batch_size=8, seed=3, collate_fn=list) for each in (dataset, other)]
    rows = [n(batch) for batch in loaders[0]]
    assert rows == [[int(each.view(torch.int64)) for each in batch] for batch in loaders[1]]
    other.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_epoch_stops_and_resumes_exactly(dataset, workers: int) -> None:
    def loader():
        return Loader(dataset, global_batch_size=10, seed=1, collate_fn=n, num_workers=workers)

    whole = list(loader())
    assert sorted(joined(whole)) == list(range(100))
    first = loader()
    begun = [batch for _, batch in zip(range(4), first, strict=False)]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert begun + list(second) == whole


def test_subset_split_filter_concat(dataset) -> None:
    train, test = dataset.split([0.8, 0.2], seed=1)
    assert sorted(n(train.__getitems__(range(80))) + n(test.__getitems__(range(20)))) == list(range(100))
    assert n(dataset.subset(range(10, 50, 20)).__getitems__([0, 1])) == [10, 30]
    even = dataset.filter(lambda sample: sample["n"] % 2 == 0)
    assert n(even.__getitems__(range(50))) == list(range(0, 100, 2))
    assert n(even.concat(dataset).__getitems__([49, 50, 149])) == [98, 0, 99]


def test_rows_and_plain_records_may_be_joined(dataset, tmp_path) -> None:
    with FFRecordWriter(tmp_path / "a.ffr", 3) as writer:
        for each in (b"one", b"two", b"three"):
            writer.write(each)
    joined = MapDataset([open_records(tmp_path / "a.ffr"), *dataset.parts, open_records(tmp_path / "a.ffr")])
    samples = joined.__getitems__([104, 3, 0, 102, 1])
    assert [bytes(samples[place].tolist()) for place in (0, 2, 4)] == [b"two", b"one", b"two"]
    assert [samples[1]["n"], samples[3]["n"]] == [0, 99]
    joined.close()


def test_blocks_are_read_once_while_they_are_cached(dataset) -> None:
    """Also by batches that are in flight together: the first of them reads the block."""
    loader = Loader(dataset, global_batch_size=3, shuffle=False, collate_fn=n, read_ahead=4)
    blocks = len(dataset.parts[0].block_sizes())
    for _ in range(3):
        assert joined(loader) == list(range(99))
    assert dataset.parts[0].cache.decoded == blocks
    read = dataset.metrics.snapshot()
    assert read.bytes == sum(dataset.parts[0].block_bytes(each) for each in range(blocks))
    assert read.samples == 3 * 99, "of rows, not of blocks"
    assert read.reads <= blocks, "a batch of cached blocks is no read"


def test_a_forked_process_does_not_see_what_its_parent_reads_later(tmp_path) -> None:
    """Blocks of an uncompressed Arrow file are views of memory that both processes have."""
    write_numbers(tmp_path, "arrow")
    dataset = MapDataset(open_records(tmp_path, cache_bytes=0))
    assert n(dataset.__getitems__([0])) == [0]
    resume = multiprocessing.get_context("fork").Event()
    with Child(lambda: (resume.wait(100), n(dataset.__getitems__([0, 1, 2])))) as child:
        for start in range(10, 100, 10):
            assert n(dataset.__getitems__([start])) == [start]
        resume.set()
        assert child.result() == (True, [0, 1, 2])
    dataset.close()


@pytest.mark.parametrize("kind", ["arrow", "stream"])
def test_process_that_decodes_does_not_walk_the_batches_of_a_file(tmp_path, monkeypatch, kind) -> None:
    parts = [pa.array(each).dictionary_encode() for each in (["a", "b"], ["c", "a"], ["d", "d"])]
    table = pa.table({"x": pa.chunked_array(parts).unify_dictionaries()})
    write(tmp_path / "x.arrow", table, 2, kind)
    records = pickle.loads(pickle.dumps(open_records(tmp_path)))
    monkeypatch.setattr(arrow, "_read", None)
    dataset = MapDataset(records)
    assert [each["x"] for each in dataset.__getitems__([5, 2, 0, 3, 1])] == ["d", "c", "a", "a", "b"]
    dataset.close()


def test_columns_that_are_left_out_count_where_their_bytes_are_kept(tmp_path) -> None:
    table = pa.table({"n": range(10), "large": [bytes(100_000)] * 10})
    write(tmp_path / "a.arrow", table, 1, "arrow")
    records = open_records(tmp_path, columns=["n"], cache_bytes=350_000)
    dataset = MapDataset(records)
    assert n(dataset.__getitems__(list(range(10)))) == list(range(10))
    assert len(records.cache._cached) == 3
    dataset.close()


def test_block_that_is_not_kept_is_read_again(tmp_path) -> None:
    write_numbers(tmp_path, "parquet")
    records = open_records(tmp_path, cache_bytes=0)
    dataset = MapDataset(records)
    order = np.random.default_rng(1).permutation(100)
    assert n(dataset.__getitems__(order)) == order.tolist(), "blocks of one batch one after the other"
    assert len(records.cache._cached) == 1, "the last one is kept in any case"
    begun = [dataset.start([0, 99]), dataset.start([1, 98]), dataset.start([50])]
    dataset.cancel(begun[0])
    assert n(dataset.finish(begun[2])) == [50]
    assert n(dataset.finish(begun[1])) == [1, 98]
    dataset.close()


def test_blocks_beyond_a_wave_are_read_one_after_the_other(tmp_path, monkeypatch) -> None:
    write_numbers(tmp_path, "parquet")
    monkeypatch.setattr(sample_reader, "WAVE_BYTES", 1)
    dataset = MapDataset(open_records(tmp_path))
    begun = dataset.start(range(100))
    assert len(begun.reading.blocks) == 1
    assert n(dataset.finish(begun)) == list(range(100))
    dataset.close()


def test_descriptors_are_bounded(tmp_path) -> None:
    write_numbers(tmp_path, "parquet", files=50)
    dataset = MapDataset(open_records(tmp_path))
    dataset.reader._open_max = 5
    for number in np.random.default_rng(1).permutation(100):
        assert dataset[int(number)]["n"] == number
        assert len(dataset.reader._open) <= 5
    dataset.close()


def test_records_travel_to_workers_without_what_was_decoded(tmp_path) -> None:
    write_numbers(tmp_path, "parquet", count=10_000, rows_per_block=1000)
    records = open_records(tmp_path)
    dataset = MapDataset(records)
    dataset.__getitems__(range(10_000))
    assert len(pickle.dumps(records)) < 10_000
    copy = MapDataset(pickle.loads(pickle.dumps(records)))
    assert copy[77]["n"] == 77
    for each in (dataset, copy):
        each.close()


# ---- the shuffle by blocks


def block_loader(dataset, **options):
    return Loader(dataset, global_batch_size=7, shuffle="blocks", tail="short", collate_fn=n, **options)


def test_every_sample_comes_once_and_every_block_is_read_once(tmp_path) -> None:
    write_numbers(tmp_path, "parquet", count=1000, rows_per_block=20)
    records = open_records(tmp_path, cache_bytes=4 * 20 * 50)  # a little more than three blocks
    dataset = MapDataset(records)
    loader = block_loader(dataset, seed=5, mixed_blocks=3)
    epochs = [joined(loader) for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(1000))] * 2
    assert epochs[0] != epochs[1]
    blocks = len(records.block_sizes())
    assert records.cache.decoded < 2 * blocks * 1.5, "borders of stretches at most are read twice"
    near = np.abs(np.diff(epochs[0]))
    assert np.median(near) > 20, "neighbours are of several blocks"
    dataset.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_shuffle_by_blocks_resumes_on_other_ranks(dataset, workers: int) -> None:
    whole = list(block_loader(dataset, seed=5))
    first = block_loader(dataset, seed=5)
    begun = [batch for _, batch in zip(range(6), first, strict=False)]
    parts = [block_loader(dataset, seed=5, rank=rank, ranks=2, num_workers=workers) for rank in range(2)]
    for part in parts:
        part.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match="differ by one"):
        rest = [list(part) for part in parts]
    assert begun + [one + other for one, other in itertools.zip_longest(*rest, fillvalue=[])] == whole
    with pytest.raises(ValueError, match="blocks"):
        block_loader(dataset, seed=5, mixed_blocks=4).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="shuffle"):
        Loader(dataset, global_batch_size=7, seed=5).load_state_dict(first.state_dict())


def test_shuffle_by_blocks_of_parts_mixtures_and_plain_records(dataset, tmp_path) -> None:
    with FFRecordWriter(tmp_path / "a.ffr", 3000) as writer:
        for number in range(3000):
            writer.write(number.to_bytes(8, "little"))
    part = dataset.subset(range(5, 95, 2))
    assert sorted(joined(block_loader(part))) == list(range(5, 95, 2))
    even = dataset.filter(lambda sample: sample["n"] % 2 == 0)
    assert sorted(joined(block_loader(even))) == list(range(0, 100, 2))
    plain = MapDataset(open_records(tmp_path / "a.ffr"))
    assert [each.tolist() for each in plain.block_sizes()] == [[1024, 1024, 952]]
    both = part.concat(plain)
    mixture = Loader(
        both, global_batch_size=10, shuffle="blocks", weights=[1, 1], collate_fn=list, samples=3045
    )
    kinds = [isinstance(sample, dict) for batch in mixture for sample in batch]
    assert 0.4 < sum(kinds) / len(kinds) < 0.6
    with pytest.raises(InvalidArgument, match=r"take parts as ranges"):
        block_loader(dataset.split([0.5, 0.5])[0])
    plain.close()


def test_order_by_blocks_is_golden() -> None:
    """A change of the function would resume a training in another order: VERSION would change."""
    order = Order([50], seed=3, shuffle="blocks", blocks=[[10, 0, 25, 15]], mixed_blocks=2)
    assert sorted(order.indices(4, np.arange(50)).tolist()) == list(range(50))
    assert order.indices(4, np.arange(0, 50, 7)).tolist() == GOLDEN
    assert [int(order.indices(4, each)) for each in range(0, 50, 7)] == GOLDEN, "at random places too"


GOLDEN = [8, 48, 35, 44, 22, 14, 21, 26]


# ---- columns and types


@pytest.mark.parametrize("kind", KINDS)
def test_columns_whose_names_have_points_are_not_paths(tmp_path, kind) -> None:
    table = pa.table({"a.b": [1, 2], "a": [{"b": 3}, {"b": 4}], "a.b.c": [[5], [6, 7]]})
    write(tmp_path / ("x.parquet" if kind == "parquet" else "x.arrow"), table, 2, kind)
    for columns, wanted in (
        (["a.b"], {"a.b": 2}),
        (["a"], {"a": {"b": 4}}),
        (["a.b", "a"], {"a.b": 2, "a": {"b": 4}}),
        (["a", "a.b"], {"a": {"b": 4}, "a.b": 2}),
    ):
        dataset = MapDataset(open_records(tmp_path, columns=columns))
        assert dataset[1] == wanted
        assert list(dataset[1]) == columns, "in the order that was asked for"
        dataset.close()
    dataset = MapDataset(open_records(tmp_path, columns=["a.b.c"]))
    assert dataset[1]["a.b.c"].tolist() == [6, 7]
    dataset.close()


@pytest.mark.parametrize("kind", KINDS)
def test_no_columns_are_empty_samples_and_nothing_is_read(tmp_path, kind) -> None:
    write_numbers(tmp_path, kind)
    dataset = MapDataset(open_records(tmp_path, columns=[]))
    assert len(dataset) == 100
    assert dataset.__getitems__([0, 99]) == [{}, {}]
    assert dataset.metrics.snapshot().bytes == 0
    dataset.close()


def test_only_wanted_columns_of_parquet_are_read(tmp_path) -> None:
    noise = np.random.default_rng(1)
    table = pa.table({name: [noise.bytes(1000) for _ in range(200)] for name in "abc"})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=100)
    dataset = MapDataset(open_records(tmp_path, columns=["a", "c"]))
    assert dataset[3] == {"a": table["a"][3].as_py(), "c": table["c"][3].as_py()}
    assert 200_000 < dataset.metrics.snapshot().bytes < 250_000
    dataset.close()


def test_columns_that_are_not_there_or_are_there_twice_are_refused(tmp_path) -> None:
    write_numbers(tmp_path, "parquet")
    with pytest.raises(InvalidArgument, match=r"no column 'm': columns are \['n', 'tokens', 'text'\]"):
        open_records(tmp_path, columns=["m"])
    with pytest.raises(InvalidArgument, match="list of names"):
        open_records(tmp_path, columns="n")
    with pytest.raises(InvalidArgument, match="one name"):
        open_records(tmp_path, columns=["n", "n"])
    twice = pa.table([[1], [2], [3]], names=["a", "a", "b"])
    write(tmp_path / "twice.arrow", twice, 1, "arrow")
    with pytest.raises(InvalidArgument, match="several columns have one name: \\['a'\\]"):
        open_records(tmp_path / "twice.arrow")
    assert MapDataset(open_records(tmp_path / "twice.arrow", columns=["b"]))[0] == {"b": 3}


def test_files_whose_columns_differ_are_refused(tmp_path) -> None:
    pq.write_table(pa.table({"a": [1], "b": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "2.parquet")
    with pytest.raises(InvalidArgument, match=r"the columns differ .*2\.parquet"):
        open_records(tmp_path)
    assert len(open_records(tmp_path, columns=["a"])) == 2


NESTED = [
    {
        "id": 1,
        "who": {"name": "a", "tags": ["x", None]},
        "by": [("k", 1)],
        "deep": [[1, None], []],
        "kind": "u",
    },
    {"id": None, "who": None, "by": [], "deep": None, "kind": None},
    {"id": 3, "who": {"name": None, "tags": None}, "by": None, "deep": [None], "kind": "v"},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows_per_block", [1, 3])
def test_nested_types_have_the_values_of_the_file(tmp_path, kind, rows_per_block) -> None:
    types = pa.schema(
        {
            "id": pa.int64(),
            "who": pa.struct({"name": pa.string(), "tags": pa.list_(pa.string())}),
            "by": pa.map_(pa.string(), pa.int64()),
            "deep": pa.list_(pa.list_(pa.int64())),
            "kind": pa.dictionary(pa.int32(), pa.string()),
        }
    )
    table = pa.Table.from_pylist(NESTED, schema=types)
    write(tmp_path / ("x.parquet" if kind == "parquet" else "x.arrow"), table, rows_per_block, kind)
    dataset = MapDataset(open_records(tmp_path))
    assert list(dataset.__getitems__([2, 0, 1])) == [NESTED[2], NESTED[0], NESTED[1]]
    dataset.close()
    chosen = MapDataset(open_records(tmp_path, columns=["deep", "who"]))
    assert chosen[0] == {"deep": NESTED[0]["deep"], "who": NESTED[0]["who"]}
    chosen.close()


@pytest.mark.parametrize("kind", KINDS)
def test_nulls_within_lists_are_never_numbers(tmp_path, kind) -> None:
    """A tensor has no null: the row is a bad record, unless values of Python are asked for."""
    lists = [[1, 2], [3, None], None, [], [4]]
    table = pa.table({"n": range(5), "x": pa.array(lists, pa.list_(pa.int32()))})
    path = tmp_path / ("x.parquet" if kind == "parquet" else "x.arrow")
    write(path, table, 5, kind)
    dataset = MapDataset(open_records(tmp_path))
    with pytest.raises(
        InvalidArgument, match=r"row 1 of .* 0 .*a null within a list of column 'x'"
    ) as caught:
        dataset.__getitems__([0, 1])
    assert caught.value.filename == str(path)
    given = dataset.__getitems__([0, 2, 3, 4])
    assert [None if each["x"] is None else each["x"].tolist() for each in given] == [[1, 2], None, [], [4]]
    skipping = MapDataset(dataset.parts, on_error="skip")
    assert n(skipping.__getitems__([0, 1])) == [0, 2]
    assert [bad.number for bad in skipping.bad_records()] == [1]
    python = MapDataset(open_records(tmp_path, tensors=False))
    assert [sample["x"] for sample in python.__getitems__(range(5))] == lists
    for each in (dataset, skipping, python):
        each.close()


def test_lists_of_numbers_of_every_kind_are_tensors(tmp_path) -> None:
    table = pa.table(
        {
            "bool": pa.array([[True, False], [True]]),
            "half": pa.array([[np.float16(1.5)], []], pa.list_(pa.float16())),
            "fixed": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
            "large": pa.array([[1], [2, 3]], pa.large_list(pa.uint16())),
        }
    )
    write(tmp_path / "x.arrow", table, 2, "arrow")
    dataset = MapDataset(open_records(tmp_path))
    sample = dataset.__getitems__([1, 0])[0]
    assert {name: (value.dtype, value.tolist()) for name, value in sample.items()} == {
        "bool": (torch.bool, [True]),
        "half": (torch.float16, []),
        "fixed": (torch.float32, [3.0, 4.0]),
        "large": (torch.uint16, [2, 3]),
    }
    sample["fixed"][0] = 7  # memory of its own
    assert dataset[1]["fixed"].tolist() == [3, 4]
    dataset.close()


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_feather(tmp_path, compression) -> None:
    pyarrow.feather.write_feather(
        numbered(0, 50), str(tmp_path / "x.feather"), compression=compression, chunksize=7
    )
    dataset = MapDataset(open_records(tmp_path))
    assert n(dataset.__getitems__([49, 0, 48])) == [49, 0, 48]
    dataset.close()


def test_dictionaries_that_a_stream_replaces(tmp_path) -> None:
    parts = [pa.array(each).dictionary_encode() for each in (["a", "b"], ["c", "a"], ["d", "d"])]
    schema = pa.schema({"x": parts[0].type})
    with pa.ipc.new_stream(str(tmp_path / "x.arrow"), schema) as writer:
        for part in parts:
            writer.write_batch(pa.record_batch([part], schema=schema))
    dataset = MapDataset(open_records(tmp_path))
    assert [each["x"] for each in dataset.__getitems__([5, 2, 0, 3, 1])] == ["d", "c", "a", "a", "b"]
    dataset.close()


def test_empty_files_and_blocks(tmp_path) -> None:
    for kind in KINDS:
        suffix = "parquet" if kind == "parquet" else "arrow"
        directory = tmp_path / kind
        directory.mkdir()
        write(directory / f"1.{suffix}", numbered(0, 0), 5, kind)
        write(directory / f"2.{suffix}", numbered(0, 7), 5, kind)
        dataset = MapDataset(open_records(directory))
        assert n(dataset.__getitems__([6, 0])) == [6, 0]
        dataset.close()


# ---- damage


def _write(path, kind):
    write(path, numbered(0, 1000), 100, kind)
    return path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_file_that_was_cut_off_is_refused_by_its_name(tmp_path, kind) -> None:
    path = tmp_path / ("x.parquet" if kind == "parquet" else "x.arrow")
    data = _write(path, kind)
    wanted = {"parquet": "PAR1", "arrow": "cut off", "stream": "cut off"}[kind]
    for size in (len(data) // 2, 21, 3):
        path.write_bytes(data[:size])
        with pytest.raises(CorruptData) as caught:
            open_records(tmp_path)
        assert caught.value.filename == str(path)
        assert size < len(data) // 2 or wanted in str(caught.value)
    path.write_bytes(b"")
    if kind == "parquet":
        with pytest.raises(CorruptData, match="0 bytes"):
            open_records(tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_bad_footer_is_refused_by_its_name(tmp_path, kind) -> None:
    path = tmp_path / f"x.{kind}"
    data = _write(path, kind)
    tail = 8 if kind == "parquet" else 10
    length = int.from_bytes(data[-tail : 4 - tail], "little")
    for wrong in (
        data[:-tail] + (1 << 30).to_bytes(4, "little") + data[4 - tail :],
        data[: -tail - length] + bytes(length) + data[-tail:],
        data[: -tail - length] + b"\xff" * length + data[-tail:],
        data[: len(data) // 2] + data[-tail - length :],  # the middle is missing
    ):
        path.write_bytes(wrong)
        with pytest.raises(CorruptData) as caught:
            open_records(tmp_path)
        assert caught.value.filename == str(path)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_no_byte_that_changes_ends_the_process(tmp_path, kind) -> None:
    """For any metadata: samples, or an error with the file's name."""
    path = tmp_path / f"x.{kind}"
    write(path, numbered(0, 20), 10, kind)
    data = path.read_bytes()
    noise = np.random.default_rng(7)
    refused = 0
    for _ in range(150):
        changed = bytearray(data)
        changed[int(noise.integers(len(data)))] ^= 1 << int(noise.integers(8))
        path.write_bytes(changed)
        dataset = None
        try:
            dataset = MapDataset(open_records(path))
            dataset.__getitems__(range(min(len(dataset), 100)))
        except (CorruptData, InvalidArgument) as error:
            assert error.filename == str(path)
            refused += 1
        finally:
            if dataset is not None:
                dataset.close()
    assert refused > 10


def test_other_files_are_refused_with_what_to_do(tmp_path) -> None:
    (tmp_path / "x.arrow").write_bytes(b"FEA1" + bytes(100))
    with pytest.raises(CorruptData, match="Feather version 1"):
        open_records(tmp_path)
    (tmp_path / "x.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(CorruptData, match="neither with ARROW1"):
        open_records(tmp_path)
    (tmp_path / "x.arrow").unlink()
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(100) + b"PARE")
    with pytest.raises(InvalidArgument, match="encrypted"):
        open_records(tmp_path)


def _damage(path, records, block: int) -> None:
    """Other bytes in the place of the second half of a block."""
    (offset,), (length,) = records.stored.locate(np.array(records.runs_of(block)))[1:3]
    with open(path, "r+b") as file:
        file.seek(offset + length // 2)
        file.write(b"\xff" * (length // 2))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_damaged_block_names_file_and_block_and_is_one_bad_record(tmp_path, kind) -> None:
    path = tmp_path / f"x.{kind}"
    write(path, numbered(0, 5000), 1000, kind)
    _damage(path, open_records(path), 2)
    records = open_records(path)
    dataset = MapDataset(records)
    with pytest.raises(CorruptData, match=r"(row group|record batch) 2 cannot be decoded") as caught:
        dataset[2500]
    assert caught.value.filename == str(path)
    assert dataset[1999]["n"] == 1999
    skipping = MapDataset(open_records(path), on_error="skip", bad_records_max=1)
    assert n(skipping.__getitems__([1999, 2000, 2999, 2500, 3001])) == [1999, 3000, 3000, 3000, 3001]
    (bad,) = skipping.bad_records()
    assert (bad.file, bad.number) == (str(path), 2000)
    damages = verify(records)
    assert [(damage.file, damage.record) for damage in damages] == [(str(path), 2000)]
    for each in (dataset, skipping):
        each.close()


def test_file_that_was_replaced_is_refused(tmp_path) -> None:
    write_numbers(tmp_path, "parquet", files=1)
    dataset = MapDataset(open_records(tmp_path))
    write(tmp_path / "000.parquet", numbered(0, 50), 10, "parquet")
    with pytest.raises(CorruptData, match="replaced or changed"):
        dataset[0]
    dataset.close()


# ---- around


def test_info_and_verify(tmp_path) -> None:
    write_numbers(tmp_path, "parquet")
    records = open_records(tmp_path)
    shown = info(records)
    assert (shown["records"], shown["format"], shown["checksums"]) == (100, "parquet", False)
    assert shown["bytes"] == sum(records.block_bytes(block) for block in range(len(records.block_sizes())))
    assert verify(records) == []


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch) -> None:
    write_numbers(tmp_path, "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidArgument, match=r"pip install 'luciola\[arrow\]'"):
        open_records(tmp_path)


def test_files_on_another_file_system(tmp_path) -> None:
    write_numbers(tmp_path, "stream")
    dataset = MapDataset(open_records(str(tmp_path), file_system=LocalFileSystem()))
    assert dataset[99]["n"] == 99
    dataset.close()
