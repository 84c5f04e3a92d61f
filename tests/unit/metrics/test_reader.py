"""Reading the metrics of a process: what it shows, and what is said when it shows none."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from luciola.errors import Unavailable
from luciola.metrics import parse_samples, read_samples

LIMIT_S = 60.0
BODY = b'# TYPE luciola_x_total counter\nluciola_x_total{a="b"} 2\n# TYPE other gauge\nother 3\n'


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[str]:
    """A process that answers one request so; gives its address."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    listening.listen()
    listening.settimeout(LIMIT_S)

    def answer_one() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(answer)

    thread = threading.Thread(target=answer_one)
    thread.start()
    with listening:
        yield f"unix:{path}"
        thread.join()


def test_own_samples_are_read_with_their_labels(tmp_path: Path) -> None:
    with answering(tmp_path / "s", b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n" + BODY) as address:
        found = read_samples(address, timeout_s=LIMIT_S)
    assert found == parse_samples(BODY.decode()) == {("luciola_x_total", frozenset({("a", "b")})): 2.0}


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 Busy\r\n\r\n",
        b"",
        b"nothing like that",
        b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe",
        b"HTTP/1.1 200 OK\r\n\r\nluciola_x_total nonsense\n",
        b"HTTP/1.1 200 OK\r\n\r\nluciola_x_total{a=",
    ],
)
def test_answer_without_metrics_is_an_error(tmp_path: Path, answer: bytes) -> None:
    with (
        answering(tmp_path / "s", answer) as address,
        pytest.raises(Unavailable, match="no metrics from unix:"),
    ):
        read_samples(address, timeout_s=LIMIT_S)


def test_answer_that_does_not_end_is_an_error(tmp_path: Path) -> None:
    """Each part comes in time; the answer never ends."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(tmp_path / "s"))
    listening.listen()

    def trickle() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            while True:  # until the reader has closed
                connection.sendall(b"#")
                time.sleep(0.01)

    thread = threading.Thread(target=trickle)
    thread.start()
    with listening, pytest.raises(Unavailable, match=r"in time|timed out"):
        read_samples(f"unix:{tmp_path / 's'}", timeout_s=0.2)
    thread.join()


def test_process_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        read_samples(f"unix:{tmp_path / 'gone'}", timeout_s=LIMIT_S)
