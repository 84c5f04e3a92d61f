"""`luciola://` on a real cluster: what fsspec's own tests leave open."""

import asyncio
import datetime as dt
import gc
import io
import os
import pickle
import stat

import pytest

pytest.importorskip("fsspec", reason="needs the extra `fsspec`")

import fsspec
from fsspec.callbacks import Callback

from child_process import Child
from cluster import LocalCluster
from luciola.client import close_locations, open_location
from luciola.client.fsspec import LuciolaFileSystem
from luciola.errors import InvalidArgument

pytestmark = pytest.mark.usefixtures("locations")


# Files.


def test_modes(fs: LuciolaFileSystem, top: str) -> None:
    path = f"{top}/f"
    with fs.open(path, "wb") as file:
        assert file.write(b"hello") == 5
        assert (file.writable(), file.readable(), file.tell()) == (True, False, 5)
    with fs.open(path, "ab") as file:
        file.write(b" world")
    with fs.open(path, "r+b") as file:
        assert file.read(2) == b"he"
        file.write(b"LL")
        file.seek(0)
        assert file.read() == b"heLLo world"
    with fs.open(path, "w+b") as file:
        file.write(b"fresh")
        file.seek(1)
        assert file.read() == b"resh"
    with fs.open(f"{top}/text", "w", encoding="utf-8", newline="\n") as file:
        file.write("zwölf\nlines\n")
    with fs.open(f"{top}/text", "r", encoding="utf-8") as file:
        assert list(file) == ["zwölf\n", "lines\n"]
    with fs.open(f"{top}/packed.gz", "wb", compression="infer") as file:
        file.write(b"x" * 1000)
    assert fs.size(f"{top}/packed.gz") < 100
    with fs.open(f"{top}/packed.gz", compression="infer") as file:
        assert file.read() == b"x" * 1000
    with pytest.raises(ValueError, match="not a mode"):
        fs.open(path, "rwb")


def test_a_file_opened_to_read_is_a_buffered_reader(fs: LuciolaFileSystem, top: str) -> None:
    lines = [b"line %d\n" % number for number in range(5000)]
    fs.pipe_file(f"{top}/lines", b"".join(lines))
    with fs.open(f"{top}/lines", "rb") as file:
        assert isinstance(file, io.BufferedReader)
        assert list(file) == lines
        assert (file.size, file.path, file.mode) == (sum(map(len, lines)), f"{top}/lines", "rb")
        assert file.info()["size"] == file.size
        assert file.full_name == fs.unstrip_protocol(f"{top}/lines")
        assert file.seek(-7, 2) == file.size - 7
        assert file.loc == file.tell()
        buffer = bytearray(4)
        assert file.pread_into(buffer, 5) == 4
        assert bytes(buffer) == b"0\nli"
        file.seek(5)
        copy = pickle.loads(pickle.dumps(file))
        assert copy.read(4) == b"0\nli"
        copy.close()
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")


@pytest.mark.parametrize("cache", ["readahead", "bytes", "blockcache", "all", "none"])
def test_caches_of_fsspec(fs: LuciolaFileSystem, top: str, cache: str) -> None:
    content = os.urandom(100_000)
    fs.pipe_file(f"{top}/f", content)
    with fs.open(f"{top}/f", "rb", block_size=4096, cache_type=cache) as file:
        assert cache in (file.cache.name, "none")
        file.seek(50_000)
        assert file.read(1000) == content[50_000:51_000]
        file.seek(-10, 2)
        assert file.read() == content[-10:]
        file.seek(0)
        assert file.read() == content
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_what_is_written_is_seen_after_flush(fs: LuciolaFileSystem, top: str) -> None:
    with fs.open(f"{top}/f", "wb") as file:
        file.write(b"begin")
        file.flush()
        assert fs.cat_file(f"{top}/f") == b"begin"
        file.write(b" end")
        file.fsync()
        assert fs.cat_file(f"{top}/f") == b"begin end"


def test_atomic_files_appear_when_they_are_closed(fs: LuciolaFileSystem, top: str) -> None:
    path = f"{top}/f"
    fs.pipe_file(path, b"old")
    with fs.open(path, "wb", atomic=True) as file:
        file.write(b"new")
        file.flush()
        assert fs.cat_file(path) == b"old"
    assert fs.cat_file(path) == b"new"
    with pytest.raises(ZeroDivisionError), fs.open(path, "wb", atomic=True) as file:
        file.write(b"never")
        _ = 1 / 0
    file = fs.open(path, "wb", atomic=True)
    file.write(b"forgotten")
    del file
    with fs.open(path, "ab", atomic=True) as file:
        file.write(b"er")
    with fs.open(path, "r+b", atomic=True) as file:
        file.write(b"N")
        assert fs.cat_file(path) == b"newer"
    assert fs.cat_file(path) == b"Newer"
    with pytest.raises(FileExistsError):
        fs.open(path, "xb", atomic=True)
    with pytest.raises(FileNotFoundError):
        fs.open(f"{top}/missing", "r+b", atomic=True)
    assert [name for name in fs.ls(top, detail=False) if not name.endswith(".part")] == [path]


def test_nothing_is_left_of_files_that_failed(fs: LuciolaFileSystem, top: str) -> None:
    with pytest.raises(TypeError):
        fs.pipe_file(f"{top}/f", "text is not bytes")
    with pytest.raises(FileNotFoundError):
        fs.cp_file(f"{top}/missing", f"{top}/copy")
    with pytest.raises(FileExistsError):
        fs.pipe_file(top, b"", mode="create")
    with pytest.raises(IsADirectoryError):
        fs.pipe_file(top, b"")
    assert fs.ls(top) == []


def test_replacing_a_file_keeps_its_permissions_and_the_link_to_it(fs: LuciolaFileSystem, top: str) -> None:
    path = f"{top}/secret"
    fs.pipe_file(path, b"old")
    fs.chmod(path, 0o600)
    fs.symlink(path, f"{top}/link")
    fs.pipe_file(f"{top}/link", b"new")
    assert fs.islink(f"{top}/link")
    assert fs.cat_file(path) == b"new"
    assert stat.S_IMODE(fs.info(path)["mode"]) == 0o600


def test_two_creators_of_one_file_cannot_both_win(fs: LuciolaFileSystem, top: str) -> None:
    with pytest.raises(FileExistsError), fs._whole(f"{top}/f", exclusive=True) as file:
        file.write(b"late")
        fs.pipe_file(f"{top}/f", b"early", mode="create")
    assert fs.cat_file(f"{top}/f") == b"early"
    assert len(fs.ls(top)) == 1


def test_transactions(fs: LuciolaFileSystem, top: str) -> None:
    fs.pipe_file(f"{top}/log", b"1")
    with fs.transaction:
        with fs.open(f"{top}/a", "wb") as file:
            file.write(b"a")
        fs.pipe_file(f"{top}/new/b", b"b")
        with fs.open(f"{top}/log", "ab") as file:
            file.write(b"2")
        assert [fs.exists(f"{top}/a"), fs.exists(f"{top}/new/b")] == [False, False]
        assert fs.cat_file(f"{top}/log") == b"1"
    assert [fs.cat_file(f"{top}/a"), fs.cat_file(f"{top}/new/b")] == [b"a", b"b"]


def test_a_transaction_that_fails_changes_nothing(fs: LuciolaFileSystem, top: str) -> None:
    with pytest.raises(ZeroDivisionError), fs.transaction:
        fs.pipe_file(f"{top}/a", b"a")
        with fs.open(f"{top}/b", "xb") as file:
            file.write(b"b")
        _ = 1 / 0
    assert fs.ls(top) == []
    fs.pipe_file(f"{top}/a", b"after it as before")
    assert fs.exists(f"{top}/a")


# Bytes.


def test_slices(fs: LuciolaFileSystem, top: str) -> None:
    fs.pipe_file(f"{top}/f", b"0123456789")
    for start, end in [
        (None, None),
        (2, 5),
        (None, 3),
        (7, None),
        (-3, None),
        (None, -3),
        (-5, -2),
        (8, 99),
        (5, 2),
    ]:
        assert fs.cat_file(f"{top}/f", start, end) == b"0123456789"[start:end]
    assert fs.read_bytes(f"{top}/f", start=4, end=6) == b"45"
    assert (fs.head(f"{top}/f", 2), fs.tail(f"{top}/f", 2)) == (b"01", b"89")
    assert fs.read_block(f"{top}/f", 1, 3) == b"123"


@pytest.mark.parametrize("gap", [None, 0, 1000, 1 << 30])
def test_ranges_of_many_files(fs: LuciolaFileSystem, top: str, gap: int | None) -> None:
    contents = {f"{top}/{index}": os.urandom(size) for index, size in enumerate([0, 10, 70_000, 5 << 20])}
    fs.pipe(contents)
    cases = [
        (path, start, end)
        for path in contents
        for start, end in [
            (0, 10),
            (5, 2000),
            (None, None),
            (-7, None),
            (60_000, 90_000),
            (9, 3),
            (1 << 40, None),
        ]
    ] * 3
    found = fs.cat_ranges(
        [path for path, *_ in cases], [s for _, s, _ in cases], [e for *_, e in cases], max_gap=gap
    )
    assert found == [contents[path][start:end] for path, start, end in cases]


def test_more_ranges_than_one_submission_holds(fs: LuciolaFileSystem, top: str) -> None:
    content = os.urandom(3 << 20)
    fs.pipe_file(f"{top}/f", content)
    starts = [index * 4001 % (2 << 20) for index in range(700)]
    ends = [start + 1 + index * 97 % 60_000 for index, start in enumerate(starts)]
    assert fs.cat_ranges([f"{top}/f"] * 700, starts, ends) == [
        content[start:end] for start, end in zip(starts, ends, strict=True)
    ]


def test_a_missing_file_among_ranges(fs: LuciolaFileSystem, top: str) -> None:
    fs.pipe_file(f"{top}/f", b"here")
    found = fs.cat_ranges([f"{top}/f", f"{top}/missing", top], 0, 2)
    assert found[0] == b"he"
    assert isinstance(found[1], FileNotFoundError)
    assert isinstance(found[2], IsADirectoryError)
    with pytest.raises(FileNotFoundError, match="missing"):
        fs.cat_ranges([f"{top}/f", f"{top}/missing"], 0, 2, on_error="raise")
    with pytest.raises(TypeError, match="list"):
        fs.cat_ranges(f"{top}/f", 0, 2)
    with pytest.raises(ValueError, match="1 paths, 2 starts"):
        fs.cat_ranges([f"{top}/f"], [0, 1], 2)
    assert fs.cat_ranges([], [], []) == []


def test_cat_of_several(fs: LuciolaFileSystem, top: str) -> None:
    fs.pipe({f"{top}/d/a": b"1", f"{top}/d/b": b"2", f"{top}/d/e/c": b"3"})
    assert fs.cat(f"{top}/d/a") == b"1"
    assert fs.cat([f"{top}/d/a"]) == {f"{top}/d/a": b"1"}
    assert fs.cat(f"{top}/d/*", recursive=True) == {
        f"{top}/d/a": b"1",
        f"{top}/d/b": b"2",
        f"{top}/d/e/c": b"3",
    }
    both = [f"{top}/d/a", f"{top}/missing"]
    assert fs.cat(both, on_error="omit") == {f"{top}/d/a": b"1"}
    assert isinstance(fs.cat(both, on_error="return")[f"{top}/missing"], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat(both)


class Counting(Callback):
    """What a progress bar would get."""


def test_files_come_and_go_with_their_progress(fs: LuciolaFileSystem, top: str, tmp_path) -> None:
    content = os.urandom(1_300_000)
    (tmp_path / "in").write_bytes(content)
    sent, received = Counting(), Counting()
    fs.put_file(str(tmp_path / "in"), f"{top}/sub/f", callback=sent)
    fs.get_file(f"{top}/sub/f", str(tmp_path / "deep" / "out"), callback=received)
    assert (tmp_path / "deep" / "out").read_bytes() == content
    assert (sent.size, sent.value, received.size, received.value) == (len(content),) * 4
    memory = io.BytesIO()
    fs.get_file(f"{top}/sub/f", memory)
    assert memory.getvalue() == content
    with pytest.raises(FileExistsError):
        fs.put_file(str(tmp_path / "in"), f"{top}/sub/f", mode="create")


# Names.


def test_info(fs: LuciolaFileSystem, top: str) -> None:
    before = dt.datetime.now(tz=dt.UTC) - dt.timedelta(seconds=5)
    fs.pipe_file(f"{top}/f", b"12345")
    info = fs.info(f"{top}/f")
    assert (info["name"], info["size"], info["type"], info["nlink"]) == (f"{top}/f", 5, "file", 1)
    assert before < fs.created(f"{top}/f") <= fs.modified(f"{top}/f") + dt.timedelta(seconds=1)
    assert fs.modified(f"{top}/f").timestamp() == pytest.approx(info["mtime"], abs=1e-5)
    assert fs.ls(top) == [info]
    assert fs.info(top)["type"] == "directory"
    assert fs.info("/")["name"] == "/"
    for missing in (f"{top}/g", f"{top}/f/g"):
        assert not fs.exists(missing)
        assert not fs.isdir(missing)
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            fs.info(missing)


def test_a_key_changes_with_the_file(fs: LuciolaFileSystem, top: str) -> None:
    path = f"{top}/f"
    fs.pipe_file(path, b"12345")
    keys = [fs.ukey(path)]
    assert (fs.ukey(path), fs.checksum(path)) == (keys[0], int(keys[0], 16))
    with fs.open(path, "r+b") as file:
        file.write(b"1")
    keys.append(fs.ukey(path))
    fs.pipe_file(path, b"12345")
    keys.append(fs.ukey(path))
    assert len(set(keys)) == 3


def test_touch(fs: LuciolaFileSystem, top: str) -> None:
    fs.touch(f"{top}/new/f")
    fs.pipe_file(f"{top}/f", b"content")
    fs.files.utime(f"{top}/f", ns=(0, 0))
    fs.touch(f"{top}/f", truncate=False)
    assert fs.cat_file(f"{top}/f") == b"content"
    assert fs.info(f"{top}/f")["mtime"] > 0
    fs.touch(f"{top}/f")
    assert (fs.size(f"{top}/f"), fs.size(f"{top}/new/f")) == (0, 0)


def test_trees(fs: LuciolaFileSystem, top: str) -> None:
    fs.pipe({f"{top}/a/1.txt": b"1", f"{top}/a/b/22.txt": b"22", f"{top}/a/b/c/333.bin": b"333"})
    assert fs.find(top) == [f"{top}/a/1.txt", f"{top}/a/b/22.txt", f"{top}/a/b/c/333.bin"]
    assert fs.find(top, maxdepth=2) == [f"{top}/a/1.txt"]
    assert fs.find(top, withdirs=True, maxdepth=1) == [top, f"{top}/a"]
    assert fs.glob(f"{top}/**/*.txt") == [f"{top}/a/1.txt", f"{top}/a/b/22.txt"]
    assert fs.glob(f"{top}/nothing*") == []
    assert fs.du(top) == 6
    assert fs.du(f"{top}/a/b", total=False) == {f"{top}/a/b/22.txt": 2, f"{top}/a/b/c/333.bin": 3}
    walked = [(path, sorted(dirs), sorted(files)) for path, dirs, files in fs.walk(top)]
    assert walked == [
        (top, ["a"], []),
        (f"{top}/a", ["b"], ["1.txt"]),
        (f"{top}/a/b", ["c"], ["22.txt"]),
        (f"{top}/a/b/c", [], ["333.bin"]),
    ]


def test_names_that_come_from_urls_keep_the_cluster(fs: LuciolaFileSystem, top: str) -> None:
    fs.pipe({f"{top}/a/1.txt": b"1", f"{top}/a/b/22.txt": b"22"})
    url = fs.unstrip_protocol(top)
    name = url.removeprefix("luciola://")
    assert fs.ls(f"{url}/a", detail=False) == [f"{name}/a/1.txt", f"{name}/a/b"]
    assert fs.find(name) == fs.glob(f"{url}/**/*.txt") == [f"{name}/a/1.txt", f"{name}/a/b/22.txt"]
    assert fs.info(f"{url}/a/1.txt")["name"] == f"{name}/a/1.txt"
    assert fs.cat(f"{url}/a", recursive=True) == {f"{name}/a/1.txt": b"1", f"{name}/a/b/22.txt": b"22"}
    fs.copy(f"{url}/a", f"{top}/copy", recursive=True)
    fs.mv(f"{url}/a/1.txt", f"{url}/moved")
    assert fs.find(top) == [f"{top}/a/b/22.txt", f"{top}/copy/1.txt", f"{top}/copy/b/22.txt", f"{top}/moved"]
    assert fs.ls(fs.unstrip_protocol("/"), detail=False)[0].startswith(name.partition("!/")[0] + "!/")


def test_links(fs: LuciolaFileSystem, top: str) -> None:
    fs.pipe_file(f"{top}/d/f", b"123")
    fs.symlink(f"{top}/d", f"{top}/d/loop")
    fs.symlink(f"{top}/d/f", f"{top}/to-file")
    fs.symlink(f"{top}/missing", f"{top}/nowhere")
    info = fs.info(f"{top}/to-file")
    assert (info["type"], info["size"], info["islink"], info["destination"]) == (
        "file",
        3,
        True,
        f"{top}/d/f",
    )
    assert {each["name"]: each["type"] for each in fs.ls(top)} == {
        f"{top}/d": "directory",
        f"{top}/nowhere": "link",
        f"{top}/to-file": "file",
    }
    assert fs.find(top) == [f"{top}/d/f", f"{top}/d/loop", f"{top}/nowhere", f"{top}/to-file"]
    assert (fs.exists(f"{top}/nowhere"), fs.lexists(f"{top}/nowhere")) == (False, True)
    fs.link(f"{top}/d/f", f"{top}/second")
    assert fs.info(f"{top}/second")["nlink"] == 2
    fs.rm(f"{top}/d/loop", recursive=True)
    assert fs.cat_file(f"{top}/d/f") == b"123"


def test_directories(fs: LuciolaFileSystem, top: str) -> None:
    fs.mkdir(f"{top}/a/b")
    with pytest.raises(FileExistsError):
        fs.mkdir(f"{top}/a/b")
    with pytest.raises(FileNotFoundError):
        fs.mkdir(f"{top}/c/d", create_parents=False)
    fs.makedirs(f"{top}/a/b", exist_ok=True)
    with pytest.raises(FileExistsError):
        fs.makedirs(f"{top}/a/b")
    fs.touch(f"{top}/f")
    for exist_ok in (True, False):
        with pytest.raises(FileExistsError):
            fs.makedirs(f"{top}/f", exist_ok=exist_ok)
    with pytest.raises((NotADirectoryError, FileExistsError)):
        fs.makedirs(f"{top}/f/g")
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir(f"{top}/a")
    fs.rmdir(f"{top}/a/b")
    with pytest.raises(NotADirectoryError):
        fs.rmdir(f"{top}/f")
    with pytest.raises(IsADirectoryError):
        fs.cat_file(f"{top}/a")
    with pytest.raises(IsADirectoryError):
        fs.rm(f"{top}/a")
    with pytest.raises(IsADirectoryError):
        fs.rm_file(f"{top}/a")


def test_removing_to_a_depth(fs: LuciolaFileSystem, top: str) -> None:
    fs.pipe({f"{top}/d/1": b"", f"{top}/d/e/2": b"", f"{top}/d/e/f/3": b""})
    fs.rm(f"{top}/d", recursive=True, maxdepth=2)
    assert fs.find(top) == [f"{top}/d/e/f/3"]
    fs.rm([f"{top}/d"], recursive=True)
    with pytest.raises(FileNotFoundError):
        fs.rm(f"{top}/d")


def test_moving_is_renaming(fs: LuciolaFileSystem, top: str) -> None:
    fs.pipe({f"{top}/a": b"a", f"{top}/b": b"b", f"{top}/d/x": b"x"})
    number = fs.info(f"{top}/a")["ino"]
    fs.mv(f"{top}/a", f"{top}/b")
    assert (fs.info(f"{top}/b")["ino"], fs.exists(f"{top}/a")) == (number, False)
    fs.mv(f"{top}/b", f"{top}/d")
    assert fs.cat_file(f"{top}/d/b") == b"a"
    fs.mv(f"{top}/d", f"{top}/deep/er")
    assert fs.find(top) == [f"{top}/deep/er/b", f"{top}/deep/er/x"]
    fs.mv(f"{top}/deep/er/*", f"{top}/into")
    assert fs.find(top) == [f"{top}/into/b", f"{top}/into/x"]
    fs.mv([f"{top}/into/b"], [f"{top}/c"])
    with pytest.raises(FileNotFoundError):
        fs.mv(f"{top}/missing", f"{top}/c")
    assert fs.cat_file(f"{top}/c") == b"a"


def test_without_auto_mkdir_directories_are_asked_for(shared_cluster: LocalCluster, top: str) -> None:
    strict = LuciolaFileSystem(shared_cluster.data, auto_mkdir=False)
    for write in (
        lambda path: strict.pipe_file(path, b""),
        lambda path: strict.open(path, "wb"),
        strict.touch,
        lambda path: strict.mv(top, path),
    ):
        with pytest.raises(FileNotFoundError):
            write(f"{top}/missing/f")


def test_listings_are_kept_only_by_request(
    shared_cluster: LocalCluster, fs: LuciolaFileSystem, top: str
) -> None:
    keeping = LuciolaFileSystem(shared_cluster.data, use_listings_cache=True)
    assert keeping.ls(top) == fs.ls(top) == []
    fs.touch(f"{top}/f")
    assert (keeping.ls(top), len(fs.ls(top))) == ([], 1)
    keeping.touch(f"{top}/g")
    assert len(keeping.ls(top)) == 2
    fs.rm(f"{top}/f")
    assert len(keeping.ls(top)) == 2
    keeping.invalidate_cache()
    assert len(keeping.ls(top)) == 1


@pytest.mark.root
def test_permissions_count(shared_cluster: LocalCluster, fs: LuciolaFileSystem, top: str) -> None:
    from luciola.wire.cluster import FILE_NAME, load_cluster
    from luciola.wire.credentials import CLIENT, load_secret, mint

    cluster = load_cluster(shared_cluster.data / FILE_NAME)
    assert cluster.secret_file is not None
    token = mint(load_secret(cluster.secret_file), role=CLIENT, uid=4321, gid=4321).encode()
    nobody = LuciolaFileSystem(cluster.mgmtd_lane, token=token)
    fs.pipe_file(f"{top}/f", b"secret")
    fs.chmod(f"{top}/f", 0o600)
    with pytest.raises(PermissionError):
        nobody.cat_file(f"{top}/f")
    with pytest.raises(PermissionError):
        nobody.pipe_file(f"{top}/g", b"")
    assert nobody.exists(f"{top}/f")
    fs.chmod(top, 0o700)
    with pytest.raises(PermissionError):
        nobody.exists(f"{top}/f")
    nobody.files.close()


# Processes and event loops.


def _in_child(fs: LuciolaFileSystem, path: str) -> list[object]:
    gc.collect()  # also what its parent has left
    fs.pipe_file(f"{path}/child", b"from the child")
    found = [
        fs.cat_file(f"{path}/f"),
        *fs.cat_ranges([f"{path}/f"] * 2, [0, 1], [1, 2]),
        fs.cat([f"{path}/f"]),
    ]
    with fs.open(f"{path}/f", "rb") as file:
        found.append(file.read())
    fs.get(f"{path}/f", "/dev/null")
    return found


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_instance_works_in_child_processes(
    shared_cluster: LocalCluster, fs: LuciolaFileSystem, top: str, method: str
) -> None:
    fs.pipe_file(f"{top}/f", b"content")
    fs.cat_ranges([f"{top}/f"], 0, 1)  # the parent's ring and threads are there before the child is
    fs.get(f"{top}/f", "/dev/null")
    with Child(_in_child, fs, top, method=method) as child:
        assert child.result() == [b"content", b"c", b"o", {f"{top}/f": b"content"}, b"content"]
    assert fs.cat_file(f"{top}/child") == b"from the child"


def test_pickles_are_the_same_instance(fs: LuciolaFileSystem) -> None:
    assert pickle.loads(pickle.dumps(fs)) is fs
    assert fsspec.AbstractFileSystem.from_json(fs.to_json()) is fs
    assert fs.fsid.startswith("luciola-")


def test_coroutines(shared_cluster: LocalCluster, top: str) -> None:
    async def work() -> None:
        fs = LuciolaFileSystem(shared_cluster.data, asynchronous=True)
        await asyncio.gather(*(fs._pipe_file(f"{top}/{index}", b"%d" % index) for index in range(30)))
        assert await fs._cat_file(f"{top}/17") == b"17"
        assert (await fs._cat([f"{top}/1", f"{top}/2"])) == {f"{top}/1": b"1", f"{top}/2": b"2"}
        assert len(await fs._find(top)) == 30
        assert await fs._glob(f"{top}/1*", detail=False) == sorted(f"{top}/{i}" for i in (1, *range(10, 20)))
        assert (await fs._info(f"{top}/17"))["size"] == 2
        assert [path async for path, _, _ in fs._walk(top)] == [top]
        stream = await fs.open_async(f"{top}/stream", "wb")
        async with stream:
            await stream.write(b"streamed")
        async with await fs.open_async(f"{top}/stream") as stream:
            assert (await stream.read(3), await stream.read()) == (b"str", b"eamed")
        with pytest.raises(FileNotFoundError):
            await fs._cat_file(f"{top}/missing")
        # The methods without "_" wait, but they do not need another thread's loop.
        assert fs.cat_file(f"{top}/3") == b"3"
        await fs._rm(f"{top}/1*")
        assert not await fs._exists(f"{top}/17")

    asyncio.run(work())


def test_an_instance_outlives_its_connection(
    shared_cluster: LocalCluster, fs: LuciolaFileSystem, top: str
) -> None:
    fs.pipe_file(f"{top}/f", b"12")
    assert fs.cat_ranges([f"{top}/f"], 0, 1) == [b"1"]
    close_locations()
    assert fs.cat_ranges([f"{top}/f"], 0, 1) == [b"1"]


def test_one_connection_with_everybody_else(shared_cluster: LocalCluster, fs: LuciolaFileSystem) -> None:
    assert open_location(fs.unstrip_protocol("/"))[0] is fs.files


def test_chained_urls(fs: LuciolaFileSystem, top: str, tmp_path) -> None:
    fs.pipe_file(f"{top}/f", b"kept here")
    url = f"simplecache::{fs.unstrip_protocol(top)}/f"
    with fsspec.open(url, simplecache={"cache_storage": str(tmp_path)}) as file:
        assert file.read() == b"kept here"
    mapper = fsspec.get_mapper(fs.unstrip_protocol(f"{top}/map"))
    mapper["a/b"] = b"1"
    assert dict(mapper) == {"a/b": b"1"}
    del mapper["a/b"]
    with pytest.raises(KeyError):
        mapper["a/b"]


def test_bad_arguments(fs: LuciolaFileSystem, top: str) -> None:
    with pytest.raises(ValueError, match='mode is "overwrite" or "create"'):
        fs.pipe_file(f"{top}/f", b"", mode="append")
    with pytest.raises(ValueError, match="block_size"):
        fs.open(f"{top}/f", "wb", block_size=0)
    with pytest.raises(InvalidArgument, match="not a file name"):
        fs.info(f"{top}/a\0b")


# Several files at once.


@pytest.mark.parametrize("mode", ["overwrite", "create"])
def test_pipe_makes_small_and_large_files(fs: LuciolaFileSystem, top: str, mode: str) -> None:
    contents = {f"{top}/{number}": b"%d" % number * (number % 90) for number in range(200)}
    contents[f"{top}/large"] = b"x" * 100_000
    contents[f"{top}/empty"] = b""
    fs.pipe(contents, mode=mode)
    assert fs.cat(list(contents)) == contents
    assert {path: fs.info(path)["size"] for path in contents} == {
        path: len(data) for path, data in contents.items()
    }


def test_pipe_replaces_files_that_are_there(fs: LuciolaFileSystem, top: str) -> None:
    fs.pipe({f"{top}/a": b"old", f"{top}/b": b"old"})
    fs.pipe({f"{top}/a": b"new", f"{top}/c": b"new", f"{top}/b": memoryview(b"newer")})
    assert fs.cat([f"{top}/a", f"{top}/b", f"{top}/c"]) == {
        f"{top}/a": b"new",
        f"{top}/b": b"newer",
        f"{top}/c": b"new",
    }
    with pytest.raises(FileExistsError):
        fs.pipe({f"{top}/a": b"x", f"{top}/d": b"x"}, mode="create")
    assert fs.cat_file(f"{top}/a") == b"new"


def test_pipe_within_a_transaction_makes_nothing_before_its_end(fs: LuciolaFileSystem, top: str) -> None:
    with fs.transaction:
        fs.pipe({f"{top}/a": b"1", f"{top}/b": b"2"})
        assert not any(fs.exists(f"{top}/{name}") for name in "ab")
    assert fs.cat([f"{top}/a", f"{top}/b"]) == {f"{top}/a": b"1", f"{top}/b": b"2"}
