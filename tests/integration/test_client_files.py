"""Files of a real cluster through `luciola.connect`: two clients, so that what one writes is what the other reads."""

import errno
import io
import json
import os
import pickle
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import luciola
from cluster import LocalCluster
from luciola.client import Buffer, File, FileSystem
from luciola.errors import (
    AlreadyExists,
    InvalidArgument,
    IsADirectory,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)

MIB = 1 << 20


@pytest.fixture(scope="module")
def fs(shared_cluster: LocalCluster) -> Iterator[FileSystem]:
    with luciola.connect(shared_cluster.data) as fs:
        yield fs


@pytest.fixture(scope="module")
def other(shared_cluster: LocalCluster) -> Iterator[FileSystem]:
    with luciola.connect(shared_cluster.data) as fs:
        yield fs


@pytest.fixture
def base(fs: FileSystem, request: pytest.FixtureRequest) -> Iterator[str]:
    path = f"/{request.module.__name__}/{request.node.name}"
    fs.makedirs(path)
    yield path
    fs.rmtree(path)


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("length", [0, 1, 4096, 4097, MIB - 1, MIB, MIB + 1, 5 * MIB + 77])
def test_whole_files_come_back_at_another_client(fs, other, base, length):
    data = noise(length)
    assert fs.write(f"{base}/f", data) == length
    assert other.stat(f"{base}/f").st_size == length
    assert other.read(f"{base}/f") == data
    buffer = Buffer(length + 10)
    assert other.read_into(f"{base}/f", buffer) == length
    assert bytes(buffer)[:length] == data


def test_text_files_behave_as_those_of_the_built_in_open(fs, base, tmp_path):
    text = "first\nzweite Zeile äöü\r\nthird without end"
    for open_, path in ((fs.open, f"{base}/t"), (open, str(tmp_path / "t"))):
        with open_(path, "w", encoding="utf-8", newline="") as file:
            assert file.write(text) == len(text)
        with open_(path, encoding="utf-8") as file:
            assert file.mode == "r"
            assert file.readline() == "first\n"
            assert list(file) == ["zweite Zeile äöü\n", "third without end"]
        with open_(path, "a", encoding="utf-8") as file:
            file.write("!")
        with open_(path, "r+", encoding="utf-8") as file:
            file.write("FIRST")
        with open_(path, "rb") as file:
            assert file.read() == text.replace("first", "FIRST").encode() + b"!"


def test_binary_modes_and_their_errors(fs, base):
    path = f"{base}/f"
    with pytest.raises(FileNotFoundError) as missing:
        fs.open(path, "rb")
    assert isinstance(missing.value, NotFound)
    assert (missing.value.errno, missing.value.filename) == (errno.ENOENT, path)
    with fs.open(path, "xb") as file:
        assert isinstance(file, File)
        file.write(b"0123456789")
        with pytest.raises(io.UnsupportedOperation):
            file.read()
    with pytest.raises(AlreadyExists):
        fs.open(path, "xb")
    with fs.open(path, "r+b") as file:
        file.seek(3)
        file.write(b"XY")
        assert file.tell() == 5
        assert file.read(2) == b"56"
        assert file.seek(-2, os.SEEK_END) == 8
        assert file.read() == b"89"
        assert file.truncate(6) == 6
    with fs.open(path, "ab") as file:
        assert file.tell() == 6
        file.write(b"end")
    assert fs.read(path) == b"012XY5end"
    with fs.open(path, "wb"):
        pass
    assert fs.read(path) == b""
    for mode in ("rb", "wb", "r"):
        with pytest.raises(IsADirectory):
            fs.open(base, mode)
    for mode in ("", "rw", "rt+b", "z", "rr", "+"):
        with pytest.raises(ValueError, match="mode"):
            fs.open(path, mode)


def test_a_closed_file_refuses_everything(fs, base):
    file = fs.open(f"{base}/f", "wb")
    file.write(b"x")
    file.close()
    file.close()
    for call in (
        file.read,
        file.tell,
        file.flush,
        file.fsync,
        lambda: file.write(b"y"),
        lambda: file.seek(0),
    ):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert fs.read(f"{base}/f") == b"x"


def test_standard_readers_and_writers_accept_a_file(fs, base):
    with fs.open(f"{base}/p", "wb") as file:
        pickle.dump({"a": list(range(1000)), "b": noise(100_000)}, file)
    with fs.open(f"{base}/p", "rb") as file:
        assert pickle.load(file)["b"] == noise(100_000)
    with fs.open(f"{base}/j", "w") as file:
        json.dump([1, {"x": None}], file)
    with fs.open(f"{base}/j") as file:
        assert json.load(file) == [1, {"x": None}]
    with fs.open(f"{base}/lines", "wb") as file:
        file.writelines(b"%d\n" % number for number in range(3000))
    with fs.open(f"{base}/lines", "rb") as file:
        assert [int(line) for line in file] == list(range(3000))
    with fs.open(f"{base}/lines", "rb", buffering=4096) as file:
        assert isinstance(file, io.BufferedReader)
        assert sum(1 for _ in file) == 3000


def test_reads_and_writes_at_offsets_leave_the_position(fs, base):
    with fs.open(f"{base}/f", "w+b") as file:
        file.write(b"0123456789")
        assert file.pwrite(b"AB", 4) == 2
        assert file.pread(4, 3) == b"3AB6"
        buffer = bytearray(4)
        assert file.pread_into(buffer, 8) == 2
        assert buffer == b"89\0\0"
        assert file.tell() == 10
        assert file.pread(10, 100) == b""


def test_holes_read_as_zeros(fs, other, base):
    with fs.open(f"{base}/sparse", "wb") as file:
        file.seek(9 * MIB + 5)
        file.write(b"end")
    data = other.read(f"{base}/sparse")
    assert data == bytes(9 * MIB + 5) + b"end"
    fs.truncate(f"{base}/sparse", 10 * MIB)
    assert other.read(f"{base}/sparse", 9 * MIB, MIB) == b"\0" * 5 + b"end" + bytes(MIB - 8)


def test_a_file_is_seen_by_others_once_flushed_and_while_it_grows(fs, other, base):
    path = f"{base}/f"
    with fs.open(path, "wb") as writer:
        writer.write(noise(3 * MIB))
        writer.flush()
        assert other.stat(path).st_size == 3 * MIB
        with other.open(path, "rb") as reader:
            assert reader.read() == noise(3 * MIB)
            writer.write(b"more")
            writer.flush()
            assert reader.seek(0, os.SEEK_END) == 3 * MIB + 4
            assert reader.pread(10, 3 * MIB) == b"more"


def test_length_of_unflushed_writes_is_known_to_their_own_client(fs, base):
    path = f"{base}/f"
    with fs.open(path, "wb") as file:
        file.write(b"x" * 100)
        assert fs.stat(path).st_size == 100
        file.write(b"x" * 100_000)
        assert fs.stat(path).st_size == 100_100
        assert {entry.name: entry.stat().st_size for entry in fs.scandir(base)} == {"f": 100_100}


def test_direct_files_need_no_flush(fs, other, base):
    path = f"{base}/f"
    with fs.open(path, "w+b", direct=True) as mine, other.open(path, "r+b", direct=True) as theirs:
        for number in range(20):
            writer, reader = (mine, theirs) if number % 2 else (theirs, mine)
            data = noise(5000, number)
            writer.pwrite(data, number * 3000)
            assert reader.pread(5000, number * 3000) == data


def test_small_files_written_by_two_clients_keep_both_writes(fs, other, base):
    path = f"{base}/f"
    fs.write(path, b"." * 100)
    with fs.open(path, "r+b") as mine, other.open(path, "r+b") as theirs:
        mine.pwrite(b"MINE", 10)
        theirs.pwrite(b"THEIRS", 50)
    data = fs.read(path)
    assert (data[10:14], data[50:56], len(data)) == (b"MINE", b"THEIRS", 100)


def test_a_small_file_outgrown_by_one_client_keeps_what_the_other_wrote(fs, other, base):
    path = f"{base}/f"
    fs.write(path, b"." * 100)
    with fs.open(path, "r+b") as mine, other.open(path, "r+b") as theirs:
        mine.pwrite(noise(2 * MIB), 1000)
        theirs.pwrite(b"THEIRS", 50)
        mine.flush()
    data = fs.read(path)
    assert data[50:56] == b"THEIRS"
    assert data[1000:] == noise(2 * MIB)


@pytest.mark.parametrize("at_once", [False, True])
def test_two_clients_that_outgrow_one_small_file_keep_both_writes(fs, other, base, at_once):
    """Each has bytes beyond the inode before the other has reported its own: one of them moves an older file."""
    for number in range(4):
        path = f"{base}/{number}"
        expected = bytearray(noise(4000, number)) + bytes(200_000)
        fs.write(path, expected[:4000])
        files = [client.open(path, "r+b") for client in (fs, other)]
        for index, file in enumerate(files):
            for at, mine in ((index * 512 + 3, b"m" * 100), (5000 + index * 90_000, noise(70_000, index))):
                expected[at : at + len(mine)] = mine
                file.pwrite(mine, at)
        if at_once:
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(File.close, files))
        else:
            for file in files:
                file.close()
        expected = expected[: 5000 + 90_000 + 70_000]
        assert other.read(path) == expected
        assert fs.read(path) == expected


def test_truncation_elsewhere_is_seen_by_a_writer(fs, other, base):
    path = f"{base}/log"
    with fs.open(path, "ab") as log:
        log.write(noise(2 * MIB))
        log.flush()
        other.truncate(path, 0)
        assert other.stat(path).st_size == 0
        log.seek(0, os.SEEK_END)
        log.write(b"after")
    assert other.read(path) == b"after"


def test_appends_of_threads_keep_every_record(fs, other, base):
    path = f"{base}/log"
    fs.write(path, b"")
    with fs.open(path, "ab") as log:

        def append(number: int) -> None:
            for _ in range(100):
                log.pwrite(bytes([number]) * 999, 0)

        threads = [threading.Thread(target=append, args=(number,)) for number in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    data = other.read(path)
    assert len(data) == 4 * 100 * 999
    assert all(len(set(data[at : at + 999])) == 1 for at in range(0, len(data), 999))


def test_an_unlinked_file_stays_readable_for_those_who_have_it_open(fs, other, base):
    path = f"{base}/f"
    data = noise(3 * MIB)
    fs.write(path, data)
    with other.open(path, "rb") as reader, fs.open(path, "r+b") as writer:
        fs.remove(path)
        assert not other.exists(path)
        writer.pwrite(b"still here", 0)
        writer.flush()
        assert reader.pread(10, 0) == b"still here"
        assert reader.pread(MIB, 2 * MIB) == data[2 * MIB :]
        assert reader.stat().st_size == 3 * MIB


def test_fsync_and_times(fs, base):
    path = f"{base}/f"
    with fs.open(path, "wb") as file:
        file.write(noise(MIB))
        file.fsync()
        file.fsync(data_only=True)
        fs.utime(path, ns=(1_000_000_001, 2_000_000_003))
    status = fs.stat(path)
    assert (status.st_atime_ns, status.st_mtime_ns) == (1_000_000_001, 2_000_000_003)


@pytest.mark.parametrize("seed", range(3))
def test_random_operations_equal_a_local_file(fs, other, base, tmp_path, seed):
    """Replay: the seed is the parameter."""
    rng = random.Random(seed)
    model = io.BytesIO()
    path = f"{base}/f"
    with fs.open(path, "w+b") as file:
        for _ in range(200):
            offset = rng.randrange(3 * MIB)
            length = rng.choice([1, 100, 4096, 70_000, MIB])
            match rng.randrange(10):
                case 0:
                    file.flush()
                    assert other.stat(path).st_size == len(model.getvalue())
                case 1:
                    file.truncate(offset)
                    if len(model.getvalue()) < offset:
                        model.seek(0, os.SEEK_END)
                        model.write(bytes(offset - len(model.getvalue())))
                    model.truncate(offset)
                case 2 | 3 | 4:
                    assert file.pread(length, offset) == model.getvalue()[offset : offset + length]
                case _:
                    data = rng.randbytes(length)
                    file.pwrite(data, offset)
                    model.seek(offset)
                    model.write(data)
    assert other.read(path) == model.getvalue()


@pytest.mark.parametrize(
    ("address", "named", "words"),
    [
        ("/nowhere/at/all", {}, "neither a data directory"),
        ("127.0.0.1:1", {}, "secret_file"),
    ],
)
def test_connecting_says_what_is_missing(address, named, words):
    with pytest.raises((NotFound, InvalidArgument), match=words):
        luciola.connect(address, **named)


def test_a_token_of_another_cluster_is_refused_at_once(shared_cluster, tmp_path):
    from luciola.wire.credentials import create_secret

    create_secret(tmp_path / "secret")
    began = time.monotonic()
    with pytest.raises(Unauthenticated):
        luciola.connect(shared_cluster.data, secret_file=tmp_path / "secret")
    assert time.monotonic() - began < 50, "sooner than the deadline of a client"


def test_a_token_speaks_for_its_user_only(fs, shared_cluster, base):
    from luciola.wire.cluster import load_cluster
    from luciola.wire.credentials import CLIENT, mint

    cluster = load_cluster(shared_cluster.data / "cluster.json")
    token = mint(cluster.secret(), role=CLIENT, uid=1234, gid=1234).encode()
    fs.write(f"{base}/private", b"secret", permissions=0o600)
    fs.mkdir(f"{base}/open")
    fs.chmod(f"{base}/open", 0o777)
    with luciola.connect(cluster.mgmtd_lane, token=token) as user:
        user.write(f"{base}/open/mine", b"x")
        assert fs.stat(f"{base}/open/mine").st_uid == 1234
        for call in (
            lambda: user.read(f"{base}/private"),
            lambda: user.write(f"{base}/new", b""),
            lambda: user.remove(f"{base}/private"),
            lambda: user.chown(f"{base}/open/mine", 0, 0),
        ):
            with pytest.raises(PermissionDenied):
                call()
