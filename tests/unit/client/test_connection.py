"""What a connection needs to know, without a cluster."""

import gc
import os
import pickle
import signal
import socket
import threading
from pathlib import Path

import pytest

import luciola
from cluster import until
from luciola.client import connection, renewal
from luciola.client.connection import Parameters
from luciola.config import ClientConfig
from luciola.errors import ConfigError, InvalidArgument, NotFound, Unauthenticated, Unavailable
from luciola.wire.cluster import FILE_NAME, Cluster, save_cluster
from luciola.wire.credentials import CLIENT, TRUSTED, create_secret, mint, read_claims, save_token

QUICK = ClientConfig(deadline_ms=300)


@pytest.fixture
def data(tmp_path):
    create_secret(tmp_path / "secret")
    save_cluster(
        tmp_path / FILE_NAME, Cluster("c", "127.0.0.1:4711", "127.0.0.1:4712", str(tmp_path / "secret"))
    )
    return tmp_path


def parameters(address, **named):
    return Parameters(str(address), **({"secret_file": None, "token": None, "config": QUICK} | named))


def test_a_data_directory_names_address_and_secret(data):
    address, source = parameters(data).resolve()
    assert address == "127.0.0.1:4711"
    identity = read_claims(source().claims)
    assert identity.uid == os.geteuid()
    assert identity.role == (TRUSTED if os.geteuid() == 0 else CLIENT)


def test_a_token_is_used_as_it_is(data):
    token = mint((data / "secret").read_bytes()[:32], role=CLIENT, uid=7)
    for address in (data, "10.0.0.1:4711"):
        assert parameters(address, token=token.encode()).resolve()[1]() == token
    with pytest.raises(Unauthenticated):
        parameters(data, token="nonsense").resolve()


def test_a_token_file_is_used_and_no_secret_is_needed(data, tmp_path):
    token = mint(bytes(32), role=CLIENT, uid=7)
    path = tmp_path / "job.token"
    save_token(path, token)
    (data / "secret").unlink()
    for address in (data, "10.0.0.1:4711"):
        found = parameters(address, token_file=str(path))
        assert found.resolve()[1]() == token
        assert token.encode() not in f"{found!r}"
        assert token.encode().encode() not in pickle.dumps(found)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        parameters(data, token_file=str(path)).resolve()[1]()


def test_a_token_that_has_expired_is_said_before_anything_is_connected(data, tmp_path):
    token = mint(bytes(32), lifetime_s=-1)
    save_token(tmp_path / "job.token", token)
    with pytest.raises(Unauthenticated, match=r"expired at .*luciola token create.*job\.token"):
        luciola.connect("127.0.0.1:1", token_file=tmp_path / "job.token", config=QUICK)
    with pytest.raises(Unauthenticated, match="expired at"):
        luciola.connect("127.0.0.1:1", token=token.encode(), config=QUICK)


def test_what_is_missing_is_said(data, tmp_path):
    with pytest.raises(InvalidArgument, match="secret_file"):
        parameters("10.0.0.1:4711").resolve()
    with pytest.raises(NotFound, match="neither a data directory"):
        parameters(tmp_path / "none").resolve()
    with pytest.raises(NotFound, match="is the cluster running"):
        (data / FILE_NAME).unlink()
        parameters(data).resolve()[1]()
    with pytest.raises(NotFound, match="secret"):
        parameters("10.0.0.1:4711", secret_file=str(tmp_path / "none")).resolve()[1]()


def test_unreachable_manager_is_an_error_within_the_deadline(data):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    with pytest.raises(Unavailable):
        luciola.connect(f"127.0.0.1:{port}", secret_file=data / "secret", config=QUICK)


def test_a_signal_handler_that_raises_ends_the_attempt(data):
    """As Ctrl-C does, long before the deadline."""

    def on_alarm(*_):
        raise InterruptedError("enough")

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(InterruptedError, match="enough"):
                luciola.connect(f"127.0.0.1:{silent.getsockname()[1]}", secret_file=data / "secret")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_answer_of_another_protocol_is_an_error_within_the_deadline(data):
    """A program that is no cluster manager: refused within the deadline, and sent nothing secret."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        heard = []

        def answer():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(64))
                    connection.settimeout(0.5)
                    try:
                        heard.append(connection.recv(1000))
                    except OSError:
                        heard.append(b"")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(luciola.client.file_system.Error):
            luciola.connect(f"127.0.0.1:{server.getsockname()[1]}", secret_file=data / "secret", config=QUICK)
        # A busy machine may give up before the program has taken the connection, which waits.
        until(lambda: heard, what="the connection")
        server.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=60)
        secret = bytes.fromhex((data / "secret").read_text())
        assert not any(secret in said for said in heard)


def test_the_client_table_of_a_configuration_file_is_used(data, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("[client]\ndeadline_ms = 200\ntransport = 'pigeon'\n")
    with pytest.raises(ConfigError, match=r"client\.transport"):
        luciola.connect(data, config=file)


def test_settings_that_a_file_could_not_say_are_refused(data):
    with pytest.raises(ConfigError, match=r"client\.write_buffer_bytes: must be between"):
        luciola.connect(data, config=ClientConfig(write_buffer_bytes=0))
    with pytest.raises(ConfigError, match=r"client\.deadline_ms: must be int"):
        luciola.connect(data, config=ClientConfig(deadline_ms=1.5))


def test_a_directory_is_named_as_files_are():
    for name in (b"/nonexistent", Path("/nonexistent")):
        with pytest.raises(NotFound, match="neither a data directory"):
            luciola.connect(name)


class OpenClient:
    """What a connection sees of a native client."""

    is_token_refused = False

    def close(self):
        pass


@pytest.mark.parametrize("way", ["closed", "forgotten"])
def test_thread_that_renews_tokens_ends_with_its_connection(data, monkeypatch, way):
    monkeypatch.setattr(connection, "_native", lambda *_: OpenClient())
    monkeypatch.setattr(renewal, "LOOK_S", 0.01)
    before = set(threading.enumerate())
    opened = connection.Connection(parameters(data))
    assert opened.client
    (thread,) = (each for each in threading.enumerate() if each not in before)
    if way == "closed":
        opened.close()
    else:
        del opened
        gc.collect()
    thread.join(60)
    assert not thread.is_alive()
