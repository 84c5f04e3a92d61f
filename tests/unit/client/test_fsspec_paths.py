"""URLs of fsspec, and what storage options become."""

import os
import pickle

import pytest

pytest.importorskip("fsspec", reason="needs the extra `fsspec`")

import fsspec

from luciola.client import Location
from luciola.client.fsspec import LuciolaFileSystem
from luciola.client.fsspec.paths import location_of, resolved_cluster, split_url
from luciola.errors import ConfigError, InvalidArgument
from luciola.wire.credentials import mint, save_token


@pytest.fixture(autouse=True)
def without_environment(monkeypatch) -> None:
    for name in (
        "LUCIOLA_DATA",
        "LUCIOLA_ADDRESS",
        "LUCIOLA_SECRET_FILE",
        "LUCIOLA_TOKEN",
        "LUCIOLA_TOKEN_FILE",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("luciola:///data/dir!/a/b", ("/data/dir", "/a/b")),
        ("luciola:///data/dir!/a/b/", ("/data/dir", "/a/b")),
        ("luciola:///data/dir!/", ("/data/dir", "/")),
        ("luciola:///data/dir!", ("/data/dir", "/")),
        ("luciola://data/dir!/a/b", ("/data/dir", "/a/b")),
        ("luciola://host:8000/a!/b", ("host:8000", "/a!/b")),
        ("luciola:///data/dir!/a!/b", ("/data/dir", "/a!/b")),
        ("luciola://host:8000/a", ("host:8000", "/a")),
        ("luciola://host:8000", ("host:8000", "/")),
        ("luciola://[::1]:8000/a", ("[::1]:8000", "/a")),
        ("luciola:///a/b", (None, "/a/b")),
        ("luciola://", (None, "/")),
        ("lu:/a/b", (None, "/a/b")),
        ("/a//b///c/", (None, "/a/b/c")),
        ("a/b", (None, "/a/b")),
        ("", (None, "/")),
        ("/a?b#c%20*", (None, "/a?b#c%20*")),
    ],
)
def test_a_url_names_a_cluster_and_a_path(url: str, expected: tuple[str | None, str]) -> None:
    assert split_url(url) == expected


@pytest.mark.parametrize(
    "url", ["luciola://bucket/a", "luciola://host:0/a", "luciola://host:99999/a", "luciola://a"]
)
def test_a_url_that_names_nothing_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument, match="write luciola://HOST:PORT/path"):
        split_url(url)


def test_the_environment_names_a_cluster_where_nothing_else_does(monkeypatch) -> None:
    with pytest.raises(InvalidArgument, match=r"LUCIOLA_DATA.*cluster=DATA_DIR"):
        resolved_cluster(None, None)
    monkeypatch.setenv("LUCIOLA_DATA", "relative")
    assert resolved_cluster(None, None) == (os.path.abspath("relative"), None, None, None)
    monkeypatch.setenv("LUCIOLA_SECRET_FILE", "/secret")
    assert resolved_cluster("/data", None) == ("/data", None, None, None)
    assert resolved_cluster("host:80", None) == ("host:80", "/secret", None, None)
    assert resolved_cluster("host:80", "own") == ("host:80", os.path.abspath("own"), None, None)
    monkeypatch.setenv("LUCIOLA_TOKEN_FILE", "/token")
    assert resolved_cluster("host:80", None) == ("host:80", "/secret", None, "/token")
    assert resolved_cluster("host:80", None, None, "own") == ("host:80", None, None, os.path.abspath("own"))
    monkeypatch.setenv("LUCIOLA_TOKEN", "claims.key")
    assert resolved_cluster("host:80", None) == ("host:80", None, None, None)
    assert resolved_cluster("host:80", None, "own.token") == ("host:80", None, "own.token", None)
    assert resolved_cluster("host:80", "own") == ("host:80", os.path.abspath("own"), None, None)
    assert resolved_cluster("/data", None) == ("/data", None, None, None)
    monkeypatch.setenv("LUCIOLA_ADDRESS", "host:81")
    with pytest.raises(InvalidArgument, match="two clusters"):
        resolved_cluster(None, None)


def test_token_of_the_environment_is_used_and_is_in_no_storage_option(monkeypatch) -> None:
    monkeypatch.setenv("LUCIOLA_TOKEN", "claims.key")
    monkeypatch.setenv("LUCIOLA_SECRET_FILE", "/secret")
    for fs in (LuciolaFileSystem("host:80"), pickle.loads(pickle.dumps(LuciolaFileSystem("host:80")))):
        assert fs.storage_options == {"cluster": "host:80"}
        assert "claims.key" not in fs.to_json()
        assert "claims.key" not in str(vars(fs))
    assert b"claims.key" not in pickle.dumps(LuciolaFileSystem("host:80"))
    assert location_of("host:80", None, None) == Location("/", "host:80", "/secret", "claims.key")
    assert location_of("host:80", "/own", None) == Location("/", "host:80", "/own")
    assert location_of("host:80", None, "own") == Location("/", "host:80", None, "own")
    assert location_of("/data", None, None) == Location("/", "/data")
    monkeypatch.setenv("LUCIOLA_DATA", "/data")
    assert location_of("/data", None, None) == Location("/", "/data", token="claims.key")


def test_token_file_is_an_option_and_what_it_holds_is_not(tmp_path) -> None:
    token = mint(bytes(32))
    save_token(tmp_path / "job.token", token)
    fs = LuciolaFileSystem("host:80", token_file=tmp_path / "job.token")
    assert fs.storage_options == {"cluster": "host:80", "token_file": str(tmp_path / "job.token")}
    for shown in (fs.to_json(), repr(fs), str(vars(fs)), str(pickle.dumps(fs))):
        assert token.encode() not in shown
    assert location_of("host:80", None, None, "/t") == Location("/", "host:80", token_file="/t")


def test_instances_are_shared_by_what_they_are(monkeypatch) -> None:
    first = LuciolaFileSystem("/one")
    assert LuciolaFileSystem(cluster="/one/") is first
    assert fsspec.filesystem("luciola", cluster="/one") is first
    assert fsspec.url_to_fs("luciola:///one!/x") == (first, "/one!/x")
    assert LuciolaFileSystem("/two") is not first
    assert LuciolaFileSystem("/one", auto_mkdir=False) is not first
    monkeypatch.setenv("LUCIOLA_DATA", "/one")
    assert fsspec.filesystem("luciola") is first
    monkeypatch.setenv("LUCIOLA_DATA", "/two")
    assert fsspec.filesystem("luciola") is LuciolaFileSystem("/two")


def test_a_url_of_another_cluster_is_refused() -> None:
    fs = LuciolaFileSystem("/one")
    for url in ("luciola:///two!/x", "luciola://host:1/x", "host:1/x"):
        with pytest.raises(InvalidArgument, match="another cluster than /one"):
            fs.info(url)
    with pytest.raises(InvalidArgument, match="a path is text"):
        fs.info(5)


@pytest.mark.parametrize(
    ("cluster", "url", "name"),
    [
        ("/one", "luciola:///one!/x/y", "/one!/x/y"),
        ("/one", "luciola:///two/../one!//x/", "/one!/x"),
        ("/one", "luciola:///one!/", "/one!"),
        ("host:1", "luciola://host:1/x", "host:1/x"),
        ("host:1", "luciola://host:1", "host:1"),
        ("/one", "luciola:///x!y", "/x!y"),
        ("/one", "/x", "/x"),
    ],
)
def test_a_name_with_the_scheme_is_its_url_again(cluster: str, url: str, name: str) -> None:
    fs = LuciolaFileSystem(cluster)
    path = split_url(url)[1]
    assert LuciolaFileSystem._strip_protocol(url) == fs._strip_protocol(url) == name
    assert fs._place(name) == fs._place(f"luciola://{name}") == (name, path)
    assert fs._strip_protocol([url, name]) == [name, name]
    assert split_url(fs.unstrip_protocol(name)) == (cluster, path)


def test_parents() -> None:
    fs = LuciolaFileSystem("/one")
    assert [fs._parent(name) for name in ("/a/b", "/a", "/", "/one!/a/b", "/one!/a")] == [
        *("/a", "/", "/", "/one!/a", "/one!")
    ]
    assert LuciolaFileSystem("host:1")._parent("host:1/a") == "host:1"


def test_making_an_instance_does_not_connect() -> None:
    fs = LuciolaFileSystem("/there/is/no/such/cluster")
    with pytest.raises(FileNotFoundError, match="neither a data directory"):
        fs.exists("/a")


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(ConfigError, match=r"client\.no_such_setting: unknown key"):
        LuciolaFileSystem("/one", config={"no_such_setting": 1})
