"""Texts that name files, and the local counterpart of a cluster's file system. Clusters: tests/integration."""

import io
import os
import pickle
import random
import select
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luciola.client import (
    Completion,
    LocalFileSystem,
    Location,
    Operation,
    open_location,
    parse_location,
    replacing,
)
from luciola.client.connection import Parameters
from luciola.config import ClientConfig
from luciola.errors import InvalidArgument, NotFound
from luciola.wire.credentials import CLIENT, mint

SECRET = {"LUCIOLA_SECRET_FILE": "/etc/secret"}
TOKEN = {"LUCIOLA_TOKEN": "claims.key"}
TOKEN_FILE = {"LUCIOLA_TOKEN_FILE": "/etc/token"}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("/data/x", {}, Location("/data/x")),
        ("x", SECRET, Location("x")),
        ("./lu:/x", {}, Location("./lu:/x")),
        ("a:b", {}, Location("a:b")),
        ("C:/x", {}, Location("C:/x")),
        (Path("/data/x"), {}, Location("/data/x")),
        ("luciola://node7:4711/m/a%20b?c#d", {}, Location("/m/a%20b?c#d", "node7:4711")),
        ("luciola://10.0.0.1:1/", SECRET, Location("/", "10.0.0.1:1", "/etc/secret")),
        ("luciola://[fe80::1]:65535/x", {}, Location("/x", "[fe80::1]:65535")),
        ("luciola:///var/lib/lu!/m/x!/y", SECRET, Location("/m/x!/y", "/var/lib/lu")),
        ("luciola:///var/lib/lu/!/", {}, Location("/", "/var/lib/lu")),
        ("lu:/m", {"LUCIOLA_DATA": "/var/lib/lu"} | SECRET, Location("/m", "/var/lib/lu")),
        ("lu:/m", {"LUCIOLA_ADDRESS": "h:1"} | SECRET, Location("/m", "h:1", "/etc/secret")),
        ("lu:/m", {"LUCIOLA_ADDRESS": "h:1", "LUCIOLA_DATA": ""}, Location("/m", "h:1")),
        ("lu:/m", {"LUCIOLA_ADDRESS": "h:1"} | TOKEN, Location("/m", "h:1", None, "claims.key")),
        ("lu:/m", {"LUCIOLA_ADDRESS": "h:1"} | TOKEN_FILE, Location("/m", "h:1", token_file="/etc/token")),
        ("lu:/m", {"LUCIOLA_DATA": "/d"} | TOKEN_FILE, Location("/m", "/d", token_file="/etc/token")),
        ("lu:/m", {"LUCIOLA_DATA": "/d"} | TOKEN, Location("/m", "/d", None, "claims.key")),
        ("luciola://h:1/m", TOKEN, Location("/m", "h:1", None, "claims.key")),
        ("luciola:///d!/m", TOKEN, Location("/m", "/d")),
        ("/m", TOKEN, Location("/m")),
    ],
)
def test_forms(text, environment, expected):
    assert parse_location(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "not empty"),
        ("a\0b", "NUL"),
        (b"/x", "write a plain path"),
        ("s3://bucket/x", "'s3'.*write a plain path"),
        ("file:///x", "write a plain path"),
        ("lu://x", "write lu:/dir/file|not a scheme"),
        ("lu:x", "write lu:/dir/file"),
        ("lu:", "write lu:/dir/file"),
        ("lu:/x", "no cluster is named: set either LUCIOLA_DATA"),
        ("luciola:/x", "two slashes"),
        (Path("luciola://host:1/x"), "not as Path"),
        ("luciola://", "no path after the address"),
        ("luciola://host:1", "no path after the address"),
        ("luciola://host/x", "not HOST:PORT, 'host'"),
        ("luciola://:1/x", "not HOST:PORT"),
        ("luciola://me@host:1/x", "not HOST:PORT"),
        ("luciola://::1:1/x", "around an IPv6"),
        ("luciola://host:0/x", "1 to 65535"),
        ("luciola://host:65536/x", "1 to 65535"),
        ("luciola://host:\u0661/x", "not HOST:PORT"),
        ("luciola:///var/lib/lu", 'no "!"'),
        ("luciola:///var/lib/lu!x", 'no "!"'),
    ],
)
def test_bad_location_is_refused_with_advice(text, advice):
    with pytest.raises(InvalidArgument, match=advice):
        parse_location(text, {})


def test_two_clusters_at_once_are_refused():
    with pytest.raises(InvalidArgument, match="two clusters are named"):
        parse_location("lu:/x", {"LUCIOLA_DATA": "/d", "LUCIOLA_ADDRESS": "h:1"})


PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1)


@given(PATHS, st.sampled_from(["h:1", "[::1]:99", "/data", "/data/x y"]))
def test_a_location_as_text_is_the_same_location(path, address):
    location = Location("/" + path, address)
    assert parse_location(str(location), {}) == location


@given(PATHS)
def test_any_text_is_a_location_or_refused_with_advice(text):
    try:
        location = parse_location(text, {})
    except InvalidArgument as error:
        assert "write" in str(error)
    else:
        assert parse_location(str(location), {}) == location


def test_joining():
    assert str(Location("/m", "/d").join("a", "b")) == "luciola:///d!/m/a/b"
    assert str(Location("m").join("a")) == "m/a"


def test_credentials_of_a_call_come_before_those_of_the_environment():
    location = parse_location("luciola://h:1/m", SECRET | TOKEN)
    assert location.with_credentials() is location
    assert location.with_credentials(secret_file="own") == Location("/m", "h:1", "own")
    assert location.with_credentials(token="a.b") == Location("/m", "h:1", None, "a.b")
    assert location.with_credentials(token_file="own") == Location("/m", "h:1", token_file="own")
    assert location.join("x").token == "claims.key"


def test_no_text_shows_a_token():
    location = Location("/m", "h:1", "/etc/secret", "claims.topsecret")
    token = mint(bytes(32), role=CLIENT)
    shown = [Parameters("h:1", None, "claims.topsecret", ClientConfig()), location, token, location.join("x")]
    for each in shown:
        assert "topsecret" not in f"{each!r} {each}"
        assert token.encode() not in f"{each!r} {each}"
        assert str(token.key) not in f"{each!r} {each}"


def test_a_plain_path_opens_as_local_files(tmp_path):
    fs, path = open_location(tmp_path / "x")
    assert isinstance(fs, LocalFileSystem)
    assert path == str(tmp_path / "x")
    assert fs.write(path, b"hello") == 5
    assert (fs.read(path), fs.read(path, 1, 2)) == (b"hello", b"el")
    buffer = bytearray(9)
    assert fs.read_into(path, buffer, 3) == 2
    assert pickle.loads(pickle.dumps(fs)).stat(path).st_size == 5


def test_a_cluster_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(NotFound, match="neither a data directory"):
        open_location(f"luciola://{tmp_path}/none!/x")
    with pytest.raises(NotFound, match="is the cluster running"):
        open_location(f"luciola://{tmp_path}!/x")
    monkeypatch.delenv("LUCIOLA_SECRET_FILE", raising=False)
    with pytest.raises(InvalidArgument, match="needs token_file"):
        open_location("luciola://127.0.0.1:1/x")


# The local counterpart: its files behave as a cluster's.


def test_files(tmp_path):
    fs = LocalFileSystem()
    path = str(tmp_path / "f")
    with fs.open(path, "xb", permissions=0o600) as file:
        assert file.write(memoryview(bytearray(b"abcdef")).cast("H")) == 6
        assert file.pwrite(b"X", 1) == 1
        file.fsync()
        file.fsync(data_only=True)
        assert file.stat().st_size == 6
    assert os.stat(path).st_mode & 0o777 == 0o600
    with fs.open(path, "rb") as file:
        assert (file.pread(9, 1), file.pread(2, 9), file.read(2), file.read(), file.read(1)) == (
            b"Xcdef",
            b"",
            b"aX",
            b"cdef",
            b"",
        )
        file.seek(-1, os.SEEK_END)
        assert file.readinto(bytearray(5)) == 1
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
        with pytest.raises(io.UnsupportedOperation):
            file.pwrite(b"x", 0)
        assert file.readinto(bytearray()) == 0
    with fs.open(path) as text:
        assert text.readline() == "aXcdef"
    with pytest.raises(FileExistsError):
        fs.open(path, "xb")


def test_a_pipe_is_read_to_its_end():
    fs = LocalFileSystem()
    reader, writer = os.pipe()
    os.write(writer, b"through")
    os.close(writer)
    with fs.open(f"/dev/fd/{reader}", "rb") as file:
        assert (file.read(3), file.read()) == (b"thr", b"ough")
    os.close(reader)


@pytest.mark.parametrize("entries", [1, 5, 64])
def test_a_local_ring_moves_what_is_asked(tmp_path, entries):
    fs = LocalFileSystem()
    data = random.Random(7).randbytes(100_000)
    fs.write(str(tmp_path / "f"), data)
    pieces = [(at, min(777, len(data) - at)) for at in range(0, len(data), 777)]
    target = bytearray(len(data))
    done = []
    with fs.ring(entries) as ring, fs.open(str(tmp_path / "f"), "rb") as file:
        left = [Operation(file, at, target, at, length, user_data=at) for at, length in pieces]
        while left or ring.in_flight:
            left = left[ring.submit(left) :]
            assert ring.in_flight <= entries
            done += ring.drain(least=1, timeout_s=100)
    assert target == data
    assert sorted((one.user_data, one.moved) for one in done) == pieces


def test_a_local_ring_writes_and_wakes_the_event_loop(tmp_path):
    fs = LocalFileSystem()
    with fs.ring() as ring, fs.open(str(tmp_path / "f"), "w+b") as file:
        assert select.select([ring], [], [], 0)[0] == []
        ring.submit([Operation(file, 3, b"def", write=True), Operation(file, 0, b"xabc", 1, write=True)])
        file.close()  # what was submitted is done all the same
        assert select.select([ring], [], [], 30)[0] == [ring]
        assert [one.moved for one in ring.drain(least=2, timeout_s=100)] == [3, 3]
        assert select.select([ring], [], [], 0)[0] == []
    assert fs.read(str(tmp_path / "f")) == b"abcdef"


def test_a_local_ring_refuses_what_is_wrong_and_reports_what_fails(tmp_path):
    fs = LocalFileSystem()
    fs.write(str(tmp_path / "f"), b"abc")
    with fs.ring(4) as ring, fs.open(str(tmp_path / "f"), "rb") as file:
        good = Operation(file, 0, bytearray(3))
        for bad in (
            good._replace(buffer_offset=4),
            good._replace(length=4),
            good._replace(buffer_offset=-1),
            good._replace(buffer=b"abc"),
        ):
            with pytest.raises(ValueError, match="buffer"):
                ring.submit([good, bad])
        assert ring.in_flight == 0
        ring.submit([good._replace(buffer=bytearray(9)), good._replace(write=True)])
        results = sorted(one.result for one in ring.drain(least=2, timeout_s=100))
        assert results == [-9, 3]
        with pytest.raises(OSError, match="Bad file"):
            _ = Completion(None, -9).moved
        file.close()
        with pytest.raises(ValueError, match="closed"):
            ring.submit([good])
    with pytest.raises(InvalidArgument, match="at least one entry"):
        fs.ring(0)


def test_replacing_is_all_or_nothing(tmp_path):
    fs = LocalFileSystem()
    path = str(tmp_path / "deep" / "f")
    with replacing(fs, path) as file:
        file.write(b"first")
        assert not fs.exists(path)
    assert fs.read(path) == b"first"
    with pytest.raises(ZeroDivisionError), replacing(fs, path) as file:
        file.write(b"second")
        _ = 1 / 0
    assert fs.read(path) == b"first"
    assert os.listdir(tmp_path / "deep") == ["f"]
