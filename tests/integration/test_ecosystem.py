"""The libraries that people use, on `luciola://` and on a mount: the real ones, with nothing configured for Luciola."""

# ruff: noqa: E402 (without the libraries this file is not collected)

from collections.abc import Iterator
from pathlib import Path

import pytest

for library in ("pandas", "pyarrow", "duckdb", "datasets", "zarr"):
    pytest.importorskip(library, reason="needs the extra `ecosystem`")

import datasets
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import zarr
from pyarrow.fs import FileType, FSSpecHandler, PyFileSystem

from cluster import LocalCluster, seen
from luciola.client.fsspec import LuciolaFileSystem

ROWS = 10_000
FRAME = pd.DataFrame(
    {
        "number": np.arange(ROWS),
        "part": np.arange(ROWS) % 5,
        "text": [f"row {index}" for index in range(ROWS)],
    }
)
TABLE = pa.Table.from_pandas(FRAME, preserve_index=False)


pytestmark = pytest.mark.usefixtures("locations")


@pytest.fixture
def url(fs: LuciolaFileSystem, top: str) -> str:
    """What a user writes."""
    return fs.unstrip_protocol(top)


@pytest.fixture
def mounted(shared_cluster: LocalCluster, top: str) -> Path:
    """The same directory on the mount."""
    assert shared_cluster.mountpoint is not None, "it was started with a mount"
    return seen(shared_cluster.mountpoint / top.lstrip("/"))


# pandas


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_pandas_csv(url: str, suffix: str) -> None:
    FRAME.to_csv(f"{url}/frame.csv{suffix}", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(f"{url}/frame.csv{suffix}"), FRAME)


def test_pandas_parquet(url: str) -> None:
    FRAME.to_parquet(f"{url}/frame.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(f"{url}/frame.parquet"), FRAME)
    FRAME.to_parquet(f"{url}/parts", partition_cols=["part"])
    third = pd.read_parquet(f"{url}/parts", filters=[("part", "==", 3)], columns=["number"])
    assert third["number"].tolist() == list(range(3, ROWS, 5))


def test_pandas_with_the_cluster_in_its_storage_options(fs: LuciolaFileSystem, top: str) -> None:
    options = {"cluster": fs.cluster}
    FRAME.to_json(f"luciola://{top}/lines.json", orient="records", lines=True, storage_options=options)
    back = pd.read_json(f"luciola://{top}/lines.json", lines=True, storage_options=options)
    pd.testing.assert_frame_equal(back, FRAME)


@pytest.mark.mount
def test_pandas_on_the_mount_sees_the_same_files(url: str, mounted: Path) -> None:
    FRAME.to_parquet(f"{url}/native.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(mounted / "native.parquet"), FRAME)
    FRAME.to_parquet(mounted / "mount.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(f"{url}/mount.parquet"), FRAME)


# pyarrow


@pytest.mark.parametrize("wrapped", [False, True], ids=["direct", "FSSpecHandler"])
def test_pyarrow_data_sets(fs: LuciolaFileSystem, top: str, wrapped: bool) -> None:
    arrow_fs = PyFileSystem(FSSpecHandler(fs)) if wrapped else fs
    hive = pds.partitioning(pa.schema([("part", pa.int64())]), flavor="hive")
    pds.write_dataset(TABLE, f"{top}/set", filesystem=arrow_fs, format="parquet", partitioning=hive)
    found = pds.dataset(f"{top}/set", filesystem=arrow_fs, partitioning="hive")
    assert found.count_rows() == ROWS
    assert len(found.files) == 5
    filtered = found.to_table(filter=pds.field("part") == 2, columns=["number"])
    assert sorted(filtered["number"].to_pylist()) == list(range(2, ROWS, 5))
    assert sum(batch.num_rows for batch in found.to_batches(batch_size=100)) == ROWS


def test_pyarrow_sees_what_is_there(fs: LuciolaFileSystem, top: str) -> None:
    arrow_fs = PyFileSystem(FSSpecHandler(fs))
    pq.write_table(TABLE, f"{top}/a/table.parquet", filesystem=arrow_fs)
    file, directory, missing = arrow_fs.get_file_info([f"{top}/a/table.parquet", f"{top}/a", f"{top}/b"])
    assert (file.type, directory.type, missing.type) == (FileType.File, FileType.Directory, FileType.NotFound)
    assert file.size == fs.size(f"{top}/a/table.parquet")
    with arrow_fs.open_input_file(f"{top}/a/table.parquet") as source:
        assert source.read_at(4, 0) == b"PAR1"
    arrow_fs.move(f"{top}/a", f"{top}/b")
    arrow_fs.delete_dir_contents(f"{top}/b")
    assert fs.ls(f"{top}/b") == []
    with pytest.raises(FileNotFoundError):
        pq.read_table(f"{top}/a/table.parquet", filesystem=arrow_fs)


def test_pyarrow_by_url(url: str) -> None:
    pq.write_table(TABLE, f"fsspec+{url}/table.parquet")
    assert pq.read_table(f"fsspec+{url}/table.parquet", columns=["text"]) == TABLE.select(["text"])


# DuckDB


@pytest.fixture
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 2}) as connection:
        yield connection


def work_with_duckdb(database: duckdb.DuckDBPyConnection, place: str) -> None:
    database.register("source", TABLE)
    database.sql(f"copy source to '{place}/table.parquet' (format parquet)")
    assert database.sql(f"select count(*), sum(number) from '{place}/table.parquet'").fetchall() == [
        (ROWS, ROWS * (ROWS - 1) // 2)
    ]
    database.sql(f"copy source to '{place}/parts' (format parquet, partition_by (part))")
    parts = f"read_parquet('{place}/parts/**/*.parquet', hive_partitioning=true)"
    assert database.sql(f"select part, count(*) from {parts} group by part order by part").fetchall() == [
        (part, ROWS // 5) for part in range(5)
    ]
    database.sql(f"copy source to '{place}/table.csv'")
    assert database.sql(f"select max(number) from read_csv('{place}/table.csv')").fetchall() == [(ROWS - 1,)]
    with pytest.raises(duckdb.IOException, match="No files found"):
        database.sql(f"select * from '{place}/nothing-*.parquet'")


def test_duckdb(fs: LuciolaFileSystem, url: str, database: duckdb.DuckDBPyConnection) -> None:
    database.register_filesystem(fs)
    work_with_duckdb(database, url)


@pytest.mark.mount
def test_duckdb_on_the_mount(mounted: Path, database: duckdb.DuckDBPyConnection) -> None:
    work_with_duckdb(database, str(mounted))


@pytest.mark.mount
def test_a_duckdb_database_lives_on_the_mount(mounted: Path) -> None:
    with duckdb.connect(str(mounted / "database.duckdb")) as connection:
        connection.sql("create table numbers as select range as number from range(1000)")
    with duckdb.connect(str(mounted / "database.duckdb"), read_only=True) as connection:
        assert connection.sql("select sum(number) from numbers").fetchall() == [(499_500,)]


# Hugging Face datasets


@pytest.fixture
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.usefixtures("quiet")
def test_datasets_are_saved_and_loaded(url: str) -> None:
    made = datasets.Dataset.from_pandas(FRAME)
    made.save_to_disk(f"{url}/saved", num_shards=3)
    loaded = datasets.load_from_disk(f"{url}/saved")
    assert loaded.features == made.features
    assert loaded["number"] == made["number"]
    split = datasets.DatasetDict({"train": made.select(range(10)), "test": made.select(range(10, 15))})
    split.save_to_disk(f"{url}/split")
    assert {name: len(part) for name, part in datasets.load_from_disk(f"{url}/split").items()} == {
        "train": 10,
        "test": 5,
    }


@pytest.mark.usefixtures("quiet")
def test_datasets_load_files(url: str, tmp_path: Path) -> None:
    FRAME.to_parquet(f"{url}/parts", partition_cols=["part"])
    FRAME.to_csv(f"{url}/frame.csv", index=False)
    cache = str(tmp_path)
    loaded = datasets.load_dataset("csv", data_files=f"{url}/frame.csv", split="train", cache_dir=cache)
    assert loaded["text"][:] == FRAME["text"].tolist()
    streamed = datasets.load_dataset(
        "parquet", data_files=f"{url}/parts/**/*.parquet", split="train", streaming=True, cache_dir=cache
    )
    assert sorted(row["number"] for row in streamed) == list(range(ROWS))


# zarr


def test_zarr(url: str, fs: LuciolaFileSystem, top: str) -> None:
    values = np.random.default_rng(1).random((300, 400))
    group = zarr.open_group(f"{url}/group.zarr", mode="w")
    group.create_array("plain", shape=values.shape, chunks=(100, 100), dtype="f8")[:] = values
    sharded = group.create_array(
        "sharded", shape=values.shape, shards=(200, 200), chunks=(50, 50), dtype="f8"
    )
    sharded[:] = values
    sharded[10:20, 30:40] = 0
    again = zarr.open_group(f"{url}/group.zarr", mode="r")
    assert sorted(again.array_keys()) == ["plain", "sharded"]
    assert (again["plain"][120:280:3, 7:399] == values[120:280:3, 7:399]).all()
    assert (again["sharded"][10:20, 30:40] == 0).all()
    assert (again["sharded"][20:, 40:] == values[20:, 40:]).all()
    assert fs.exists(f"{top}/group.zarr/plain/c/2/3")


def test_zarr_store_on_an_instance(fs: LuciolaFileSystem, top: str) -> None:
    own = LuciolaFileSystem(fs.cluster, asynchronous=True)
    store = zarr.storage.FsspecStore(own, path=f"{top}/array.zarr")
    array = zarr.create_array(store, shape=(1000,), chunks=(64,), dtype="i8", fill_value=-1)
    array[100:200] = np.arange(100)
    assert (zarr.open_array(store, mode="r")[98:202] == [-1, -1, *range(100), -1, -1]).all()
    with pytest.raises(FileNotFoundError):
        zarr.open_array(zarr.storage.FsspecStore(own, path=f"{top}/missing"), mode="r")
